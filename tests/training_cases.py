"""What the tests of the training layer share: small runs, a batch, and a detector with its distiller."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cls2det import commands
from cls2det.data.augment import get_augmentation
from cls2det.data.dataset import DetectionData, collate
from cls2det.distill import Distillers
from cls2det.distill.classifier import ClassifierDistiller, DistillSettings
from cls2det.models.taps import Positives
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.training.detector import DetectorTraining
from cls2det.training.settings import Optim, Run

DIGITS = [str(digit) for digit in range(10)]
MAPS = ("fgfi", "fkd", "fgd", "pkd", "cwd")  # methods that compare the backbone's maps
FITS = {  # the detector-to-detector methods that fit each small student
    "ssd_compact": MAPS,
    "fasterrcnn_compact": ("kd", "gid", *MAPS),
    "retinanet_compact": ("gid", "bckd", "tbd", *MAPS),
    "fcos_compact": ("gid", "bckd", "tbd", *MAPS),
    "detr_compact": MAPS[1:],
}
HERE = Run(device="cpu", cache=True)


def silent(*_) -> None:
    """As ``progress``: no bar on the screen."""


def train_teacher(scenes: Path, out: Path, **changes) -> Path:
    options = {
        "width": 16,
        "crop_size": 32,
        "augmentation": "jitter",
        "optim": Optim(steps=80, batch_size=4),
        "run": Run(device="cpu", checkpoint_every=40),
    }
    commands.teacher(scenes, out, progress=silent, **options | changes)
    return out / "weights.pt"


def distill(scenes: Path, out: Path, teacher: Path | None, **changes) -> dict:
    """Some steps of distillation on 8 images; an arm of a study with few words."""
    options = {
        "images": 8,
        "augmentation": "jitter",
        "backbone_weights": "none",
        "optim": Optim(steps=4, batch_size=2),
        "run": Run(device="cpu", cache=True, checkpoint_every=2, log_every=1),
        "allow_poor_teacher": True,
        "progress": silent,
    }
    return commands.distill(scenes, out, teacher=teacher, **options | changes)


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
    settings: DistillSettings = DistillSettings(),  # noqa: B008 (frozen)
    student: str = "ssd_compact",
    image_size: int = 0,
) -> DetectorTraining:
    classifier = CropClassifier.load(teacher) if isinstance(teacher, Path) else teacher
    torch.manual_seed(0)

    def distil(classes: list[str], detector: torch.nn.Module) -> Distillers:
        return Distillers(detector, ClassifierDistiller(classifier, settings, classes, detector.transform))

    return DetectorTraining(DIGITS, student, image_size, distil=distil).train()


def positives_of(model: DetectorTraining, scenes: Path, size: int = 4) -> Positives:
    images, targets = batch(scenes, size)
    with model.tap:
        model.detector([image.float() / 255 for image in images], targets)
    return model.tap.positives


def weights_in(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["weights"]
