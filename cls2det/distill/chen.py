"""Chen et al., NeurIPS 2017: soft labels for every region, box regression bounded by the teacher's, a hint on the maps."""

from __future__ import annotations

import functools
import operator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from cls2det.distill.maps import pairs
from cls2det.models.taps import Grid, Regions, StudentOutputs
from cls2det.settings import ChenSettings
from cls2det.teachers.detector import DetectorTeacher, TeacherOutputs, check_same_grid
from cls2det_ops import masked_feature_loss
from cls2det_ops.losses import chen_bounded_loss, chen_class_loss


class Chen(nn.Module):
    """The three terms, with an adapter of 1 x 1 for each map of the hint."""

    def __init__(self, settings: ChenSettings, student: nn.Module, teacher: DetectorTeacher):
        super().__init__()
        if not isinstance(student, FasterRCNN):
            raise ValueError(f"chen teaches the two stages of a Faster R-CNN; the student is a {type(student).__name__}")
        channels = check_same_grid("chen", student, teacher.detector)
        self.settings, self.columns = settings, teacher.columns("chen")
        self.adapters = nn.ModuleList(nn.Conv2d(*pair, 1) for pair in channels)

    def forward(self, student_outputs: StudentOutputs, teacher_outputs: TeacherOutputs) -> dict[str, Tensor]:
        settings, regions, grid = self.settings, student_outputs.regions, student_outputs.grid
        assert regions is not None and grid is not None  # of a Faster R-CNN
        logits, regression = teacher_outputs.regions(regions.proposals)
        logits, regression = logits[:, self.columns], regression.unflatten(1, (-1, 4))[:, self.columns]
        return {
            "chen_soft": settings.soft_weight * (self._soft_regions(regions, logits) + _soft_anchors(grid, teacher_outputs)),
            "chen_bounded": settings.bounded_weight * self._bounded(regions, regression),
            "chen_hint": settings.hint_weight * self._hint(student_outputs, teacher_outputs),
        }

    def _soft_regions(self, regions: Regions, logits: Tensor) -> Tensor:
        return chen_class_loss(
            regions.logits,
            logits,
            background_weight=self.settings.background_weight,
            temperature=self.settings.temperature,
        )

    def _bounded(self, regions: Regions, regression: Tensor) -> Tensor:
        rows = torch.where(regions.labels > 0)[0]
        labels = regions.labels[rows]
        codes = regions.regression.unflatten(1, (-1, 4))[rows, labels]
        mean = chen_bounded_loss(codes, regression[rows, labels], regions.targets[rows], margin=self.settings.margin)
        return mean * (len(rows) / max(len(regions.labels), 1))  # over all samples, as the box loss that it is added to

    def _hint(self, student_outputs: StudentOutputs, teacher_outputs: TeacherOutputs) -> Tensor:
        terms = [
            masked_feature_loss(student_map, teacher_map, normalizer=teacher_map.numel())
            for student_map, teacher_map in pairs(self.adapters, student_outputs, teacher_outputs)
        ]
        return functools.reduce(operator.add, terms) / len(terms)


def _soft_anchors(grid: Grid, teacher_outputs: TeacherOutputs) -> Tensor:
    """Of the RPN, over the anchors that its own loss has sampled."""
    in_loss = grid.labels >= 0
    objectness = teacher_outputs.grid[0][..., 0].float().sigmoid()
    loss = F.binary_cross_entropy_with_logits(grid.logits[..., 0].float(), objectness, in_loss.float(), reduction="sum")
    return loss / in_loss.sum().clamp(min=1)
