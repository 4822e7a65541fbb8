"""Harmony: predictions weighted by how far class and box agree, features by the places that each of the two looks at.

Ours, after an idea of Tang et al. (TBD, arXiv 2208.03006, 2022), whose equations we could not get: results of this method say
nothing about theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet

from cls2det.distill.maps import make_adapters, pairs
from cls2det.models.taps import StudentOutputs
from cls2det.settings import HarmonySettings
from cls2det.teachers.detector import DetectorTeacher, TeacherOutputs, check_same_grid
from cls2det_ops.losses import bckd_box_loss, bckd_loss, harmony_feature_loss, harmony_score


class Harmony(nn.Module):
    """The three terms, with an adapter for each map where the numbers of channels differ."""

    def __init__(self, settings: HarmonySettings, student: nn.Module, teacher: DetectorTeacher):
        super().__init__()
        if not isinstance(student, RetinaNet | FCOS):
            raise ValueError(f"harmony reads a sigmoid for each class; the student is a {type(student).__name__}")
        self.adapters = make_adapters(check_same_grid("harmony", student, teacher.detector))
        self.settings, self.columns = settings, teacher.columns("harmony")[1:]

    def forward(self, student_outputs: StudentOutputs, teacher_outputs: TeacherOutputs) -> dict[str, Tensor]:
        settings, grid, positives = self.settings, student_outputs.grid, student_outputs.positives
        assert grid is not None  # check_same_grid
        logits, regression = teacher_outputs.grid
        logits = logits[..., self.columns].float()
        image, anchor = torch.where(grid.labels > 0)  # the order of ``positives``
        student_boxes, teacher_boxes = (
            grid.decode(codes[image, anchor].float(), grid.anchors[anchor]) for codes in (grid.regression, regression)
        )
        scores = logits[image, anchor, positives.target_labels[positives.matched_idxs] - 1].sigmoid()
        harmony, iou = harmony_score(scores, teacher_boxes, positives.target_boxes[positives.matched_idxs])
        count = max(len(image), 1)
        overlaps = torch.zeros_like(logits[..., 0]).index_put((image, anchor), iou)
        student_maps, teacher_maps = zip(*pairs(self.adapters, student_outputs, teacher_outputs), strict=True)
        feature = harmony_feature_loss(
            student_maps,
            teacher_maps,
            by_place(logits.amax(-1).sigmoid(), student_outputs),
            by_place(overlaps, student_outputs),
            settings.balance,
        )
        cls = bckd_loss(grid.logits[..., 1:][image, anchor], logits[image, anchor], beta=0.0, weight=harmony, normalizer=count)
        return {
            "harmony_cls": settings.cls_weight * cls,
            "harmony_box": settings.box_weight * bckd_box_loss(student_boxes, teacher_boxes, weight=harmony, normalizer=count),
            "harmony_feature": settings.feature_weight * feature,
        }


def by_place(values: Tensor, student_outputs: StudentOutputs) -> list[Tensor]:
    """Values at anchors (B, A) to one map (B, h, w) per level: the largest value at every place."""
    assert student_outputs.grid is not None  # check_same_grid
    sizes = [features.shape[-2:] for features in student_outputs.features.values()]
    levels = values.split(list(student_outputs.grid.level_sizes), 1)
    return [level.unflatten(1, (*size, -1)).amax(-1) for level, size in zip(levels, sizes, strict=True)]
