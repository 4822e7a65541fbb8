"""Squared difference of two feature maps under a spatial and a channel mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks as check
from .. import reference
from .._library import native
from ._common import divisor, map_like, reduce_rows, refuse_second_derivative, register_autograd, register_fake, run


def masked_feature_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    channel_mask: Tensor | None = None,
    *,
    normalizer: float | Tensor = 1.0,
    reduction: str = "sum",
) -> Tensor:
    r"""Squared difference of two maps, weighted by position and by channel.

    .. math:: L_b = \frac{1}{n} \sum_{c,y,x} M_{byx} A_{bc} \big(S_{bcyx} - T_{bcyx}\big)^2

    with M the mask, A the channel mask and n the normalizer. With the mask of :func:`imitation_mask` and n = 2 N, N the
    positions in it, this is the imitation loss of "Distilling Object Detectors with Fine-grained Feature Imitation" (CVPR
    2019), equation 4; with attention as masks the square of the term L_AM of "Improve Object Detection with Feature-based
    Knowledge Distillation" (ICLR 2021); without masks a hint loss. Each map is read once in either direction, and nothing
    besides the inputs is kept for the backward.

    Args:
        student, teacher: (B, C, H, W) features, float32, float64, float16 or bfloat16. Maps in NCHW or channels-last order
            are read as they lie, others are copied, as is a teacher in another order than the student.
        mask: (B, H, W) weights of the positions, floating point; None: 1.
        channel_mask: (B, C) weights of the channels, floating point; None: 1.
        normalizer: a positive number or tensor of one element that divides the result; a tensor of 0 or less counts as 1.
        reduction: "sum" over the images, their "mean" (0 without an image), or "none".

    Returns:
        A scalar, or (B,) for "none", in float32 (float64 for float64 features).

    Gradients flow to ``student`` and ``teacher``, in their memory format, not to the masks. A value whose mask is 0 is out, even
    if it is NaN.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape, device or value range, named with what was found.
    """
    name = "masked_feature_loss"
    check.feature_map(name, "student", student)
    check.floating(name, "teacher", teacher, tuple(student.shape))
    batch, channels, height, width = student.shape
    if mask is not None:
        check.floating(name, "mask", mask, (batch, height, width))
        mask = check.constant(mask, mask.dtype)
    if channel_mask is not None:
        check.floating(name, "channel_mask", channel_mask, (batch, channels))
        channel_mask = check.constant(channel_mask, channel_mask.dtype)
    check.same_device(name, student=student, teacher=teacher, mask=mask, channel_mask=channel_mask)
    check.choice(name, "reduction", reduction, check.REDUCTIONS)
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    student, teacher = check.in_dtype(student, dtype), check.in_dtype(teacher, dtype)
    if reduction == "mean":
        normalizer = divisor(name, normalizer, check.accumulate_dtype(dtype)) * max(batch, 1)
    if native(student):
        rows = run(name, student=student, teacher=teacher, mask=mask, channel_mask=channel_mask)
    else:
        rows = reference.masked_feature_loss(student, teacher, mask, channel_mask)
    return reduce_rows(name, rows, None, normalizer, reduction)


@register_fake("masked_feature_loss")
def _(arguments: Any) -> Tensor:
    student: Tensor = arguments.student
    return student.new_empty(student.shape[0], dtype=check.accumulate_dtype(student.dtype))


@register_fake("masked_feature_loss_backward")
def _(arguments: Any) -> tuple[Tensor, Tensor]:
    student = arguments.student
    return (
        map_like(student) if arguments.need_student else student.new_empty(0),
        map_like(student) if arguments.need_teacher else student.new_empty(0),
    )


def _save(ctx: Any, arguments: Any, output: Tensor) -> None:
    ctx.save_for_backward(*arguments)


def _backward(ctx: Any, needs: Any, grad_rows: Tensor) -> dict[str, Tensor | None]:
    student, teacher, mask, channel_mask = ctx.saved_tensors
    grad_student, grad_teacher = run(
        "masked_feature_loss_backward",
        grad_rows=grad_rows,
        student=student,
        teacher=teacher,
        mask=mask,
        channel_mask=channel_mask,
        need_student=needs.student,
        need_teacher=needs.teacher,
    )
    return {"student": grad_student if needs.student else None, "teacher": grad_teacher if needs.teacher else None}


register_autograd("masked_feature_loss", _save, _backward)
refuse_second_derivative("masked_feature_loss_backward")
