"""Checks and sums that the losses share."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.attention_means import attention_means


def pair(function: str, student: Tensor, teacher: Tensor, shape: tuple[int | str, ...], of: str = "") -> tuple[Tensor, Tensor]:
    """Student and teacher, checked to have one shape and one device, in the dtype of sums; the teacher without gradient.

    That dtype is float32, or float64 where either is. ``of`` completes the names of the arguments: "logits" for student_logits
    and teacher_logits.
    """
    names = [f"{who}_{of}" if of else who for who in ("student", "teacher")]
    check.floating(function, names[0], student, shape)
    check.floating(function, names[1], teacher, tuple(student.shape))
    check.same_device(function, **dict(zip(names, (student, teacher), strict=True)))
    dtype = check.accumulate_dtype(torch.promote_types(student.dtype, teacher.dtype))
    return student.to(dtype), teacher.detach().to(dtype)


def add_up(terms: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    return functools.reduce(operator.add, terms)


def instances(function: str, argument: str, tensor: Tensor) -> None:
    """Check that a tensor is (K, ...), of at least two dimensions."""
    check.floating(function, argument, tensor, ("K", *["D"] * (max(getattr(tensor, "ndim", 2), 2) - 1)))


def weights(function: str, argument: str, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mask, of bool or of weights, without gradient and in the dtype of sums: 16 bits would not count exactly."""
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        mask = mask.float()
    check.floating(function, argument, mask, shape)
    return mask.detach().to(check.accumulate_dtype(mask.dtype))


def without_weightless(function: str, weight: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors with 0 in the rows of weight 0: a NaN there would reach their gradient."""
    if weight is None:
        return tensors
    check.floating(function, "weight", weight, (tensors[0].shape[0],))
    check.same_device(function, rows=tensors[0], weight=weight)
    return tuple(torch.where((weight == 0)[:, None], 0, tensor) for tensor in tensors)


def cross_entropy(logits: Tensor, soft: Tensor) -> Tensor:
    """The (R, C) terms of the cross-entropy with the probabilities ``soft``; 0 log 0 is 0, also for infinite logits."""
    return -torch.where(soft > 0, soft * logits.log_softmax(1), 0)


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
