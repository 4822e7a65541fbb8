"""BCKD: class scores of dense sigmoid heads by binary cross-entropy, boxes by their overlap (Yang et al., ICCV 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet

from cls2det.models.taps import StudentOutputs
from cls2det.settings import BCKDSettings
from cls2det.teachers.detector import DetectorTeacher, TeacherOutputs, check_same_grid
from cls2det_ops.losses import bckd_box_loss, bckd_loss


class BCKD(nn.Module):
    """The two terms. There is nothing to train: logits and boxes have no channels to adapt."""

    def __init__(self, settings: BCKDSettings, student: nn.Module, teacher: DetectorTeacher):
        super().__init__()
        if not isinstance(student, RetinaNet | FCOS):
            raise ValueError(f"bckd reads a sigmoid for each class; the student is a {type(student).__name__}")
        check_same_grid("bckd", student, teacher.detector)
        self.settings, self.columns = settings, teacher.columns("bckd")[1:]

    def forward(self, student_outputs: StudentOutputs, teacher_outputs: TeacherOutputs) -> dict[str, Tensor]:
        settings, grid = self.settings, student_outputs.grid
        assert grid is not None  # check_same_grid
        logits, regression = teacher_outputs.grid
        logits = logits[..., self.columns]
        in_loss, image, anchor = grid.labels >= 0, *torch.where(grid.labels > 0)
        count = max(len(image), 1)
        scores = bckd_loss(
            grid.logits[..., 1:].flatten(0, 1),
            logits.flatten(0, 1),
            settings.beta,
            weight=in_loss.flatten().float(),
            normalizer=count,
        )
        anchors = grid.anchors[anchor]
        best_scores = logits[image, anchor].float().sigmoid().amax(-1)
        student_boxes, teacher_boxes = (
            grid.decode(codes[image, anchor].float(), anchors) for codes in (grid.regression, regression)
        )
        boxes = bckd_box_loss(student_boxes, teacher_boxes, best_scores, normalizer=count)
        return {"bckd_cls": settings.cls_weight * scores, "bckd_box": settings.box_weight * boxes}
