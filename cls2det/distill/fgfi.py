"""FGFI: the teacher's features, near objects alone (Wang et al., CVPR 2019)."""

from __future__ import annotations

from torch import Tensor, nn

from cls2det.models.taps import StudentOutputs, anchor_generator
from cls2det.settings import FGFISettings
from cls2det.teachers.detector import DetectorTeacher, TeacherOutputs, check_same_maps
from cls2det_ops import imitation_mask
from cls2det_ops.losses import fgfi_loss


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
        settings, targets, grid = self.settings, student_outputs.positives, student_outputs.grid
        assert grid is not None  # of a student with anchors
        near = imitation_mask(
            grid.anchors,
            boxes=targets.target_boxes,
            image_index=targets.target_image_index,
            images=len(student_outputs.images),
            level_sizes=grid.level_sizes,
            factor=settings.factor,
            assignment=settings.assignment,
        ).split(grid.level_sizes, 1)
        maps = list(student_outputs.features.values())
        masks = [
            mask.unflatten(1, (*feature.shape[-2:], places)).any(-1)
            for mask, feature, places in zip(near, maps, student_outputs.places, strict=True)
        ]
        adapted = [adapter(feature) for adapter, feature in zip(self.adapters, maps, strict=True)]
        return {"fgfi": fgfi_loss(adapted, list(teacher_outputs.features.values()), masks, per_image=settings.per_image)}
