"""Distil a classifier into a detector of torchvision, in a loop as torchvision's reference trainer has one.

The lines that end in "# distil" are all that is added. Run: python torchvision_detection.py
"""

from __future__ import annotations

import torch
from pictures import CLASSES, CROP, MEAN, STD, make_pictures, show, train_classifier
from torchvision.models import get_model

from cls2det.distill import BoxDistiller, PositiveTap, teacher_from  # distil


def train_one_epoch(model, optimizer, data_loader, device, tap, distiller):  # distil
    model.train()
    history = []
    for step, (images, targets) in enumerate(data_loader):
        images = [image.to(device) for image in images]
        targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
        with tap:  # distil
            loss_dict = model(images, targets)
        loss_dict |= distiller(tap.positives)  # distil
        losses = sum(loss for loss in loss_dict.values())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        history.append(show(step, loss_dict))
    return history


def main(builder: str = "fasterrcnn_mobilenet_v3_large_320_fpn", steps: int = 16) -> list[dict[str, float]]:
    torch.manual_seed(0)
    small = {"min_size": 96, "max_size": 96, "box_batch_size_per_image": 32}
    model = get_model(builder, weights=None, weights_backbone=None, num_classes=len(CLASSES) + 1, **small)
    device = torch.device("cpu")
    model.to(device)
    pictures = make_pictures(4)
    batch = [picture for picture, _, _ in pictures], [{"boxes": boxes, "labels": labels} for _, boxes, labels in pictures]
    data_loader = [batch] * steps  # your data loader
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4)

    teacher = teacher_from(train_classifier(), CLASSES, CROP, mean=MEAN, std=STD)  # distil
    tap = PositiveTap(model)  # distil
    distiller = BoxDistiller(teacher, **tap.normalisation).to(device)  # distil
    return train_one_epoch(model, optimizer, data_loader, device, tap, distiller)  # distil


if __name__ == "__main__":
    main()
