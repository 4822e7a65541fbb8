"""``cls2det teacher``: an image classifier, trained on the ground-truth crops of a detection data set."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch

from cls2det.commands.data import fingerprints, training_data, training_loader, validation_data, warn_of_missing
from cls2det.commands.identity import claim
from cls2det.commands.options import TeacherOptions
from cls2det.data.classes import quoted
from cls2det.data.loader import test_loader
from cls2det.evaluation.reliability import draw_reliability
from cls2det.files import is_first_process, start_processes, write_json
from cls2det.models.backbones import RANDOM
from cls2det.models.students import parameter_count
from cls2det.teachers.accuracy import ONE_CLASS, crop_logits
from cls2det.teachers.calibration import calibration
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.training import fit
from cls2det.training.classifier import ClassifierTraining
from cls2det.training.optimizer import torch_device
from cls2det.training.progress import Progress


def teacher(options: TeacherOptions, progress: Progress | None = None) -> dict:
    """Train the classifier; returns the content of report.json."""
    data = training_data(options)
    validation = validation_data(options, data)
    counts = data.class_counts()
    warn_of_missing(data, validation, "the teacher will not know it")
    background = learns_background(options, counts)
    optim, run = options.optim.for_run(len(data), options.run)
    start_processes(run.processes)
    torch.manual_seed(options.seed)
    classifier = CropClassifier(
        data.classes,
        architecture=options.architecture,
        width=options.width,
        student=options.student,
        image_size=options.image_size,
        crop_size=options.crop_size,
        loss=options.loss,
        margin=options.margin,
        backbone_weights=options.backbone_weights,
        background=background,
    )
    if options.freeze_body and classifier.network.started_from == RANDOM:
        raise ValueError(
            f"freeze_body trains the last layer alone, and the body of {options.architecture} has random weights: it would teach "
            "nothing. Give it weights (--backbone-weights pretrained, or a file or folder of safetensors)"
        )
    start = [parameter.detach().clone() for parameter in classifier.parameters()]
    training = ClassifierTraining(
        classifier,
        optim=optim,
        min_size=options.min_size,
        jitter=options.jitter,
        label_smoothing=options.label_smoothing,
        freeze_body=options.freeze_body,
    )
    claim(options, fingerprints(options, data, validation))
    loader = training_loader(data, optim, run, options.seed)
    seconds = fit.fit(training, loader, options.out, optim=optim, run=run, seed=options.seed, progress=progress)
    if all(map(torch.equal, start, (parameter.detach().cpu() for parameter in classifier.parameters()))):
        warnings.warn(
            f"the training moved no weight of the teacher, which is what it started from: {classifier.network.started_from}; "
            "look at --optim.learning-rate and the loss in log/metrics.csv",
            stacklevel=2,
        )
    classifier.save(options.out / "weights.pt")
    report: dict[str, Any] = {
        "seconds": seconds,
        "started from": classifier.network.started_from,
        "images": len(data),
        "crops": sum(counts.values()),
        "crops by class": counts,
        "background": background,  # whether crops without an object are learnt and, on the val_split, counted
        "steps": optim.steps,
        "parameters": parameter_count(classifier),
        "trained parameters": sum(parameter.numel() for parameter in classifier.parameters() if parameter.requires_grad),
    }
    if validation and is_first_process():
        report["split"] = options.val_split  # on which the numbers below are measured
        logits, classes = crop_logits(
            classifier, test_loader(validation, loader_workers=run.workers), torch_device(run.device)
        )
        if background:
            report["validation crops"] = {
                "objects": int((classes < len(counts)).sum()),
                "background": int((classes == len(counts)).sum()),
            }
        report |= calibration(classifier.probabilities(logits), classes)
        read_as = {"sigmoid" if options.loss == "bce" else "softmax": report}
        if options.loss == "joint":  # students with a sigmoid per class read it so
            report["sigmoid"] = read_as["sigmoid"] = calibration(classifier.probabilities(logits, sigmoid=True), classes)
        draw_reliability(read_as, options.out / "reliability.png")
    return write_json(options.out / "report.json", report)


def learns_background(options: TeacherOptions, counts: dict[str, int]) -> bool:
    """What ``options.background`` says or, where it says nothing, whether fewer than two classes have objects."""
    known = [name for name, count in counts.items() if count]
    if len(known) > 1 or options.background:
        return bool(options.background)
    if options.background is False:
        raise ValueError(f"{quoted(known)} is the only class with objects: there is nothing to tell it from. {ONE_CLASS}")
    logging.getLogger(__name__).info("%s is the only class with objects: the teacher learns the background too", quoted(known))
    return True
