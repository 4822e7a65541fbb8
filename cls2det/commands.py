"""The commands ``teacher``, ``train`` and ``evaluate``, on any COCO-format data. The demo is made of them.

All write under ``out`` and nowhere else; run again with the same ``out``, they go on from the last checkpoint.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

import torch

from cls2det import base
from cls2det.data import Augmentation, DetectionData, test_loader, train_loader
from cls2det.distill import ClassifierDistiller, DistillSettings
from cls2det.evaluate import evaluate as evaluate_detector
from cls2det.students import load_backbone, parameter_count
from cls2det.teacher import CropClassifier, crop_accuracy
from cls2det.train import DetectorTraining

Device = Literal["auto", "cpu", "cuda"]


def teacher(
    data_root: Path,
    out: Path,
    train_split: str = "train",
    test_split: str | None = "val",
    architecture: Literal["resnet18", "compact"] = "resnet18",
    width: int = 16,
    image_size: int = 96,
    crop_size: int = 32,
    epochs: int = 12,
    batch_size: int = 24,
    learning_rate: float = 3e-3,
    flip: bool = False,
    cache: bool = False,
    seed: int = 0,
    device: Device = "auto",
    precision: str = "32-true",
    loader_workers: int = 0,
    progress: base.Progress | None = None,
) -> dict:
    """Train an image classifier on the ground-truth crops of a detection data set.

    Writes ``weights.pt`` (for ``train --teacher``) and ``report.json``.

    Args:
        data_root: folder with annotations/instances_<split>.json and <split>/ (COCO's own layout)
        out: folder for what is written
        train_split: split to train on (train2017 for COCO)
        test_split: split to measure the accuracy on, or null
        architecture: resnet18 at the given width, or compact: the backbone of ssd_compact
        width: channels of the first stage; 64 is ResNet-18 as published
        image_size: side that images are brought to; give the student's
        crop_size: side of the crops; 112 in the paper
        epochs: passes over the images
        batch_size: images (not crops) per step
        learning_rate: peak of the one-cycle schedule
        flip: mirror images half of the time (not for digits)
        cache: keep decoded images in memory
        seed: of weights, order and augmentation
        device: auto takes a GPU if there is one
        precision: of Lightning: 32-true, bf16-mixed, 16-mixed
        loader_workers: processes that load images
    """
    base.claim(out, locals())
    data = DetectionData(data_root, train_split, augment=Augmentation(flip=flip), labelled_only=True, cache=cache)
    test = DetectionData(data_root, test_split) if test_split else None
    steps = math.ceil(len(data) / batch_size)
    torch.manual_seed(seed)
    model = CropClassifier(
        data.classes, architecture, width, image_size, crop_size, learning_rate=learning_rate, total_steps=epochs * steps
    )
    loader = train_loader(data, batch_size=batch_size, steps_per_epoch=steps, seed=seed, loader_workers=loader_workers)
    seconds = base.fit(model, loader, out, epochs=epochs, seed=seed, device=device, precision=precision, progress=progress)
    model.save(Path(out) / "weights.pt")
    report = {
        "seconds": seconds,
        "images": len(data),
        "crops": sum(len(target["labels"]) for target in data.targets),
        "parameters": parameter_count(model),
    }
    if test:
        report["accuracy"] = crop_accuracy(model, test_loader(test), base.torch_device(device))
    return base.write_json(Path(out) / "report.json", report)


def train(
    data_root: Path,
    out: Path,
    train_split: str = "train",
    student: str = "ssd_compact",
    image_size: int = 96,
    images: int = 0,
    teacher: Path | None = None,
    start: Path | None = None,
    distill: DistillSettings = DistillSettings(),  # noqa: B008 (frozen)
    box_weight: float = 2.0,
    steps: int = 2000,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.05,
    flip: bool = False,
    cache: bool = False,
    seed: int = 0,
    device: Device = "auto",
    devices: int = 1,
    precision: str = "32-true",
    loader_workers: int = 0,
    checkpoint_every: int = 100,
    progress: base.Progress | None = None,
) -> dict:
    """Train a detector; with --teacher, distil that classifier into it.

    Writes ``weights.pt`` (the student alone) and ``report.json``.

    Args:
        data_root: folder with annotations/instances_<split>.json and <split>/ (COCO's own layout)
        out: folder for what is written
        train_split: split to train on (train2017 for COCO)
        student: detector, see cls2det/students.py
        image_size: side that images are brought to
        images: how many images to use, drawn with the seed; 0 for all
        teacher: weights.pt of ``cls2det teacher``; none for a plain training
        start: weights.pt of ``cls2det teacher --architecture compact``, from which the backbone starts
        distill: weights and settings of the distillation terms
        box_weight: weight of the detector's own box losses
        steps: optimizer steps, rounded up to a multiple of checkpoint_every
        batch_size: images per step and process
        learning_rate: peak of the one-cycle schedule
        weight_decay: of AdamW
        flip: mirror images half of the time (not for digits)
        cache: keep decoded images in memory
        seed: of weights, order and augmentation
        device: auto takes a GPU if there is one
        devices: processes (and GPUs), with DDP
        precision: of Lightning: 32-true, bf16-mixed, 16-mixed
        loader_workers: processes that load images
        checkpoint_every: steps between checkpoints
    """
    base.claim(out, locals())
    keep = None
    if images:
        labelled = len(DetectionData(data_root, train_split, labelled_only=True))
        if images > labelled:
            raise ValueError(f"--images {images}: {train_split} of {data_root} has {labelled} images with a box")
        keep = torch.randperm(labelled, generator=torch.Generator().manual_seed(seed))[:images]
    data = DetectionData(data_root, train_split, augment=Augmentation(flip=flip), keep=keep, labelled_only=True, cache=cache)
    distiller = ClassifierDistiller(CropClassifier.load(teacher), distill) if teacher else None
    epochs = math.ceil(steps / checkpoint_every)
    torch.manual_seed(seed)
    model = DetectorTraining(
        data.classes, student, image_size, box_weight, learning_rate, weight_decay, epochs * checkpoint_every, distiller
    )
    if start:
        load_backbone(model.detector, CropClassifier.load(start).network)
    loader = train_loader(
        data, batch_size=batch_size, steps_per_epoch=checkpoint_every, seed=seed, loader_workers=loader_workers
    )
    seconds = base.fit(
        model, loader, out, epochs=epochs, seed=seed, device=device, devices=devices, precision=precision, progress=progress
    )
    model.save(Path(out) / "weights.pt")
    return base.write_json(
        Path(out) / "report.json",
        {"seconds": seconds, "images": len(data), "steps": epochs * checkpoint_every, "parameters": parameter_count(model)},
    )


def evaluate(
    weights: Path,
    data_root: Path,
    split: str = "val",
    out: Path | None = None,
    device: Device = "auto",
    progress: base.Progress | None = None,
) -> dict:
    """Evaluate a trained detector with pycocotools.

    Args:
        weights: weights.pt of ``cls2det train``
        data_root: folder with annotations/instances_<split>.json and <split>/
        split: split to evaluate on (val2017 for COCO)
        out: folder for evaluation.json and detections.json (COCO's result format), or none
        device: auto takes a GPU if there is one
    """
    table = evaluate_detector(
        DetectorTraining.load(weights), DetectionData(data_root, split), device=base.torch_device(device), progress=progress
    )
    detections = table.pop("detections")
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / "detections.json").write_text(json.dumps(detections))
        base.write_json(Path(out) / "evaluation.json", table)
    return table
