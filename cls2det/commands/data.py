"""The data of ``teacher``, ``train`` and ``distill``."""

from __future__ import annotations

import warnings

import torch

from cls2det.commands.options import TeacherOptions, TrainOptions
from cls2det.data.augment import get_augmentation
from cls2det.data.classes import quoted
from cls2det.data.dataset import DetectionData
from cls2det.data.fingerprint import Fingerprint, fingerprint
from cls2det.data.loader import train_loader
from cls2det.data.parts import parse_part
from cls2det.training.optimizer import torch_device
from cls2det.training.settings import Optim, TeacherRun


def training_data(options: TeacherOptions | TrainOptions) -> DetectionData:
    """Augmented training images that hold an object; ``options.images`` of them, drawn with the seed, or all."""
    keep = None
    if options.images is not None:
        labelled = len(DetectionData(options.data_root, options.train_split, labelled_only=True))
        if not 0 < options.images <= labelled:
            place = f"{options.train_split} of {options.data_root}"
            raise ValueError(f"--images {options.images}: {place} has {labelled} images with a box")
        keep = torch.randperm(labelled, generator=torch.Generator().manual_seed(options.seed))[: options.images]
    return DetectionData(
        options.data_root,
        options.train_split,
        augment=get_augmentation(options.augmentation),
        keep=keep,
        labelled_only=True,
        cache=options.run.cache,
        on_bad_image="skip" if options.run.skip_bad_images else "stop",
        max_pixels=options.run.max_pixels,
        max_image_side=options.max_image_side,
        origins=bool(getattr(options, "bank", None)),
    )


def validation_data(options: TeacherOptions | TrainOptions, training: DetectionData) -> DetectionData | None:
    """The val_split with the labels of the training data; ValueError where it lists other classes. None without a val_split."""
    if options.val_split is None:
        return None
    if parse_part(options.val_split).overlaps(parse_part(options.train_split)):
        both = "are both" if options.val_split == options.train_split else f"share pictures, {options.train_split} and"
        warnings.warn(
            f"val_split and train_split {both} {options.val_split}: what is measured there is memory, not learning",
            stacklevel=3,
        )
    return DetectionData(
        options.data_root,
        options.val_split,
        max_pixels=options.run.max_pixels,
        classes=training.classes,
        classes_of=str(training.annotation_file),
    )


def warn_of_missing(
    training: DetectionData, validation: DetectionData | None, consequence: str, *, unless_absent: bool = False
) -> None:
    """Warn of classes without an object to train on, and say how many objects of them the val_split has.

    Args:
        training: what is trained on
        validation: what is measured on, or None
        consequence: of having seen none, for the message
        unless_absent: say nothing of classes that the val_split has no object of either
    """
    missing = [name for name, count in training.class_counts().items() if not count]
    counts = validation.class_counts() if validation else {}
    if unless_absent:
        missing = [name for name in missing if counts.get(name)]
    if missing:
        measured = f" ({validation.annotation_file} has {sum(counts[name] for name in missing)})" if validation else ""
        warnings.warn(
            f"{training.annotation_file}: the {len(training)} images that are trained on have no object of class {quoted(missing)}"
            f"{measured}: {consequence}",
            stacklevel=3,
        )


def fingerprints(
    options: TeacherOptions | TrainOptions, data: DetectionData, validation: DetectionData | None
) -> dict[str, Fingerprint]:
    """Of the annotations that a run reads, by split."""
    splits = {options.train_split: data} | ({options.val_split: validation} if options.val_split and validation else {})
    return {split: fingerprint(part) for split, part in splits.items()}


def training_loader(data: DetectionData, optim: Optim, run: TeacherRun, seed: int) -> torch.utils.data.DataLoader:
    """Batches for the steps between two checkpoints."""
    return train_loader(
        data,
        batch_size=optim.batch_size,
        steps_per_epoch=run.checkpoint_every * optim.accumulate,
        seed=seed,
        loader_workers=run.workers,
        pin_memory=on_gpu(run),
    )


def on_gpu(run: TeacherRun) -> bool:
    return torch_device(run.device).type == "cuda"
