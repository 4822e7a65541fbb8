"""Chen et al., NeurIPS 2017: soft labels for every region, box regression bounded by the teacher's, a hint on the maps."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from cls2det.distill.maps import pairs
from cls2det.models.taps import StudentOutputs
from cls2det.teachers.detector import DetectorTeacher, TeacherOutputs, check_same_grid
from cls2det_ops import masked_feature_loss
from cls2det_ops.losses import kd_bounded_loss as chen_bounded_loss
from cls2det_ops.losses import kd_weighted_loss as chen_class_loss


@dataclasses.dataclass(frozen=True)
class ChenSettings:
    """Chen et al., NeurIPS 2017; fits Faster R-CNN with the teacher's anchors.

    The paper mixes its own loss in as mu hard + (1 - mu) soft; the detector's loss keeps its weight of 1 here, and the soft
    one has (1 - mu) / mu of it. The paper does not give mu; 0.25 is for the 0.8 of a later port.

    Args:
        weight: of all its terms
        warmup_steps: steps over which the weight rises from 0
        soft_weight: of the soft labels: of the box head at the sampled proposals, of the RPN at the sampled anchors
        background_weight: of the background in the soft labels of the box head
        temperature: of the soft labels
        bounded_weight: of the box head's regression where the teacher does better (the RPN's is left to its own loss)
        margin: by how much better, in squared units of the box code; not given in the paper
        hint_weight: of the squared difference of features, its mean
    """

    weight: float = 1.0
    warmup_steps: int = 0
    soft_weight: float = 0.25
    background_weight: float = 1.5
    temperature: float = 1.0
    bounded_weight: float = 0.5
    margin: float = 0.0
    hint_weight: float = 0.5


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
        settings = self.settings
        logits, regression = teacher_outputs.regions(student_outputs.regions.proposals)
        logits, regression = logits[:, self.columns], regression.unflatten(1, (-1, 4))[:, self.columns]
        return {
            "chen_soft": settings.soft_weight
            * (self._soft_regions(student_outputs, logits) + _soft_anchors(student_outputs, teacher_outputs)),
            "chen_bounded": settings.bounded_weight * self._bounded(student_outputs, regression),
            "chen_hint": settings.hint_weight * self._hint(student_outputs, teacher_outputs),
        }

    def _soft_regions(self, student_outputs: StudentOutputs, logits: Tensor) -> Tensor:
        return chen_class_loss(
            student_outputs.regions.logits,
            logits,
            background_weight=self.settings.background_weight,
            temperature=self.settings.temperature,
        )

    def _bounded(self, student_outputs: StudentOutputs, regression: Tensor) -> Tensor:
        regions = student_outputs.regions
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
        return sum(terms) / len(terms)


def _soft_anchors(student_outputs: StudentOutputs, teacher_outputs: TeacherOutputs) -> Tensor:
    """Of the RPN, over the anchors that its own loss has sampled."""
    in_loss = student_outputs.grid.labels >= 0
    objectness = teacher_outputs.grid[0][..., 0].float().sigmoid()
    loss = F.binary_cross_entropy_with_logits(
        student_outputs.grid.logits[..., 0].float(), objectness, in_loss.float(), reduction="sum"
    )
    return loss / in_loss.sum().clamp(min=1)
