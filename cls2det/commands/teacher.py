"""``cls2det teacher``: an image classifier, trained on the ground-truth crops of a detection data set."""

from __future__ import annotations

import warnings

import torch

from cls2det.commands.data import fingerprints, training_data, training_loader
from cls2det.commands.identity import claim
from cls2det.commands.options import TeacherOptions
from cls2det.data.dataset import DetectionData
from cls2det.data.loader import test_loader
from cls2det.evaluation.reliability import draw_reliability
from cls2det.files import is_first_process, write_json
from cls2det.models.students import parameter_count
from cls2det.teachers.calibration import calibration
from cls2det.teachers.crop_classifier import CropClassifier, crop_logits
from cls2det.training import fit
from cls2det.training.classifier import ClassifierTraining
from cls2det.training.optimizer import torch_device
from cls2det.training.progress import Progress


def teacher(options: TeacherOptions, progress: Progress | None = None) -> dict:
    """Train the classifier; returns the content of report.json."""
    data = training_data(options)
    validation = DetectionData(options.data_root, options.val_split) if options.val_split else None
    counts = data.class_counts()
    if missing := [name for name, count in counts.items() if not count]:
        warnings.warn(f"no object of class {', '.join(missing)} to train on: the teacher will not know it", stacklevel=2)
    optim, run = options.optim.for_run(len(data), options.run)
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
    )
    training = ClassifierTraining(
        classifier,
        optim=optim,
        min_size=options.min_size,
        jitter=options.jitter,
        label_smoothing=options.label_smoothing,
    )
    claim(options, fingerprints(options, data, validation))
    loader = training_loader(data, optim, run, options.seed)
    seconds = fit.fit(training, loader, options.out, optim=optim, run=run, seed=options.seed, progress=progress)
    classifier.save(options.out / "weights.pt")
    report = {
        "seconds": seconds,
        "started from": classifier.network.started_from,
        "images": len(data),
        "crops": sum(counts.values()),
        "crops by class": counts,
        "steps": optim.steps,
        "parameters": parameter_count(classifier),
    }
    if validation and is_first_process():
        logits, classes = crop_logits(
            classifier, test_loader(validation, loader_workers=run.workers), torch_device(run.device)
        )
        report |= calibration(classifier.probabilities(logits), classes)
        read_as = {"sigmoid" if options.loss == "bce" else "softmax": report}
        if options.loss == "joint":  # students with a sigmoid per class read it so
            report["sigmoid"] = read_as["sigmoid"] = calibration(logits.float().sigmoid(), classes)
        draw_reliability(read_as, options.out / "reliability.png")
    return write_json(options.out / "report.json", report)
