"""Distillers: what a student learns from, beside its own loss. ``distillers: [classifier, fkd]`` adds up their terms.

``classifier`` is the project's own, with an image classifier as teacher. The others are detector-to-detector methods: each
is a module that holds the adapters it trains, and is called with what the student made of a batch (``taps.Seen``) and what
the detector teacher makes of it (``detector.Taught``). Formulas are in ``cls2det_ops.losses``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cls2det.distill.bckd import BCKD, BCKDSettings
from cls2det.distill.classifier import ClassifierDistiller
from cls2det.distill.fgfi import FGFI, FGFISettings
from cls2det.distill.fkd import FKD, FKDSettings
from cls2det.distill.gid import GID, GIDSettings
from cls2det.distill.kd import KD, KDSettings
from cls2det.distill.maps import CWD, FGD, PKD, CWDSettings, FGDSettings, PKDSettings
from cls2det.distill.tbd import TBD, TBDSettings
from cls2det.models.taps import Seen
from cls2det.teachers.detector import DetectorTeacher, Taught

# Name in recipes: module and settings.
METHODS: dict[str, tuple[type[nn.Module], type]] = {
    "kd": (KD, KDSettings),
    "fgfi": (FGFI, FGFISettings),
    "gid": (GID, GIDSettings),
    "fkd": (FKD, FKDSettings),
    "fgd": (FGD, FGDSettings),
    "pkd": (PKD, PKDSettings),
    "cwd": (CWD, CWDSettings),
    "bckd": (BCKD, BCKDSettings),
    "tbd": (TBD, TBDSettings),
}
NAMES = ("classifier", *METHODS)


class Distillers(nn.Module):
    """The sum of several: ``distillers(seen, step)`` gives every weighted term by name.

    Its parameters are the methods' adapters: they train with the student, under DDP and autocast as it does, are in training
    checkpoints, and in no file of weights. The teachers are not among them.

    Args:
        student: the detector that learns
        classifier: the classifier's distiller, or None
        teacher: of the methods; None if there are none
        settings: of each method, by name
    """

    def __init__(
        self,
        student: nn.Module,
        classifier: ClassifierDistiller | None = None,
        teacher: DetectorTeacher | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.classifier, self.teacher, self.settings = classifier, teacher, dict(settings or {})
        self.transform = student.transform  # has no parameters
        if self.settings and teacher is None:
            raise ValueError(f"{', '.join(self.settings)} need a detector as teacher: give --detector-teacher")
        methods = {name: METHODS[name][0](each, student, teacher) for name, each in self.settings.items()}
        self.methods = nn.ModuleDict(methods)

    def to_device(self, device: torch.device) -> None:
        """Move the teachers, which ``to`` does not know of."""
        for each in (self.classifier, self.teacher):
            if each is not None:
                each.to(device)

    def forward(self, seen: Seen, step: int) -> dict[str, Tensor]:
        """``step`` counts optimizer steps from 0: a method's weight rises over its first ``warmup_steps``."""
        terms = {}
        if self.classifier is not None:
            rise = warmup(self.classifier.settings.warmup_steps, step)
            terms |= {name: rise * term for name, term in self.classifier(seen.positives).items()}
        if self.methods:
            taught = Taught(self.teacher, seen, self.transform)
            for name, method in self.methods.items():
                weight = self.settings[name].weight * warmup(self.settings[name].warmup_steps, step)
                terms |= {part: weight * term for part, term in method(seen, taught).items()}
        return terms


def warmup(steps: int, step: int) -> float:
    return min(1.0, step / steps) if steps else 1.0
