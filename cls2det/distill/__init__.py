"""Distillers: what a student learns from, beside its own loss. ``distillers: [classifier, fkd]`` adds up their terms.

    distillation = Distillation(student, classifier=ClassifierDistiller(teacher, ClassifierSettings(), classes, student.transform))
    tap = PositiveTap(student)
    with tap:
        losses = student(images, targets)
    terms = distillation(tap.student_outputs, step)     # by name, weighted: add them to the losses

In a trainer of your own, one import has what its positives, its teacher and the classifier's terms need:

    from cls2det.distill import BoxDistiller, ClassifierSettings, Positives, PositiveTap, teacher_from

``classifier`` is the project's own, with an image classifier as teacher. The others are detector-to-detector methods: each
is a module that holds the adapters it trains, and is called with what the student made of a batch (``taps.StudentOutputs``)
and what the detector teacher makes of it (``teachers.detector.TeacherOutputs``). Formulas are in ``cls2det_ops.losses``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.distill.bckd import BCKD
from cls2det.distill.chen import Chen
from cls2det.distill.classifier import BoxDistiller, ClassifierDistiller
from cls2det.distill.fgfi import FGFI
from cls2det.distill.fkd import FKD
from cls2det.distill.gid import GID
from cls2det.distill.harmony import Harmony
from cls2det.distill.maps import CWD, FGD, PKD
from cls2det.models.positives import Positives
from cls2det.models.taps import PositiveTap, StudentOutputs
from cls2det.settings import (
    DISTILLERS,
    NO_TERMS,
    TERMS,
    BCKDSettings,
    ChenSettings,
    ClassifierSettings,
    CWDSettings,
    FGDSettings,
    FGFISettings,
    FKDSettings,
    GIDSettings,
    HarmonySettings,
    PKDSettings,
)
from cls2det.teachers.detector import DetectorTeacher, TeacherOutputs
from cls2det.teachers.network import teacher_from

__all__ = [
    "DETECTOR_METHODS",
    "DISTILLERS",
    "NO_TERMS",
    "TERMS",
    "BCKDSettings",
    "BoxDistiller",
    "CWDSettings",
    "ChenSettings",
    "ClassifierDistiller",
    "ClassifierSettings",
    "DetectorTeacher",
    "Distillation",
    "FGDSettings",
    "FGFISettings",
    "FKDSettings",
    "GIDSettings",
    "HarmonySettings",
    "PKDSettings",
    "PositiveTap",
    "Positives",
    "teacher_from",
]

# Name in recipes: module and settings.
DETECTOR_METHODS: dict[str, tuple[type[nn.Module], type]] = {
    "chen": (Chen, ChenSettings),
    "fgfi": (FGFI, FGFISettings),
    "gid": (GID, GIDSettings),
    "fkd": (FKD, FKDSettings),
    "fgd": (FGD, FGDSettings),
    "pkd": (PKD, PKDSettings),
    "cwd": (CWD, CWDSettings),
    "bckd": (BCKD, BCKDSettings),
    "harmony": (Harmony, HarmonySettings),
}


class Distillation(nn.Module):
    """The sum of several distillers: ``distillation(student_outputs, step)`` gives every weighted term by name.

    Its parameters are the methods' adapters: they train with the student, under DDP and autocast as it does, are in training
    checkpoints, and in no weights.pt. The teachers are not among them.

    Args:
        student: the detector that learns
        classifier: the classifier's distiller, or None
        teacher: of the detector-to-detector methods; None if there are none
        settings: of each method, by name
    """

    def __init__(
        self,
        student: nn.Module,
        classifier: BoxDistiller | None = None,
        teacher: DetectorTeacher | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.classifier, self.teacher, self.settings = classifier, teacher, dict(settings or {})
        self.transform: GeneralizedRCNNTransform = student.transform  # has no parameters
        if self.settings and teacher is None:
            raise ValueError(f"{', '.join(self.settings)} need a detector as teacher: give --detector-teacher")
        self.methods = nn.ModuleDict(
            {name: DETECTOR_METHODS[name][0](options, student, teacher) for name, options in self.settings.items()}
        )

    def to_device(self, device: torch.device) -> None:
        """Move the teachers, which ``to`` does not know of."""
        for teacher in (self.classifier, self.teacher):
            if teacher is not None:
                teacher.to(device)

    def forward(self, student_outputs: StudentOutputs, step: int) -> dict[str, Tensor]:
        """``step`` counts optimizer steps from 0: a method's weight rises over its first ``warmup_steps``."""
        terms: dict[str, Tensor] = {}
        if self.classifier is not None:
            rise = warmup(self.classifier.settings.warmup_steps, step)
            terms |= {name: rise * term for name, term in self.classifier(student_outputs.positives).items()}
        if self.teacher is not None:
            teacher_outputs = TeacherOutputs(self.teacher, student_outputs, self.transform)
            for name, method in self.methods.items():
                weight = self.settings[name].weight * warmup(self.settings[name].warmup_steps, step)
                terms |= {part: weight * term for part, term in method(student_outputs, teacher_outputs).items()}
        return terms


def warmup(steps: int, step: int) -> float:
    """The share of a weight that is applied at ``step``: it rises from 0 to 1 over ``steps``."""
    return min(1.0, step / steps) if steps else 1.0
