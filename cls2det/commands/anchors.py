"""The anchors that a training starts with, and what is said of them: fitted to the training data, or a warning that they miss it."""

from __future__ import annotations

import logging
import warnings

from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.commands.options import TrainOptions
from cls2det.data.dataset import DetectionData
from cls2det.files import is_first_process
from cls2det.models.anchor_fit import FEW, Fit, fitted, input_boxes, measure
from cls2det.models.anchors import AnchorGrid, Levels, anchor_grid, set_anchors
from cls2det.models.students import build_student

# Share of the objects that are without an anchor at the threshold, above which a training warns. On objects of COCO's sizes (tests/
# test_anchors.py) the published students miss 10 to 30 %. SSDLite320 misses 61 %: its smallest default box has 64 pixels.
UNMATCHED = 0.5
PUBLISHED = {"ssdlite320_mobilenet_v3_large": 0.7}


def training_anchors(options: TrainOptions, data: DetectionData) -> Levels | None:
    """Those of the options, or fitted to the training data; None for the student's own.

    Raises:
        ValueError: both ``anchors`` and ``fit_anchors``, or a student that has none
    """
    if not options.fit_anchors:
        return options.anchors
    if options.anchors is not None:
        raise ValueError("--anchors and --fit-anchors are two ways to choose the anchors; give one of them")
    detector = build_student(options.student, len(data.classes), options.image_size)
    grid = anchor_grid(detector)
    if grid is None:
        raise ValueError(f"--fit-anchors: {options.student} has no anchors; SSD, RetinaNet and Faster R-CNN have")
    transform: GeneralizedRCNNTransform = detector.transform
    boxes = input_boxes(data, transform)
    levels, before = fitted(grid, boxes), measure(grid, boxes)
    set_anchors(detector, levels)
    if is_first_process():
        after = measure(grid_of(detector), boxes)
        logging.getLogger(__name__).info("anchors from the training data: %s; the student's own: %s", say(after), say(before))
    return levels


def warn_of_unmatched(student: str, detector: nn.Module, data: DetectionData) -> None:
    """Warn where many objects have no anchor that fits: the detector hardly learns to find these."""
    grid = anchor_grid(detector)
    if grid is None or sum(len(target["labels"]) for target in data.targets) < FEW:
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


def grid_of(detector: nn.Module) -> AnchorGrid:
    """``anchor_grid`` of a detector that has anchors."""
    grid = anchor_grid(detector)
    assert grid is not None
    return grid


def say(fit: Fit) -> str:
    return f"{fit.share:.0%} of the objects at IoU {fit.threshold:g}, mean best IoU {fit.mean_iou:.2f}"
