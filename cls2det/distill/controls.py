"""What a study puts in a term's place, to see what its gain comes from: the ground truth itself, which needs no teacher.

In the place of KD-cls stand labels. Where they gain as much, the gain is that of a stronger pull to the right class, and not of
what the teacher knows. In the place of the terms on boxes stands the true box: a term on pixels or features can only pull to it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from cls2det.models.positives import Positives

SMOOTHING = 0.1  # of "smoothed", as is usual (Szegedy et al., CVPR 2016)


def one_hot(truth: Tensor, classes: int, head: str, _temperature: float) -> Tensor:
    """Logits (G, C) of a teacher that is certain of the ground truth's class."""
    is_class = torch.arange(classes, device=truth.device) == truth[:, None]
    return torch.where(is_class, 0.0 if head == "softmax" else torch.inf, -torch.inf)


def smoothed(truth: Tensor, classes: int, head: str, temperature: float) -> Tensor:
    """Logits (G, C) of a teacher that gives each class its part of 0.1, whatever the picture: the student's label smoothing.

    The probabilities are those at the temperature. For sigmoids, each class is a choice of two.
    """
    is_class = (torch.arange(classes, device=truth.device) == truth[:, None]).float()
    shares = is_class * (1 - SMOOTHING) + SMOOTHING / (classes if head == "softmax" else 2)
    return temperature * (shares.log() if head == "softmax" else shares.logit())


def giou(positives: Positives) -> Tensor:
    """Sum of 1 - GIoU of every positive and its ground truth (Rezatofighi et al., CVPR 2019); gradient to the boxes."""
    loss: Tensor = generalized_box_iou_loss(positives.boxes, positives.target_boxes[positives.matched_idxs], reduction="sum")
    return loss


def l1(positives: Positives) -> Tensor:
    """Sum of the mean difference of x1, y1, x2 and y2, in units of the ground truth's width and height; gradient to the boxes."""
    truth = positives.target_boxes[positives.matched_idxs]
    sides = (truth[:, 2:] - truth[:, :2]).clamp(min=1.0).repeat(1, 2)
    return ((positives.boxes - truth).abs() / sides).mean(1).sum()


# by name of ClassifierSettings.control
LABELS = {"one_hot": one_hot, "smoothed": smoothed}
BOXES = {"giou": giou, "l1": l1}
