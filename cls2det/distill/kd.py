"""KD: soft labels for every region, box regression bounded by the teacher's, a hint (Chen et al., NeurIPS 2017)."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from cls2det.models.taps import Seen
from cls2det.teachers.detector import DetectorTeacher, Taught, check_same_grid
from cls2det_ops import masked_feature_loss
from cls2det_ops.losses import kd_bounded_loss, kd_weighted_loss


@dataclasses.dataclass(frozen=True)
class KDSettings:
    """KD (Chen et al., NeurIPS 2017); fits Faster R-CNN with the teacher's anchors.

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


class KD(nn.Module):
    def __init__(self, settings: KDSettings, student: nn.Module, teacher: DetectorTeacher):
        super().__init__()
        if not isinstance(student, FasterRCNN):
            raise ValueError(f"kd teaches the two stages of a Faster R-CNN; the student is a {type(student).__name__}")
        channels = check_same_grid("kd", student, teacher.detector)
        self.settings, self.columns = settings, teacher.columns("kd")
        self.adapters = nn.ModuleList(nn.Conv2d(ours, theirs, 1) for ours, theirs in channels)

    def forward(self, seen: Seen, taught: Taught) -> dict[str, Tensor]:
        settings = self.settings
        logits, regression = taught.regions(seen.regions.proposals)
        logits, regression = logits[:, self.columns], regression.unflatten(1, (-1, 4))[:, self.columns]
        return {
            "kd_soft": settings.soft_weight * (self._soft_regions(seen, logits) + _soft_anchors(seen, taught)),
            "kd_bounded": settings.bounded_weight * self._bounded(seen, regression),
            "kd_hint": settings.hint_weight * self._hint(seen, taught),
        }

    def _soft_regions(self, seen: Seen, logits: Tensor) -> Tensor:
        return kd_weighted_loss(
            seen.regions.logits,
            logits,
            background_weight=self.settings.background_weight,
            temperature=self.settings.temperature,
        )

    def _bounded(self, seen: Seen, regression: Tensor) -> Tensor:
        regions = seen.regions
        rows = torch.where(regions.labels > 0)[0]
        labels = regions.labels[rows]
        ours = regions.regression.unflatten(1, (-1, 4))[rows, labels]
        mean = kd_bounded_loss(ours, regression[rows, labels], regions.targets[rows], margin=self.settings.margin)
        return mean * (len(rows) / max(len(regions.labels), 1))  # over all samples, as the box loss that it is added to

    def _hint(self, seen: Seen, taught: Taught) -> Tensor:
        terms = [
            masked_feature_loss(adapter(ours), theirs, normalizer=theirs.numel())
            for adapter, ours, theirs in zip(self.adapters, seen.features.values(), taught.features.values(), strict=True)
        ]
        return sum(terms) / len(terms)


def _soft_anchors(seen: Seen, taught: Taught) -> Tensor:
    """Of the RPN, over the anchors that its own loss has sampled."""
    known = seen.grid.labels >= 0
    objectness = taught.grid[0][..., 0].float().sigmoid()
    loss = F.binary_cross_entropy_with_logits(seen.grid.logits[..., 0].float(), objectness, known.float(), reduction="sum")
    return loss / known.sum().clamp(min=1)
