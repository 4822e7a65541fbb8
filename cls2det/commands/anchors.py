"""The anchors that a training starts with, and what is said of them: fitted to the training data, or a warning that they miss it."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.commands.options import TrainOptions
from cls2det.data.dataset import DetectionData
from cls2det.files import is_first_process
from cls2det.models.anchor_fit import FEW, Fit, fitted, input_boxes, measure
from cls2det.models.anchors import Levels, anchor_grid
from cls2det.models.students import build_student

# Share of the objects that are without an anchor at the threshold, above which a training warns. On objects of COCO's sizes (tests/
# test_anchors.py) the published students miss 10 to 30 %. SSDLite320 misses 61 %: its smallest default box has 64 pixels.
UNMATCHED = 0.5
PUBLISHED = {"ssdlite320_mobilenet_v3_large": 0.7}


def training_anchors(options: TrainOptions, data: DetectionData) -> Levels | None:
    """Those of ``anchors``, or fitted to the training data; None for the student's own.

    ``anchors`` wins over ``fit_anchors``, which a recipe may have. A student without anchors keeps that, with a warning.
    """
    if options.anchors is not None or not options.fit_anchors:
        return options.anchors
    with torch.device("meta"):  # shapes and no weights
        detector = build_student(options.student, len(data.classes), options.image_size)
    grid = anchor_grid(detector)
    if grid is None:
        warnings.warn(f"fit_anchors changes nothing: {options.student} has no anchors", stacklevel=3)
        return None
    transform: GeneralizedRCNNTransform = detector.transform
    boxes = input_boxes(data, transform)
    levels = fitted(grid, boxes)
    if is_first_process():
        own, better = measure(grid, boxes), measure(grid.with_levels(levels), boxes)
        logging.getLogger(__name__).info("anchors from the training data: %s; the student's own: %s", say(better), say(own))
    return levels


def warn_of_unmatched(student: str, detector: nn.Module, data: DetectionData) -> None:
    """Warn where many objects have no anchor that fits: the detector hardly learns to find these."""
    grid = anchor_grid(detector)
    if grid is None or data.targets.counts().sum() < FEW:
        return
    transform: GeneralizedRCNNTransform = detector.transform
    fit = measure(grid, input_boxes(data, transform))
    if 1 - fit.share > PUBLISHED.get(student, UNMATCHED):
        way_out = (
            "Give larger images (--image-size), or a student for smaller objects"
            if hasattr(detector, "anchors")
            else "Let the anchors be taken from the data (--fit-anchors), or give larger images (--image-size)"
        )
        warnings.warn(
            f"{data.annotation_file}: {1 - fit.share:.0%} of the objects have no anchor of {student} that overlaps them by an IoU of "
            f"{fit.threshold:g}, and are hardly learnt (mean of the best IoUs {fit.mean_iou:.2f}). {way_out}; `cls2det look` shows "
            "what would fit",
            stacklevel=3,
        )


def say(fit: Fit) -> str:
    return f"{fit.share:.0%} of the objects at IoU {fit.threshold:g}, mean best IoU {fit.mean_iou:.2f}"
