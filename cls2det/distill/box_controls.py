"""What a study puts in the place of the terms on boxes: the true box itself, which needs no teacher and no pixels.

A term on pixels or features can only pull a box to the ground truth, and so can these. Where they gain as much at the same share
of the gradient, the gain is that of a stronger pull.
"""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from cls2det.models.positives import Positives


def giou(positives: Positives) -> Tensor:
    """Sum of 1 - GIoU of every positive and its ground truth (Rezatofighi et al., CVPR 2019); gradient to the boxes."""
    loss: Tensor = generalized_box_iou_loss(positives.boxes, positives.target_boxes[positives.matched_idxs], reduction="sum")
    return loss


def l1(positives: Positives) -> Tensor:
    """Sum of the mean difference of x1, y1, x2 and y2, in units of the ground truth's width and height; gradient to the boxes."""
    truth = positives.target_boxes[positives.matched_idxs]
    sides = (truth[:, 2:] - truth[:, :2]).clamp(min=1.0).repeat(1, 2)
    return ((positives.boxes - truth).abs() / sides).mean(1).sum()


BOX_CONTROLS = {"giou": giou, "l1": l1}  # by name of ClassifierSettings.control
