"""``cls2det distill``: a detector that also learns from an image classifier, a bigger detector, or both."""

from __future__ import annotations

import dataclasses
import math
import warnings

import torch
from torch import nn

from cls2det.commands.banks import check_fit, check_head, open_banks, reads_logits
from cls2det.commands.identity import as_begun
from cls2det.commands.options import DistillOptions
from cls2det.commands.sizes import compare_sizes
from cls2det.commands.teachers import load_teacher
from cls2det.commands.train import prepare, train, train_student
from cls2det.data.dataset import DetectionData
from cls2det.data.loader import train_loader
from cls2det.distill import Distillation
from cls2det.distill.balance import GradientBalance
from cls2det.distill.classifier import ClassifierDistiller
from cls2det.files import is_first_process
from cls2det.models.students import head_of
from cls2det.models.zero_shot import PREFIX
from cls2det.settings import DISTILLERS
from cls2det.teachers.accuracy import check_not_at_chance
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.teachers.detector import DetectorTeacher
from cls2det.teachers.encoder import load_encoder
from cls2det.training.optimizer import torch_device
from cls2det.training.progress import Progress


def distill(options: DistillOptions, progress: Progress | None = None) -> dict:
    """Train the detector, as ``train`` does, with the distillation terms that the options name."""
    options = as_begun(options)
    if unknown := set(options.distillers) - set(DISTILLERS):
        raise ValueError(f"no distiller {', '.join(sorted(unknown))}; there are {', '.join(DISTILLERS)}")
    _warn_of_unread_teachers(options)
    if not options.distils:
        return train(options.without_distillation(), progress)
    preparation, classifier = prepare(options), None
    if options.teacher and "classifier" in options.distillers:
        data = preparation.data
        classifier = load_teacher(options, data)
        if not options.allow_poor_teacher and is_first_process():
            _check_teacher(classifier, options, data)
    banks = open_banks(options, preparation.data)

    def build(classes: list[str], student: nn.Module) -> Distillation:
        classifier_distiller = detector_teacher = encoder = None
        if "classifier" in options.distillers:
            classifier_distiller = ClassifierDistiller(
                classifier,
                options.classifier,
                classes,
                student.get_submodule("transform"),
                bank=banks.logits,
                bank_visible=options.bank_visible,
            )
        if options.detector_teacher and set(options.methods) - {"regions"}:
            detector_teacher = DetectorTeacher.load(options.detector_teacher, classes)
        if options.encoder and "regions" in options.methods:
            dtype = {"32": torch.float32, "bf16": torch.bfloat16}[options.regions.encoder_precision]
            encoder = load_encoder(options.encoder, options.encoder_weights, crop_size=options.regions.crop_size, dtype=dtype)
        check_fit(banks, student.get_submodule("transform"))
        if is_first_process():
            compare_sizes(student, preparation.data, classifier, detector_teacher.detector if detector_teacher else None)
        return Distillation(
            student,
            classifier=classifier_distiller,
            teacher=detector_teacher,
            settings={name: getattr(options, name) for name in options.methods},
            encoder=encoder,
            balance=GradientBalance(**dataclasses.asdict(options.balance)) if options.term_weights == "auto" else None,
            bank=banks.embeddings,
            bank_visible=options.bank_visible,
        )

    return train_student(options, preparation, build, progress)


def _warn_of_unread_teachers(options: DistillOptions) -> None:
    if options.bank_weights and not options.bank:
        warnings.warn("bank_weights are of several banks, and there is none (--bank)", stacklevel=3)
    for argument in ("prompts", "teacher_crop_size", "class_mapping"):
        if getattr(options, argument) and not options.teacher:
            warnings.warn(f"{argument} is of a teacher, and there is none (--teacher)", stacklevel=3)
    readers_of = {
        "teacher": {"classifier"},
        "encoder": {"regions"},
        "bank": {"classifier", "regions"},
        "detector_teacher": set(DISTILLERS) - {"classifier", "regions"},
    }
    for argument, readers in readers_of.items():
        teacher = getattr(options, argument)
        if teacher and not readers & set(options.distillers):
            names = ", ".join(options.distillers) or "none"
            warnings.warn(f"{argument} {teacher} is read by none of the distillers {names}", stacklevel=3)


def _check_teacher(teacher: CropClassifier, options: DistillOptions, data: DetectionData) -> None:
    """Raise ValueError for one that would teach this student nothing, or the wrong thing."""
    head = head_of(options.student)
    reads_scores = reads_logits(options)
    if reads_scores and str(options.teacher).startswith(PREFIX) and (head, teacher.loss) == ("sigmoid", "ce"):
        raise ValueError(
            f"{options.student} has sigmoids for its classes, and {options.teacher} was trained with a softmax alone: its "
            "logits have no zero. Take a SigLIP, or a student with a softmax (--allow-poor-teacher goes on all the same)"
        )
    if reads_scores:
        check_head(options.student, "the teacher", teacher.loss)
    batch_size = options.optim.batch_size
    batches = math.ceil(256 / batch_size)  # of training images; more than enough crops on most data
    loader = train_loader(data, batch_size=batch_size, steps_per_epoch=batches, seed=options.seed)
    check_not_at_chance(teacher, loader, torch_device(options.run.device))
