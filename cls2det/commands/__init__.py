"""The commands ``teacher``, ``train``, ``distill`` and ``evaluate``, on any COCO-format data. Sweeps are made of them.

All write under ``out`` and nowhere else; run again with the same ``out``, they go on from the last checkpoint.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_only

from cls2det.data.augment import get_augmentation
from cls2det.data.dataset import DetectionData
from cls2det.data.loader import test_loader, train_loader
from cls2det.distill import (
    DETECTOR_METHODS,
    DISTILLERS,
    NO_TERMS,
    TERMS,
    BCKDSettings,
    ChenSettings,
    ClassifierDistiller,
    ClassifierSettings,
    CWDSettings,
    DetectorTeacher,
    Distillation,
    FGDSettings,
    FGFISettings,
    FKDSettings,
    GIDSettings,
    HarmonySettings,
    PKDSettings,
)
from cls2det.evaluation.coco import evaluate_detector
from cls2det.evaluation.reliability import draw_reliability
from cls2det.files import write_json
from cls2det.models.backbones import load_classifier
from cls2det.models.students import (
    STUDENTS,
    build_student,
    load_backbone,
    load_student,
    parameter_count,
    save_student,
)
from cls2det.teachers.calibration import calibration
from cls2det.teachers.crop_classifier import CropClassifier, check_not_at_chance, crop_logits
from cls2det.training import fit
from cls2det.training.classifier import ClassifierTraining
from cls2det.training.detector import DetectorTraining
from cls2det.training.progress import Progress, progress_bar
from cls2det.training.runs import claim, run_record
from cls2det.training.settings import Device, Optim, Run, TeacherRun

BackboneWeights = Literal["none", "auto", "imagenet"]


def teacher(
    data_root: Path,
    out: Path,
    train_split: str = "train",
    val_split: str | None = None,
    architecture: str = "resnet18",
    width: int = 64,
    backbone_weights: BackboneWeights = "none",
    student: str = "ssd_compact",
    image_size: int | None = None,
    crop_size: int = 112,
    loss: Literal["ce", "bce", "joint"] = "ce",
    margin: float = 0.0,
    min_size: float = 0.0,
    jitter: float = 0.05,
    label_smoothing: float = 0.05,
    images: int | None = None,
    augmentation: str = "none",
    optim: Optim = Optim(),  # noqa: B008 (frozen)
    seed: int = 0,
    run: TeacherRun = TeacherRun(),  # noqa: B008
    progress: Progress | None = None,
) -> dict:
    """Train an image classifier on the ground-truth crops of a detection data set.

    Writes ``weights.pt`` (for ``distill --teacher``), ``report.json`` and, with a val_split, ``reliability.png``.

    Args:
        data_root: folder with annotations/instances_<split>.json and <split>/ (COCO's own layout)
        out: folder for what is written
        train_split: split to train on (train2017 for COCO)
        val_split: split to measure accuracy and calibration on, or null
        architecture: any classifier of torchvision (resnet18, resnet50, resnext101_32x8d …), or compact, the backbone of ssd_compact
        width: channels of the first stage of a ResNet; 64 is as published, 16 is every width divided by 4
        backbone_weights: what the classifier starts from: imagenet, auto (random where there is no network), none
        student: the detector that it will teach: crops go through its resizing and normalisation
        image_size: side that images are brought to; null is the student's own
        crop_size: side of the crops; 112 in the paper
        loss: ce for students with a softmax, bce for sigmoids, joint for both (the paper's shared teacher)
        margin: crops are larger than the box by this share of its size, on each side
        min_size: boxes with a shorter side, in input pixels, are left out of the training
        jitter: training boxes are moved by up to this share of their size
        label_smoothing: of ce; a smoothed teacher is less sure of itself
        images: how many images to use, drawn with the seed; null is all
        augmentation: the student's: none, flip, ssd, ssdlite, jitter, jitter_flip
        optim: how weights are optimised; batch_size counts images, not crops
        seed: of weights, order and augmentation
        run: where and how
    """
    options = dict(locals())
    data = _training_data(data_root, train_split, augmentation, images, seed, run)
    validation = DetectionData(data_root, val_split) if val_split else None
    counts = data.class_counts()
    if unseen := [name for name, count in counts.items() if not count]:
        warnings.warn(f"no object of class {', '.join(unseen)} to train on: the teacher will not know it", stacklevel=2)
    optim, run = optim.for_run(len(data), run)
    torch.manual_seed(seed)
    model = CropClassifier(
        data.classes,
        architecture=architecture,
        width=width,
        student=student,
        image_size=image_size,
        crop_size=crop_size,
        loss=loss,
        margin=margin,
        backbone_weights=backbone_weights,
    )
    training = ClassifierTraining(model, optim=optim, min_size=min_size, jitter=jitter, label_smoothing=label_smoothing)
    claim(out, run_record("teacher", options, options["run"]))
    seconds = fit.fit(training, _loader(data, optim, run, seed), out, optim=optim, run=run, seed=seed, progress=progress)
    model.save(Path(out) / "weights.pt")
    report = {
        "seconds": seconds,
        "started from": model.network.started_from,
        "images": len(data),
        "crops": sum(counts.values()),
        "crops by class": counts,
        "steps": optim.steps,
        "parameters": parameter_count(model),
    }
    if validation and rank_zero_only.rank == 0:
        loader = test_loader(validation, loader_workers=run.workers)
        logits, classes = crop_logits(model, loader, run.torch_device)
        report |= calibration(model.probabilities(logits), classes)
        read_as = {"sigmoid" if loss == "bce" else "softmax": report}
        if loss == "joint":  # students with a sigmoid per class read it so
            report["sigmoid"] = read_as["sigmoid"] = calibration(logits.float().sigmoid(), classes)
        draw_reliability(read_as, Path(out) / "reliability.png")
    return write_json(Path(out) / "report.json", report)


def distill(
    data_root: Path,
    out: Path,
    train_split: str = "train",
    val_split: str | None = None,
    student: str = "ssd_compact",
    image_size: int | None = None,
    name: str | None = None,
    images: int | None = None,
    augmentation: str = "none",
    backbone_weights: BackboneWeights = "auto",
    start: Path | None = None,
    cls_weight: float = 1.0,
    box_weight: float = 1.0,
    optim: Optim = Optim(),  # noqa: B008
    seed: int = 0,
    run: Run = Run(),  # noqa: B008
    teacher: Path | None = None,
    allow_poor_teacher: bool = False,
    detector_teacher: str | None = None,
    distillers: list[str] = ["classifier"],  # noqa: B006 (read only)
    classifier: ClassifierSettings = ClassifierSettings(),  # noqa: B008
    chen: ChenSettings = ChenSettings(),  # noqa: B008
    fgfi: FGFISettings = FGFISettings(),  # noqa: B008
    gid: GIDSettings = GIDSettings(),  # noqa: B008
    fkd: FKDSettings = FKDSettings(),  # noqa: B008
    fgd: FGDSettings = FGDSettings(),  # noqa: B008
    pkd: PKDSettings = PKDSettings(),  # noqa: B008
    cwd: CWDSettings = CWDSettings(),  # noqa: B008
    bckd: BCKDSettings = BCKDSettings(),  # noqa: B008
    harmony: HarmonySettings = HarmonySettings(),  # noqa: B008
    progress: Progress | None = None,
) -> dict:
    """Train a detector and distil a classification teacher, or a bigger detector, or both, into it.

    Writes ``weights.pt`` (the student alone), ``report.json``, log/metrics.csv, tensorboard/ and, with a val_split, its
    evaluation.

    Args:
        data_root: folder with annotations/instances_<split>.json and <split>/ (COCO's own layout)
        out: folder for what is written
        train_split: split to train on (train2017 for COCO)
        val_split: split to evaluate on at the end, and during training if run.validate_every says so; or null
        student: detector, see ``cls2det info``
        image_size: side that images are brought to; null is the student's own
        name: what reports call this run; null is baseline, or the distilled terms
        images: how many images to use, drawn with the seed; null is all
        augmentation: none, flip, ssd, ssdlite, jitter, jitter_flip
        backbone_weights: what the backbone starts from: imagenet, auto (random where there is no network), none
        start: weights.pt of ``cls2det teacher`` or ``pretrain`` for the same backbone, from which it starts instead
        cls_weight: weight of the detector's own classification losses
        box_weight: weight of the detector's own box losses
        optim: how weights are optimised
        seed: of weights, order and augmentation
        run: where and how
        teacher: weights.pt of ``cls2det teacher``; none is needed for the pixel term alone
        allow_poor_teacher: go on with a teacher that is no better than guessing
        detector_teacher: weights.pt of ``cls2det train`` or ``distill``, or torchvision:NAME for a detector with torchvision's
            COCO weights; the teacher of every distiller but classifier
        distillers: whose terms are added: classifier, chen, fgfi, gid, fkd, fgd, pkd, cwd, bckd, harmony
        classifier: weights and settings of the classifier's terms
        chen: of Chen et al. (NeurIPS 2017): soft labels, bounded regression, hint
        fgfi: of FGFI (Wang et al., CVPR 2019): features near objects
        gid: of GID (Dai et al., CVPR 2021): where the two disagree most
        fkd: of FKD (Zhang & Ma, ICLR 2021): attention and non-local relations
        fgd: of FGD (Yang et al., CVPR 2022): objects and background apart
        pkd: of PKD (Cao et al., NeurIPS 2022): normalised features
        cwd: of CWD (Shu et al., ICCV 2021): where each channel looks
        bckd: of BCKD (Yang et al., ICCV 2023): scores and boxes of sigmoid heads
        harmony: ours, after an idea of Tang et al. (2022): where class scores and boxes agree
    """
    options = dict(locals())
    if unknown := set(distillers) - set(DISTILLERS):
        raise ValueError(f"no distiller {', '.join(sorted(unknown))}; there are {', '.join(DISTILLERS)}")
    command = command_of(options)
    for argument, given, readers in (
        ("teacher", teacher, {"classifier"}),
        ("detector_teacher", detector_teacher, DETECTOR_METHODS),
    ):
        if given and not set(readers) & set(distillers):
            warnings.warn(
                f"{argument} {given} is read by none of the distillers {', '.join(distillers) or 'none'}", stacklevel=2
            )
    data = _training_data(data_root, train_split, augmentation, images, seed, run)
    validation = DetectionData(data_root, val_split) if val_split else None
    optim, run = optim.for_run(len(data), run)
    if (
        validation and run.validate_every and len(validation) < run.processes
    ):  # one without an image would keep the others waiting
        raise ValueError(f"{val_split} has {len(validation)} images, too few for a validation by {run.processes} processes")
    crop_classifier = None
    if command == "distill" and teacher and "classifier" in distillers:
        crop_classifier = CropClassifier.load(teacher)
        if not allow_poor_teacher and rank_zero_only.rank == 0:
            batches = math.ceil(256 / optim.batch_size)  # of training pictures; more than enough crops on most data
            loader = train_loader(data, batch_size=optim.batch_size, steps_per_epoch=batches, seed=seed)
            _check_teacher(crop_classifier, student, classifier, loader, run)
    torch.manual_seed(seed)  # the order of what follows decides which random numbers a part starts from
    detector = build_student(student, len(data.classes), image_size, "none" if start else backbone_weights)
    distillation = None
    if command == "distill":
        distillation = _distillation(crop_classifier, detector_teacher, options, data.classes, detector)
    model = DetectorTraining(
        detector,
        data.classes,
        student=student,
        image_size=image_size,
        optim=optim,
        cls_weight=cls_weight,
        box_weight=box_weight,
        distillation=distillation,
        ratio_every=run.ratio_every,
        pictures=run.pictures,
    )
    if start:
        load_backbone(detector, load_classifier(start))
    claim(out, run_record(command, options, options["run"]))
    during = None
    if validation and run.validate_every:
        during = test_loader(
            validation, batch_size=optim.batch_size, loader_workers=run.workers, pin_memory=_on_gpu(run), shared=True
        )
    seconds = fit.fit(
        model,
        _loader(data, optim, run, seed),
        out,
        optim=optim,
        run=run,
        seed=seed,
        val_loader=during,
        val_every=run.validate_every or 1,
        progress=progress,
    )
    save_student(Path(out) / "weights.pt", detector, name=student, classes=data.classes, image_size=image_size)
    report = {
        "seconds": seconds,
        "started from": str(start or detector.started_from),
        "images": len(data),
        "steps": optim.steps,
        "parameters": parameter_count(detector),
    }
    write_json(Path(out) / "report.json", report)
    if validation and rank_zero_only.rank == 0:
        table = evaluate(
            Path(out) / "weights.pt",
            data_root,
            val_split,
            Path(out) / val_split,
            optim.batch_size,
            run.workers,
            run.device,
            progress,
        )
        report |= {column: table[column] for column in ("mAP", "AP50", "AP75")}
    return report


# what ``train`` takes, so that the recipes of ``distill`` serve it, and does not read
TEACHING = ("teacher", "allow_poor_teacher", "detector_teacher", "distillers", "classifier", *DETECTOR_METHODS)


def train(**options) -> dict:
    """Train a detector without distillation: the baseline. Takes the recipes of ``distill``, less what they say of teachers."""
    if options.get("teacher"):
        warnings.warn(f"train distils nothing: teacher {options['teacher']} is left out; see distill", stacklevel=2)
    return distill(**options | {"teacher": None, "detector_teacher": None, "distillers": [], "classifier": NO_TERMS})


def command_of(options: dict) -> str:
    """What a run with these options is called: "distill", or "train" where nothing is distilled."""
    methods, classifier = set(options["distillers"]) & set(DETECTOR_METHODS), "classifier" in options["distillers"]
    terms = classifier and (options["teacher"] or any(getattr(options["classifier"], term) for term in TERMS))
    return "distill" if methods or terms else "train"


def _distillation(
    classifier: CropClassifier | None,
    detector_teacher: str | None,
    options: dict,
    classes: list[str],
    student: torch.nn.Module,
) -> Distillation:
    """Of the distillers that ``options`` name, for ``DetectorTraining``."""
    names, distiller = options["distillers"], None
    if "classifier" in names:
        distiller = ClassifierDistiller(classifier, options["classifier"], classes, student.transform)
    methods = {name: options[name] for name in DETECTOR_METHODS if name in names}
    teacher = DetectorTeacher.load(detector_teacher, classes) if detector_teacher and methods else None
    return Distillation(student, distiller, teacher, methods)


def _check_teacher(teacher: CropClassifier, student: str, settings: ClassifierSettings, loader, run: Run) -> None:
    """Raise ValueError for one that would teach nothing, or the wrong thing, to this student."""
    head, loss = STUDENTS[student].head, teacher.loss
    uses_scores = settings.kd_cls_weight and settings.control != "one_hot"
    if uses_scores and (head, loss) in (("sigmoid", "ce"), ("softmax", "bce")):
        raise ValueError(
            f"{student} has a {head} for its classes, and the teacher was trained with {loss} alone: its scores mean something "
            "else. Train it with --loss joint (--allow-poor-teacher goes on all the same)"
        )
    check_not_at_chance(teacher, loader, run.torch_device)


def evaluate(
    weights: Path,
    data_root: Path,
    split: str = "val",
    out: Path | None = None,
    batch_size: int = 8,
    loader_workers: int = 0,
    device: Device = "auto",
    progress: Progress | None = None,
) -> dict:
    """Evaluate a trained detector with pycocotools.

    Args:
        weights: weights.pt of ``cls2det train`` or ``distill``
        data_root: folder with annotations/instances_<split>.json and <split>/
        split: split to evaluate on (val2017 for COCO)
        out: folder for evaluation.json and detections.json (COCO's result format), or none
        batch_size: images per forward; where images differ in shape, neighbours pad each other and shift scores a little
        loader_workers: processes that load images
        device: auto takes a GPU if there is one
    """
    student, data = load_student(weights), DetectionData(data_root, split)
    with progress_bar("evaluating", progress) as report_progress:
        table = evaluate_detector(
            student.detector,
            data,
            classes=student.classes,
            device=Run(device).torch_device,
            batch_size=batch_size,
            loader_workers=loader_workers,
            progress=report_progress,
        )
    detections = table.pop("detections")
    table |= {"data_root": str(data_root), "split": split}
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / "detections.json").write_text(json.dumps(detections))
        write_json(Path(out) / "evaluation.json", table)
    return table


def _training_data(
    data_root: Path, split: str, augmentation: str, images: int | None, seed: int, run: TeacherRun
) -> DetectionData:
    """Augmented training images that hold an object; ``images`` of them, drawn with the seed, or all."""
    keep = None
    if images is not None:
        labelled = len(DetectionData(data_root, split, labelled_only=True))
        if images > labelled:
            raise ValueError(f"--images {images}: {split} of {data_root} has {labelled} images with a box")
        keep = torch.randperm(labelled, generator=torch.Generator().manual_seed(seed))[:images]
    augment = get_augmentation(augmentation)
    return DetectionData(
        data_root,
        split,
        augment=augment,
        keep=keep,
        labelled_only=True,
        cache=run.cache,
        on_bad_image="skip" if run.skip_bad_images else "stop",
    )


def _loader(data: DetectionData, optim: Optim, run: TeacherRun, seed: int):
    """Batches for the steps between two checkpoints."""
    return train_loader(
        data,
        batch_size=optim.batch_size,
        steps_per_epoch=run.checkpoint_every * optim.accumulate,
        seed=seed,
        loader_workers=run.workers,
        pin_memory=_on_gpu(run),
    )


def _on_gpu(run: TeacherRun) -> bool:
    return run.torch_device.type == "cuda"
