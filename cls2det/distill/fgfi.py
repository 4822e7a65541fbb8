"""FGFI: the teacher's features, near objects alone (Wang et al., CVPR 2019)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import Tensor, nn

from cls2det.models.taps import StudentOutputs, anchor_generator
from cls2det.teachers.detector import DetectorTeacher, TeacherOutputs, check_same_maps
from cls2det_ops import imitation_mask
from cls2det_ops.losses import fgfi_loss


@dataclasses.dataclass(frozen=True)
class FGFISettings:
    """FGFI (Wang et al., CVPR 2019); fits every student with anchors whose maps have the teacher's sizes.

    Args:
        weight: of the term; 0.01 in the release, for another detector than any of these
        warmup_steps: steps over which the weight rises from 0; the release leaves the first 400 out
        factor: a place is imitated if an anchor there overlaps an object by more than this share of the object's best overlap
        assignment: whether an object's best overlap is looked for on each level apart, over all levels, or over all with only
            the level of the best one imitated; the paper, with one map, does not say
        relu: end the adapters in a ReLU, as in the release; the maps of a pyramid have signs
        per_image: divide by the places of each image and average, in place of those of the batch
    """

    weight: float = 0.01
    warmup_steps: int = 400
    factor: float = 0.5
    assignment: Literal["level", "all", "best"] = "all"
    relu: bool = False
    per_image: bool = False


class FGFI(nn.Module):
    """The term, with an adapter of 3 x 3 for each map."""

    def __init__(self, settings: FGFISettings, student: nn.Module, teacher: DetectorTeacher):
        super().__init__()
        if anchor_generator(student) is None:
            raise ValueError(f"fgfi imitates near anchors, and a {type(student).__name__} has none")
        self.settings = settings
        self.adapters = nn.ModuleList(
            nn.Sequential(nn.Conv2d(*pair, 3, padding=1), nn.ReLU() if settings.relu else nn.Identity())
            for pair in check_same_maps("fgfi", student, teacher.detector)
        )

    def forward(self, student_outputs: StudentOutputs, teacher_outputs: TeacherOutputs) -> dict[str, Tensor]:
        settings, targets = self.settings, student_outputs.positives
        near = imitation_mask(
            student_outputs.grid.anchors,
            boxes=targets.target_boxes,
            image_index=targets.target_image_index,
            images=len(student_outputs.images),
            level_sizes=student_outputs.grid.level_sizes,
            factor=settings.factor,
            assignment=settings.assignment,
        ).split(student_outputs.grid.level_sizes, 1)
        maps = list(student_outputs.features.values())
        masks = [
            mask.unflatten(1, (*feature.shape[-2:], places)).any(-1)
            for mask, feature, places in zip(near, maps, student_outputs.places, strict=True)
        ]
        adapted = [adapter(feature) for adapter, feature in zip(self.adapters, maps, strict=True)]
        return {"fgfi": fgfi_loss(adapted, list(teacher_outputs.features.values()), masks, per_image=settings.per_image)}
