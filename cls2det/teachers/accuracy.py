"""How a crop classifier does on crops of a data set, and whether that is better than guessing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cls2det.models.backbones import has_background_column
from cls2det.teachers.crop_classifier import Batch, CropClassifier

# What is left to who has one class.
NO_TEACHER = (
    "Do without a classifier as teacher: the pixel term alone (--classifier.loc-weight, with --classifier.kd-cls-weight 0 and "
    "--classifier.kd-loc-weight 0) and the methods of a detector teacher need none"
)
ONE_CLASS = f"Train a teacher that tells it from the background (--background true). {NO_TEACHER}"


@torch.no_grad()
def crop_logits(
    model: CropClassifier, loader: Iterable[Batch], device: str | torch.device = "cpu", enough: int | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (N, columns) and classes (N,) of every ground-truth crop, or of the first batches that hold ``enough`` crops.

    With crops of the background, as class C, if the model was trained on them.
    """
    model.eval().to(device)
    logits, classes = [torch.zeros(0, len(model.classes) + has_background_column(model.background, model.loss))], []
    for images, targets in loader:
        batch = (
            [image.to(device) for image in images],
            [{name: target[name].to(device) for name in ("boxes", "labels")} for target in targets],
        )
        crops, truth = model.crops_of_batch(batch, background=model.background)
        if len(crops):
            logits.append(model(crops).cpu())
        classes.append(truth.cpu())
        if enough is not None and sum(map(len, classes)) >= enough:
            break
    return torch.cat(logits), torch.cat(classes)


def check_not_at_chance(model: CropClassifier, loader: Iterable[Batch], device: str | torch.device = "cpu") -> float:
    """Accuracy, in percent, on about 500 crops, as ``crop_logits`` makes them; ValueError unless it is above guessing.

    A teacher can load without an error and be useless: trained on another normalisation, on classes in
    another order, or not trained. Guessing is naming the commonest class; two standard errors must lie between.
    Where all crops are of one class, guessing is always right, and nothing can be above it.
    """
    logits, classes = crop_logits(model, loader, device, enough=500)
    model.cpu()
    if not len(classes):
        return float("nan")
    guess = classes.bincount().max().item() / len(classes)
    if guess == 1:
        raise ValueError(
            f"all {len(classes)} crops that the teacher is tried on are of class {model.classes[int(classes[0])]!r}: naming it is "
            f"always right, and says nothing of the teacher. {ONE_CLASS} (--allow-poor-teacher goes on all the same)"
        )
    scores = model.probabilities(logits) if model.background else logits
    accuracy = (scores.argmax(1) == classes).float().mean().item()
    if accuracy < guess + 2 * (guess * (1 - guess) / len(classes)) ** 0.5:
        kind = "crops of objects and background" if model.background else "ground-truth crops"
        raise ValueError(
            f"the teacher names {100 * accuracy:.1f} % of {len(classes)} {kind} right, of training images as the "
            f"student's augmentation makes them; naming the commonest class "
            f"gives {100 * guess:.1f} %. It would teach nothing (--allow-poor-teacher goes on all the same)"
        )
    return 100 * accuracy
