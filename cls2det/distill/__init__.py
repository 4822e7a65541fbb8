"""Distillers: what a student learns from, beside its own loss. ``distillers: [classifier, fkd]`` adds up their terms.

    distillation = Distillation(student, classifier=ClassifierDistiller(teacher, ClassifierSettings(), classes, student.transform))
    tap = PositiveTap(student)
    with tap:
        losses = student(images, targets)
    terms = distillation(tap.student_outputs, step)     # by name, weighted: add them to the losses

In a trainer of your own, one import has what its positives, its teacher and the classifier's terms need:

    from cls2det.distill import BoxDistiller, ClassifierSettings, Positives, PositiveTap, teacher_from

``classifier`` is the project's own, with an image classifier as teacher; ``regions`` has an image encoder. The others are
detector-to-detector methods: each is a module that holds the adapters it trains, and is called with what the student made of a
batch (``taps.StudentOutputs``) and what the detector teacher makes of it (``teachers.detector.TeacherOutputs``). Formulas are in
``cls2det_ops.losses``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.distill.balance import GradientBalance
from cls2det.distill.bckd import BCKD
from cls2det.distill.chen import Chen
from cls2det.distill.classifier import BoxDistiller, ClassifierDistiller
from cls2det.distill.fgfi import FGFI
from cls2det.distill.fkd import FKD
from cls2det.distill.gid import GID
from cls2det.distill.harmony import Harmony
from cls2det.distill.maps import CWD, FGD, PKD
from cls2det.distill.regions import Regions
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
    RegionsSettings,
)
from cls2det.teachers.bank import Bank
from cls2det.teachers.bank_average import BankAverage
from cls2det.teachers.detector import DetectorTeacher, TeacherOutputs, map_channels
from cls2det.teachers.encoder import Encoder
from cls2det.teachers.network import teacher_from

__all__ = [
    "DETECTOR_METHODS",
    "DISTILLERS",
    "NO_TERMS",
    "TERMS",
    "BCKDSettings",
    "Bank",
    "BankAverage",
    "BoxDistiller",
    "CWDSettings",
    "ChenSettings",
    "ClassifierDistiller",
    "ClassifierSettings",
    "DetectorTeacher",
    "Distillation",
    "Encoder",
    "FGDSettings",
    "FGFISettings",
    "FKDSettings",
    "GIDSettings",
    "GradientBalance",
    "HarmonySettings",
    "PKDSettings",
    "PositiveTap",
    "Positives",
    "Regions",
    "RegionsSettings",
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
        settings: of each method, and of regions, by name
        encoder: of regions; None without them
        balance: holds every term's gradient to a share of the detection loss's; None leaves the weights as they are
        bank: of regions, in place of the encoder or beside it
        bank_visible: see ``Regions``
    """

    def __init__(
        self,
        student: nn.Module,
        classifier: BoxDistiller | None = None,
        teacher: DetectorTeacher | None = None,
        settings: Mapping[str, Any] | None = None,
        encoder: Encoder | None = None,
        balance: GradientBalance | None = None,
        bank: Bank | None = None,
        bank_visible: float = 0.5,
    ):
        super().__init__()
        self.balance = balance
        self.factors: dict[str, Tensor] = {}  # factors of the last step, by term
        self.classifier, self.teacher, self.settings = classifier, teacher, dict(settings or {})
        transform: GeneralizedRCNNTransform = student.transform  # has no parameters
        self.transform = transform
        of_detector = [name for name in self.settings if name in DETECTOR_METHODS]
        if of_detector and teacher is None:
            raise ValueError(f"{', '.join(of_detector)} need a detector as teacher: give --detector-teacher")
        self.methods = nn.ModuleDict(
            {name: DETECTOR_METHODS[name][0](self.settings[name], student, teacher) for name in of_detector}
        )
        self.regions: Regions | None = None
        if "regions" in self.settings:
            if encoder is None and bank is None:
                raise ValueError("regions needs an image encoder as teacher: give --encoder, or a --bank with embeddings")
            self.regions = Regions(
                self.settings["regions"],
                encoder,
                map_channels(student),
                image_mean=transform.image_mean,
                image_std=transform.image_std,
                bank=bank,
                bank_visible=bank_visible,
            )

    def to_device(self, device: torch.device) -> None:
        """Move the teachers, which ``to`` does not know of."""
        for teacher in (self.classifier, self.teacher):
            if teacher is not None:
                teacher.to(device)
        if self.regions is not None:
            self.regions.to_device(device)

    def forward(
        self,
        student_outputs: StudentOutputs,
        step: int,
        detection: Tensor | None = None,
        places: Sequence[Sequence[Tensor]] = (),
    ) -> dict[str, Tensor]:
        """
        Args:
            student_outputs: of this step's forward
            step: counts optimizer steps from 0: a method's weight rises over its first ``warmup_steps``
            detection: the detector's own loss; automatic weights are measured against it
            places: tensors at which gradients are measured: the head's outputs, then the maps
        """
        terms: dict[str, Tensor] = {}
        if self.classifier is not None:
            terms |= self.classifier(student_outputs.positives)
        scales = dict.fromkeys(terms, 1.0)
        rises = dict.fromkeys(terms, warmup(self.classifier.settings.warmup_steps, step) if self.classifier else 1.0)
        for name, parts in self._parts(student_outputs):
            settings = self.settings[name]
            terms |= parts
            scales |= dict.fromkeys(parts, settings.weight)
            rises |= dict.fromkeys(parts, warmup(settings.warmup_steps, step))
        self.factors = {}
        if self.balance is not None:
            if detection is None:
                raise ValueError("automatic weights are measured against the detector's loss: give detection and places")
            self.factors = self.balance(detection, {name: scales[name] * term for name, term in terms.items()}, *places)
        weighted = {name: scales[name] * rises[name] * term for name, term in terms.items()}
        return {name: self.factors[name] * term if self.factors else term for name, term in weighted.items()}

    def _parts(self, student_outputs: StudentOutputs) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The unweighted terms of each method beside the classifier's."""
        if self.teacher is not None:
            teacher_outputs = TeacherOutputs(self.teacher, student_outputs, self.transform)
            for name, method in self.methods.items():
                yield name, method(student_outputs, teacher_outputs)
        if self.regions is not None:
            yield "regions", self.regions(student_outputs.positives, list(student_outputs.features.values()))


def warmup(steps: int, step: int) -> float:
    """The share of a weight that is applied at ``step``: it rises from 0 to 1 over ``steps``."""
    return min(1.0, step / steps) if steps else 1.0
