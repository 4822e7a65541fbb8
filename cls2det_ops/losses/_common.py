"""Checks and sums that the losses share."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.attention_means import attention_means


def pair(function: str, student: Tensor, teacher: Tensor, shape: tuple[int | str, ...], of: str = "") -> tuple[Tensor, Tensor]:
    """Both, checked to be of one shape and on one device, in the dtype of sums: float32, or float64 where either is.

    ``of`` completes the arguments' names: "logits" for student_logits and teacher_logits.
    """
    names = [f"{who}_{of}" if of else who for who in ("student", "teacher")]
    check.floating(function, names[0], student, shape)
    check.floating(function, names[1], teacher, tuple(student.shape))
    check.same_device(function, **dict(zip(names, (student, teacher), strict=True)))
    dtype = check.accumulate_dtype(torch.promote_types(student.dtype, teacher.dtype))
    return student.to(dtype), teacher.to(dtype)


def row_weight(function: str, weight: Tensor | None, rows: Tensor) -> Tensor | None:
    """A weight for each row, checked, without gradient, in the dtype of ``rows``."""
    if weight is None:
        return None
    check.floating(function, "weight", weight, (rows.shape[0],))
    check.same_device(function, rows=rows, weight=weight)
    return weight.detach().to(rows.dtype)


def divided(function: str, total: Tensor, normalizer: float | Tensor | None, count: int) -> Tensor:
    """``total`` by the normalizer, or by ``count``; a tensor that is not positive counts as 1."""
    if normalizer is None:
        return total / max(count, 1)
    if isinstance(normalizer, Tensor):
        normalizer = normalizer.detach().reshape(()).to(total.dtype)
        return total / torch.where(normalizer <= 0, 1, normalizer)
    return total / check.positive(function, "normalizer", normalizer)


def root(squares: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1).sqrt(), squares)


def attention_masks(features: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Where a network looks (B, H, W), and in which channels (B, C): softmax of mean magnitudes, scaled to a mean of 1."""
    spatial, channel = attention_means(features)
    height, width = spatial.shape[1:]
    flat = (spatial.flatten(1) / temperature).softmax(1) * (height * width)
    return flat.unflatten(1, (height, width)), (channel / temperature).softmax(1) * channel.shape[1]
