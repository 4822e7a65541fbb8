"""How many detections a detector gives per image at most: 100 to 300, unless it is told to give more."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN

from cls2det.models.students.hungarian import HungarianDetector


def most_detections(detector: nn.Module) -> int | None:
    """The detector's own limit per image; None for one that is not of ``STUDENTS``' families."""
    if isinstance(detector, HungarianDetector):
        return detector.queries
    limit = getattr(_limited(detector), "detections_per_img", None)
    return None if limit is None else int(limit)


def allow_detections(detector: nn.Module, count: int) -> None:
    """Let the detector give at least ``count`` detections per image, chosen among at least twice as many candidates.

    A detector that allows as many already stays as it is: none of ``STUDENTS`` is changed by a ``count`` of up to 100. DETR and
    its like have one detection per query, and cannot give more.
    """
    limit = most_detections(detector)
    if limit is None or limit >= count or isinstance(detector, HungarianDetector):
        return
    parts: Any = _limited(detector)
    parts.detections_per_img = count
    if isinstance(detector, FasterRCNN):
        for stage in (detector.rpn._pre_nms_top_n, detector.rpn._post_nms_top_n):
            stage["testing"] = max(stage["testing"], 2 * count)
    else:
        parts.topk_candidates = max(parts.topk_candidates, 2 * count)


def _limited(detector: nn.Module) -> nn.Module:
    """The part that has ``detections_per_img``."""
    part: nn.Module = detector.roi_heads if isinstance(detector, FasterRCNN) else detector
    return part
