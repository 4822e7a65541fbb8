"""What is probably wrong with the first batch that a distiller gets, as warnings: later batches are not looked at."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from cls2det.models.positives import Positives
from cls2det_ops import explain

OUTSIDE, FEW = 0.25, 0.02  # how far from [0, 1] a pixel may be in peace, and the share of pixels that may be further


def warn_of_mistakes(
    positives: Positives,
    teacher_logits: Tensor | None,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    trains_boxes: bool,
) -> None:
    """A warning for each sentence of ``explain``, and for pictures that were not normalised as the distiller was told.

    Waits for a GPU. Under DDP every process looks at its own batch.

    Args:
        positives: of the batch, at least one
        teacher_logits: (G, C) of the ground truths, in the student's order of classes; None: nobody compares them
        image_mean, image_std: of each channel, as the distiller was told
        trains_boxes: there are terms that need the gradient of boxes
    """
    sentences = explain(
        student_logits=positives.logits if teacher_logits is not None else None,
        boxes=positives.boxes,
        teacher_logits=teacher_logits,
        target_boxes=positives.target_boxes,
        matched_idxs=positives.matched_idxs,
        target_image_index=positives.target_image_index,
        target_labels=positives.target_labels,
        image_index=positives.image_index,
        features=positives.images,
        head=positives.head,
        background=positives.background,
        loc_weight=float(trains_boxes),
    )
    if of_pictures := _other_normalisation(positives.images, image_mean, image_std):
        sentences.append(of_pictures)
    for sentence in sentences:
        warnings.warn(f"BoxDistiller, first step: {sentence}", stacklevel=4)


def _other_normalisation(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> str | None:
    """Pictures that do not become pictures of 0 to 1 when the normalisation is undone."""
    pictures = images.detach().float()
    scale, shift = (torch.tensor(values, device=images.device)[:, None, None] for values in (std, mean))
    undone = pictures * scale + shift
    outside = ((undone < -OUTSIDE) | (undone > 1 + OUTSIDE)).float().mean()
    numbers = torch.stack([outside, pictures.amin(), pictures.amax(), undone.amin(), undone.amax()]).tolist()
    share, low, high, undone_low, undone_high = numbers
    plain = low >= 0 and high <= 1 and high - low >= 0.8 and (max(map(abs, mean)) > 0.05 or max(std) < 0.5)
    if share <= FEW and not plain:
        return None
    named = f"(x - {_text(mean)}) / {_text(std)} of x in 0 to 1"
    pixels = (
        "values from 0 to 1, which nothing was taken from"
        if plain
        else f"values from {low:.3g} to {high:.3g}, which stand for {undone_low:.3g} to {undone_high:.3g}"
    )
    return (
        f"images must be normalised as image_mean and image_std say, {named}, found {pixels}: name the normalisation that the "
        "pictures have ((0, 0, 0) and (1, 1, 1) for pictures of 0 to 1, (0, 0, 0) and (1/255, 1/255, 1/255) for 0 to 255)."
    )


def _text(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values) + ")"
