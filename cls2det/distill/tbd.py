"""TBD: predictions by how far class and box agree, features by what each task looks at (after Tang et al., 2022)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet

from cls2det.distill.maps import adapters, pairs
from cls2det.models.taps import Seen
from cls2det.teachers.detector import DetectorTeacher, Taught, check_same_grid
from cls2det_ops.losses import bckd_box_loss, bckd_loss, harmony_score, tbd_feature_loss


@dataclasses.dataclass(frozen=True)
class TBDSettings:
    """After TBD (Tang et al., arXiv 2208.03006), whose equations were not at hand: these, and the weights, are ours.

    Fits RetinaNet and FCOS with the teacher's anchors.

    Args:
        weight: of all its terms
        warmup_steps: steps over which the weight rises from 0
        cls_weight: of the class scores at the positives, by the teacher's harmony score
        box_weight: of 1 - GIoU with the teacher's boxes there, likewise
        feature_weight: of the features, over all levels
        balance: share of the classification's places in it; the rest is the regression's
    """

    weight: float = 1.0
    warmup_steps: int = 0
    cls_weight: float = 1.0
    box_weight: float = 2.0
    feature_weight: float = 1.0
    balance: float = 0.5


class TBD(nn.Module):
    def __init__(self, settings: TBDSettings, student: nn.Module, teacher: DetectorTeacher):
        super().__init__()
        if not isinstance(student, RetinaNet | FCOS):
            raise ValueError(f"tbd reads a sigmoid for each class; the student is a {type(student).__name__}")
        self.adapters = adapters(check_same_grid("tbd", student, teacher.detector))
        self.settings, self.columns = settings, teacher.columns("tbd")[1:]

    def forward(self, seen: Seen, taught: Taught) -> dict[str, Tensor]:
        settings, grid, positives = self.settings, seen.grid, seen.positives
        logits, regression = taught.grid
        logits = logits[..., self.columns].float()
        image, anchor = torch.where(grid.labels > 0)  # the order of ``positives``
        ours, theirs = (
            grid.decode(codes[image, anchor].float(), grid.anchors[anchor]) for codes in (grid.regression, regression)
        )
        scores = logits[image, anchor, positives.target_labels[positives.matched_idxs] - 1].sigmoid()
        harmony, iou = harmony_score(scores, theirs, positives.target_boxes[positives.matched_idxs])
        count = max(len(image), 1)
        fit = torch.zeros_like(logits[..., 0]).index_put((image, anchor), iou)
        feature = tbd_feature_loss(
            *zip(*pairs(self.adapters, seen, taught), strict=True),
            *(by_place(values, seen) for values in (logits.amax(-1).sigmoid(), fit)),
            settings.balance,
        )
        cls = bckd_loss(grid.logits[..., 1:][image, anchor], logits[image, anchor], 0.0, harmony, count)
        return {
            "tbd_cls": settings.cls_weight * cls,
            "tbd_box": settings.box_weight * bckd_box_loss(ours, theirs, harmony, count),
            "tbd_feature": settings.feature_weight * feature,
        }


def by_place(values: Tensor, seen: Seen) -> list[Tensor]:
    """(B, A) at anchors to (B, h, w) of each level: the largest at every place."""
    sizes = [features.shape[-2:] for features in seen.features.values()]
    levels = values.split(list(seen.grid.level_sizes), 1)
    return [level.unflatten(1, (*size, -1)).amax(-1) for level, size in zip(levels, sizes, strict=True)]
