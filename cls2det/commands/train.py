"""``cls2det train``: a detector without distillation, and what ``distill`` shares with it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from cls2det.commands.anchors import training_anchors, warn_of_unmatched
from cls2det.commands.data import (
    fingerprints,
    on_gpu,
    training_data,
    training_loader,
    validation_data,
    warn_of_missing,
)
from cls2det.commands.evaluate import evaluate
from cls2det.commands.identity import claim
from cls2det.commands.options import DistillOptions, EvaluateOptions, TrainOptions
from cls2det.data.dataset import DetectionData
from cls2det.data.fingerprint import Fingerprint
from cls2det.data.loader import test_loader
from cls2det.distill import Distillation
from cls2det.evaluation.anchors import DIAGNOSTICS
from cls2det.evaluation.coco import warn_of_crowded_images
from cls2det.files import is_first_process, start_processes, write_json
from cls2det.models.backbones import load_classifier
from cls2det.models.students import build_student, load_backbone, parameter_count, reduce_larger, save_student
from cls2det.training import fit
from cls2det.training.detector import DetectorTraining
from cls2det.training.progress import Progress
from cls2det.training.settings import Optim, Run

BuildDistillation = Callable[[list[str], nn.Module], Distillation]  # (classes, student)


def train(options: TrainOptions, progress: Progress | None = None) -> dict:
    """Train the detector; returns the content of report.json and, with a val_split, the mAP.

    Of ``DistillOptions`` only those of ``TrainOptions`` are read.
    """
    if isinstance(options, DistillOptions):
        if options.teacher:
            warnings.warn(f"train distils nothing: teacher {options.teacher} is left out; see distill", stacklevel=2)
        options = options.without_distillation()
    return train_student(options, prepare(options), None, progress)


class Preparation(NamedTuple):
    """What a training needs beside the student.

    ``prints`` are the data's fingerprints by split; ``optim`` and ``run`` are those of ``Optim.for_run``.
    """

    data: DetectionData
    validation: DetectionData | None
    val_loader: torch.utils.data.DataLoader | None
    prints: dict[str, Fingerprint]
    optim: Optim
    run: Run


def prepare(options: TrainOptions) -> Preparation:
    """Open the data and complete the settings: what can be wrong with these ends the command before anything is built."""
    data = training_data(options)
    validation = validation_data(options, data)
    is_subset = options.images is not None
    warn_of_missing(data, validation, "the detector will not find it", unless_absent=not is_subset)
    optim, run = options.optim.for_run(len(data), options.run)
    start_processes(run.processes)
    val_loader = None
    if validation and run.validate_every:
        if len(validation) < run.processes:  # a process without an image would keep the others waiting
            text = f"{options.val_split} has {len(validation)} images, too few for a validation by {run.processes} processes"
            raise ValueError(text)
        val_loader = test_loader(
            validation, batch_size=optim.batch_size, loader_workers=run.workers, pin_memory=on_gpu(run), shared=True
        )
    return Preparation(data, validation, val_loader, fingerprints(options, data, validation), optim, run)


def train_student(
    options: TrainOptions, preparation: Preparation, build_distillation: BuildDistillation | None, progress: Progress | None
) -> dict[str, Any]:
    """Train, save and evaluate a student.

    Args:
        options: of the student and its training
        preparation: of ``options``, by ``prepare``
        build_distillation: makes the distillation terms for the student, before it is trained; None for none
        progress: called after every few steps, in place of a bar on the screen
    """
    data, validation, val_loader, prints, optim, run = preparation
    anchors = training_anchors(options, data)
    torch.manual_seed(options.seed)
    backbone_weights = "none" if options.start else options.backbone_weights
    detector = build_student(options.student, len(data.classes), options.image_size, backbone_weights, anchors)
    reduce_larger(detector, options.max_image_side)
    if is_first_process():
        warn_of_unmatched(options.student, detector, data)
    training = DetectorTraining(
        detector,
        data.classes,
        student=options.student,
        image_size=options.image_size,
        optim=optim,
        cls_weight=options.cls_weight,
        box_weight=options.box_weight,
        distillation=build_distillation(data.classes, detector) if build_distillation else None,
        ratio_every=run.ratio_every,
        pictures=run.pictures,
        max_detections=run.max_detections,
    )
    if validation and is_first_process():
        warn_of_crowded_images(detector, validation, run.max_detections)
    if options.start:
        load_backbone(detector, load_classifier(options.start))
    claim(options, prints)
    if training.distillation is not None and training.distillation.balance is not None and is_first_process():
        logging.getLogger(__name__).info(
            "weights are automatic: each term's gradient is %g of the detector's own (--term-weights fixed: as set)",
            training.distillation.balance.share,
        )
    seconds = fit.fit(
        training,
        training_loader(data, optim, run, options.seed),
        options.out,
        optim=optim,
        run=run,
        seed=options.seed,
        val_loader=val_loader,
        val_every=run.validate_every or 1,
        progress=progress,
    )
    weights = options.out / "weights.pt"
    save_student(weights, detector, name=options.student, classes=data.classes, image_size=options.image_size)
    report = {
        "seconds": seconds,
        "started from": str(options.start or detector.started_from),
        "images": len(data),
        "steps": optim.steps,
        "parameters": parameter_count(detector),
    }
    if anchors is not None:
        report["anchors"] = detector.anchors
    write_json(options.out / "report.json", report)
    if options.val_split and is_first_process():
        evaluation = EvaluateOptions(
            weights,
            options.data_root,
            options.val_split,
            options.out / options.val_split,
            batch_size=optim.batch_size,
            loader_workers=run.workers,
            max_detections=run.max_detections,
            device=run.device,
            max_pixels=run.max_pixels,
        )
        table = evaluate(evaluation, progress)
        names = ("mAP", "AP50", "AP75", *DIAGNOSTICS, "AP by class", "objects by class", "split")
        report |= {name: table[name] for name in names if name in table}
    return report
