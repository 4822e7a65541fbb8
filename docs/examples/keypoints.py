"""Distil a large Keypoint R-CNN into a small one: align the distributions of their local predictions of each keypoint.

Every positive of a ground truth says where each of its keypoints lies. Teacher and student have other positives, and not the same
number of them. So their predictions are taken as two sets of weighted points, and what it costs to move one set onto the other
is the loss: Guo, Hu, Alvarez and Salzmann, "Knowledge Distillation for 6D Pose Estimation by Aligning Distributions of Local
Predictions", CVPR 2023. There the points are the projected corners of an object; here they are keypoints of a picture.

The lines that end in "# distil" are all that is added to the training. Run: python keypoints.py
"""

from __future__ import annotations

from itertools import pairwise

import torch
from pictures import make_pictures, show
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection import KeypointRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from cls2det.distill import PositiveTap  # distil
from cls2det_ops.losses import sinkhorn_loss  # distil

KEYPOINTS = 4  # the corners of a rectangle


class LocalPredictions:
    """Records, inside ``with``, where each positive of a Keypoint R-CNN puts each keypoint."""

    def __init__(self, model: KeypointRCNN):
        self.tap, self.predictor = PositiveTap(model), model.roi_heads.keypoint_predictor

    def __enter__(self) -> LocalPredictions:
        self.tap.__enter__()
        self.handle = self.predictor.register_forward_hook(lambda _module, _arguments, maps: setattr(self, "maps", maps))
        return self

    def __exit__(self, *error: object) -> None:
        self.handle.remove()
        self.tap.__exit__(*error)

    def by_ground_truth(self) -> tuple[Tensor, Tensor]:
        """Points (G, N, J, 2) in pixels and weights (G, N) of G ground truths, for their largest number N of positives.

        A point is the mean place of its heat map, which has a gradient; the weight is the score of the positive's class. Rows
        beyond a ground truth's own positives have weight 0.
        """
        positives, regions = self.tap.positives, self.tap.student_outputs.regions
        left, top, right, bottom = torch.cat(regions.proposals)[regions.labels > 0, :, None].unbind(1)
        heat = self.maps.flatten(2).softmax(2).view_as(self.maps)  # (K, J, S, S)
        shares = (torch.arange(heat.shape[-1], device=heat.device) + 0.5) / heat.shape[-1]
        x, y = (heat.sum(2) * shares).sum(2), (heat.sum(3) * shares).sum(2)  # (K, J), shares of the proposal
        points = torch.stack([left + x * (right - left), top + y * (bottom - top)], 2)
        labels = positives.target_labels[positives.matched_idxs]
        scores = positives.logits.softmax(1).gather(1, labels[:, None])[:, 0]
        rows = [torch.where(positives.matched_idxs == number)[0] for number in range(len(positives.target_boxes))]
        return tuple(pad_sequence([values[row] for row in rows], batch_first=True) for values in (points, scores))


def alignment_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], boxes: Tensor) -> Tensor:
    """Mean cost of moving the student's points onto the teacher's, per ground truth and keypoint, in shares of the box's sides."""
    (points, weights), (targets, target_weights) = student, teacher
    sides = (boxes[:, 2:] - boxes[:, :2])[:, None, None]
    p, q = ((values / sides).transpose(1, 2).flatten(0, 1) for values in (points, targets))  # (G · J, N, 2), (G · J, M, 2)
    cost = (p[:, :, None] - q[:, None]).square().sum(3)
    count = points.shape[2]
    return sinkhorn_loss(
        cost, weights.repeat_interleave(count, 0), target_weights.repeat_interleave(count, 0), epsilon=0.01
    ).mean()


def build(width: int) -> KeypointRCNN:
    channels = (3, width, width, width)
    layers = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU()) for a, b in pairwise(channels)]
    backbone = nn.Sequential(*layers)
    backbone.out_channels = width
    align = {"featmap_names": ["0"], "sampling_ratio": 2}
    return KeypointRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(((24, 40),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(output_size=5, **align),
        box_head=TwoMLPHead(width * 25, 64),
        box_predictor=FastRCNNPredictor(64, 2),
        keypoint_roi_pool=MultiScaleRoIAlign(output_size=7, **align),
        keypoint_head=KeypointRCNNHeads(width, (width, width)),
        keypoint_predictor=KeypointRCNNPredictor(width, KEYPOINTS),
        min_size=96,
        max_size=96,
        box_batch_size_per_image=32,
        rpn_batch_size_per_image=64,
    )


def make_batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images, targets = [], []
    for picture, boxes, _ in make_pictures(4):
        left, top, right, bottom = boxes.unbind(1)
        visible = torch.ones_like(left)
        corners = [torch.stack([x, y, visible], 1) for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))]
        images.append(picture)
        targets.append(
            {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64), "keypoints": torch.stack(corners, 1)}
        )
    return images, targets


def train_teacher(steps: int) -> KeypointRCNN:
    torch.manual_seed(1)
    teacher, batch = build(32).train(), make_batch()
    optimizer = torch.optim.AdamW(teacher.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(teacher(*batch).values()).backward()
        optimizer.step()
    return teacher.requires_grad_(False)  # in training mode still: it shall match its own proposals


def main(steps: int = 25, teacher_steps: int = 40) -> list[dict[str, float]]:
    teacher = train_teacher(teacher_steps)
    torch.manual_seed(0)
    student, history = build(16).train(), []
    images, targets = make_batch()
    optimizer = torch.optim.AdamW(student.parameters(), 3e-3)
    ours, theirs = LocalPredictions(student), LocalPredictions(teacher)  # distil
    for step in range(steps):
        with ours:  # distil
            losses = student(images, targets)
        with theirs, torch.no_grad():  # distil
            teacher(images, targets)  # distil
        boxes = ours.tap.positives.target_boxes  # distil
        losses["kd_keypoints"] = 10 * alignment_loss(ours.by_ground_truth(), theirs.by_ground_truth(), boxes)  # distil
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append(show(step, losses))
    return history


if __name__ == "__main__":
    main()
