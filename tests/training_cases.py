"""What the tests of the training layer share: small runs of the commands, a batch, and a detector with its distiller."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

from cls2det.commands.distill import distill as run_distill
from cls2det.commands.evaluate import evaluate as run_evaluate
from cls2det.commands.options import DistillOptions, EvaluateOptions, TeacherOptions
from cls2det.commands.teacher import teacher as run_teacher
from cls2det.data.augment import get_augmentation
from cls2det.data.dataset import DetectionData
from cls2det.data.loader import collate
from cls2det.distill import NO_TERMS, ClassifierDistiller, ClassifierSettings, Distillation
from cls2det.models.positives import Positives
from cls2det.models.students import build_student, save_student
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.training.detector import DetectorTraining
from cls2det.training.settings import Optim, Run, TeacherRun

ALL_TERMS = ClassifierSettings(kd_loc_weight=2.0, loc_weight=2.0)

DIGITS = [str(digit) for digit in range(10)]
MAPS = ("fgfi", "fkd", "fgd", "pkd", "cwd")  # methods that compare the backbone's maps
FITS = {  # the detector-to-detector methods that fit each small student
    "ssd_compact": MAPS,
    "fasterrcnn_compact": ("chen", "gid", *MAPS),
    "retinanet_compact": ("gid", "bckd", "harmony", *MAPS),
    "fcos_compact": ("gid", "bckd", "harmony", *MAPS),
    "detr_compact": MAPS[1:],
    "rtdetr_v2_compact": MAPS[1:],
}


def silent(*_) -> None:
    """As ``progress``: no bar on the screen."""


def train_teacher(scenes: Path, out: Path, *, progress=silent, **changes) -> Path:
    """A small teacher by ``cls2det teacher``; returns its weights.pt."""
    options = {
        "width": 16,
        "crop_size": 32,
        "augmentation": "jitter",
        "optim": Optim(steps=80, batch_size=4),
        "run": TeacherRun(device="cpu", checkpoint_every=40),
    }
    run_teacher(TeacherOptions(scenes, out, **options | changes), progress)
    return out / "weights.pt"


def distill(scenes: Path, out: Path, teacher: Path | None = None, *, progress=silent, **changes) -> dict:
    """Some steps of ``cls2det distill`` on 8 images; returns its report."""
    options = {
        "images": 8,
        "augmentation": "jitter",
        "backbone_weights": "none",
        "optim": Optim(steps=4, batch_size=2),
        "run": Run(device="cpu", cache=True, checkpoint_every=2, log_every=1),
        "allow_poor_teacher": True,
        "classifier": ALL_TERMS,
    }
    return run_distill(DistillOptions(scenes, out, teacher=teacher, **options | changes), progress)


def train(scenes: Path, out: Path, **changes) -> dict:
    """Some steps of ``distill`` with nothing to distil."""
    return distill(scenes, out, None, classifier=NO_TERMS, **changes)


def evaluate(weights: Path, scenes: Path, split: str, out: Path | None = None) -> dict:
    """``cls2det evaluate`` on the CPU."""
    return run_evaluate(EvaluateOptions(weights, scenes, split, out, device="cpu"), silent)


def logged(folder: Path, column: str = "loss") -> list[dict[str, str]]:
    """The lines of a run's log that have a value in ``column``: those of training steps, or of validations."""
    with open(folder / "log" / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row[column]]


def coco_layout(scenes: Path, root: Path) -> Path:
    """The scenes under COCO's own names, as the recipes read them."""
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"{split}2017").symlink_to(scenes / split)
        file = scenes / "annotations" / f"instances_{split}.json"
        (root / "annotations" / f"instances_{split}2017.json").symlink_to(file)
    return root


def batch(scenes: Path, size: int = 4) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    data = DetectionData(scenes, "train", augment=get_augmentation("jitter"), labelled_only=True)
    return collate([data[index, index] for index in range(size)])


def training(
    teacher: Path | CropClassifier | None,
    settings: ClassifierSettings = ALL_TERMS,
    student: str = "ssd_compact",
    image_size: int | None = None,
) -> DetectorTraining:
    classifier = CropClassifier.load(teacher) if isinstance(teacher, Path) else teacher
    torch.manual_seed(0)
    detector = build_student(student, len(DIGITS), image_size)
    distiller = ClassifierDistiller(classifier, settings, DIGITS, detector.transform)
    return DetectorTraining(detector, DIGITS, distillation=Distillation(detector, distiller)).train()


def plain_training(student: str = "ssd_compact") -> DetectorTraining:
    """Of a student with nothing to distil."""
    torch.manual_seed(0)
    return DetectorTraining(build_student(student, len(DIGITS)), DIGITS).train()


def untrained_student(path: Path, student: str = "ssd_compact", classes: list[str] = DIGITS) -> Path:
    """weights.pt of a student that has learnt nothing."""
    torch.manual_seed(1)
    save_student(path, build_student(student, len(classes)), name=student, classes=classes)
    return path


def positives_of(model: DetectorTraining, scenes: Path, size: int = 4) -> Positives:
    images, targets = batch(scenes, size)
    with model.tap:
        model.detector([image.float() / 255 for image in images], targets)
    return model.tap.positives


def weights_in(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["weights"]
