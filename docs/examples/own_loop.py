"""Distil a classifier into a detector of one's own, which no tap knows: say what its positives are.

The lines that end in "# distil" are all that is added. Run: python own_loop.py
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from pictures import CLASSES, CROP, MEAN, STD, make_pictures, show, train_classifier
from torch import Tensor, nn

from cls2det.distill import BoxDistiller, Positives, teacher_from  # distil

STRIDE = 8


class Detector(nn.Module):
    """Every cell of a grid predicts logits of the classes and four distances to the sides of its box, in strides."""

    def __init__(self):
        super().__init__()
        widths = (3, 16, 32, 64)
        layers = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(widths)]
        self.body, self.head = nn.Sequential(*layers), nn.Conv2d(64, len(CLASSES) + 4, 3, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, N, C), boxes (B, N, 4) xyxy in pixels, centres (N, 2) of the cells."""
        maps = self.head(self.body(images))
        height, width = maps.shape[-2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centres = (torch.stack([x, y], 2).view(-1, 2) + 0.5) * STRIDE
        rows = maps.flatten(2).mT
        distances = F.softplus(rows[..., -4:]) * STRIDE
        return rows[..., :-4], torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], 2), centres


def match(centres: Tensor, boxes: Tensor, image: Tensor, count: int) -> Tensor:
    """(count, N): for each cell of each picture the ground truth around its centre, as a row of ``boxes``, or -1."""
    left_top, right_bottom = centres > boxes[:, None, :2], centres < boxes[:, None, 2:]
    inside = (left_top & right_bottom).all(2)  # (G, N)
    matched = torch.full((count, len(centres)), -1)
    for row, cells in enumerate(inside):
        matched[image[row], cells] = row
    return matched


def main(steps: int = 40) -> list[dict[str, float]]:
    torch.manual_seed(0)
    model = Detector()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    pictures = make_pictures()
    images = torch.stack([picture for picture, _, _ in pictures])
    target_boxes = torch.cat([boxes for _, boxes, _ in pictures])  # of all pictures, in one list
    target_labels = torch.cat([labels for _, _, labels in pictures])
    target_image = torch.arange(len(pictures)).repeat_interleave(2)

    network = train_classifier(sigmoid=True)  # as the detector's head
    teacher = teacher_from(network, CLASSES, CROP, mean=MEAN, std=STD)  # distil
    distiller = BoxDistiller(teacher, image_mean=(0, 0, 0), image_std=(1, 1, 1))  # distil: pictures of 0 to 1

    history = []
    for step in range(steps):
        logits, boxes, centres = model(images)
        matched = match(centres, target_boxes, target_image, len(images))
        image, cell = torch.where(matched >= 0)
        matched_idxs = matched[image, cell]
        one_hot = torch.zeros_like(logits)
        one_hot[image, cell, target_labels[matched_idxs] - 1] = 1
        losses = {
            "classes": F.binary_cross_entropy_with_logits(logits, one_hot, reduction="sum") / len(cell),
            "boxes": F.smooth_l1_loss(boxes[image, cell], target_boxes[matched_idxs]) / STRIDE,
        }
        of_positives = dict(logits=logits[image, cell], boxes=boxes[image, cell], image_index=image)  # distil
        of_targets = dict(target_boxes=target_boxes, target_labels=target_labels, target_image_index=target_image)  # distil
        kind = dict(head="sigmoid", background="none")  # distil
        positives = Positives(images, matched_idxs=matched_idxs, **of_positives, **of_targets, **kind)  # distil
        losses |= distiller(positives)  # distil
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append(show(step, losses))
    return history


if __name__ == "__main__":
    main()
