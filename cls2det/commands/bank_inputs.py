"""What ``cls2det bank`` reads, and what the header of its file says of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.commands.identity import digests_of
from cls2det.commands.options import BankOptions
from cls2det.commands.teachers import load_teacher
from cls2det.data.augment import MIRRORING
from cls2det.data.dataset import DetectionData
from cls2det.data.fingerprint import with_annotation_ids
from cls2det.distill.classifier import check_same_normalisation
from cls2det.models.backbones import has_background_column
from cls2det.models.students import build_student, head_of
from cls2det.models.students.resizing import settings_of
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.teachers.encoder import Encoder, load_encoder


class Opened(NamedTuple):
    """What the options name: the data, a teacher, an encoder, and how pictures are brought to the student's size."""

    data: DetectionData
    teacher: CropClassifier | None
    encoder: Encoder | None
    transform: GeneralizedRCNNTransform
    student: str
    image_size: int | None


def open_inputs(options: BankOptions) -> Opened:
    data = DetectionData(
        options.data_root,
        options.split,
        labelled_only=True,
        max_pixels=options.max_pixels,
        max_image_side=options.max_image_side,
        origins=True,
    )
    teacher = load_teacher(options, data) if options.teacher else None
    encoder = None
    if options.encoder:
        dtype = {"32": torch.float32, "bf16": torch.bfloat16}[options.precision]
        encoder = load_encoder(options.encoder, options.encoder_weights, crop_size=options.encoder_crop_size, dtype=dtype)
    student = options.student or (teacher.student if teacher else None)
    if student is None:
        raise ValueError("an encoder alone does not say whose pictures it is shown: give --student")
    image_size = options.image_size or (teacher.image_size if teacher and student == teacher.student else None)
    if teacher is not None and (student, image_size) == (teacher.student, teacher.image_size):
        transform = teacher.transform
    else:
        transform = build_student(student, len(data.classes), image_size).transform
    if teacher is not None and not teacher.is_foreign:
        check_same_normalisation(teacher, transform)
    return Opened(data, teacher, encoder, transform, student, image_size)


def header_of(options: BankOptions, opened: Opened) -> dict[str, Any]:
    """What the header says, see ``Bank.about``, but for what is measured at the end; plain values, as JSON has them."""
    digests = digests_of({name: getattr(options, name) for name in ("teacher", "encoder", "encoder_weights")})
    teacher, encoder = opened.teacher, opened.encoder
    of_teacher = teacher and {
        "source": str(options.teacher),
        "digest": digests.get("teacher"),
        "architecture": teacher.architecture,
        "crop_size": teacher.crop_size,
        "margin": teacher.margin,
        "mean": list(teacher.mean),
        "std": list(teacher.std),
        "own_normalisation": teacher.is_foreign,
        "prompts": options.prompts,
        "class_mapping": options.class_mapping,
        "mapped_for": head_of(opened.student) if options.class_mapping else None,
    }
    of_encoder = encoder and {
        "source": options.encoder,
        "digest": digests.get("encoder") or digests.get("encoder_weights"),
        "weights": options.encoder_weights,
        "crop_size": encoder.crop_size,
        "margins": list(encoder.margins),
        "mean": list(encoder.mean),
        "std": list(encoder.std),
    }
    return {
        "classes": opened.data.classes,
        "loss": teacher.loss if teacher else None,
        "background": teacher is not None and columns_of(teacher) > len(opened.data.classes),
        "teacher": of_teacher,
        "encoder": of_encoder,
        "data": with_annotation_ids(opened.data),
        "split": options.split,
        "pictures": {
            "student": opened.student,
            "image_size": opened.image_size,
            "transform": settings_of(opened.transform),
        },
        "views": options.views,
        "flip": options.augmentation in MIRRORING if options.flip is None else options.flip,
        "augmentation": options.augmentation,
        "max_image_side": options.max_image_side,
        "margins": options.margins,
        "seed": options.seed,
        "precision": options.precision,
        "batch_size": options.batch_size,
    }


def columns_of(teacher: CropClassifier) -> int:
    return len(teacher.classes) + has_background_column(teacher.background, teacher.loss)


def annotations_of(data: DetectionData) -> tuple[np.ndarray, np.ndarray]:
    """Ids and labels of all boxes, by ascending id."""
    ids = torch.cat([target["annotation_ids"] for target in data.targets]).numpy()
    labels = torch.cat([target["labels"] for target in data.targets]).numpy()
    order = np.argsort(ids)
    return ids[order], labels[order]
