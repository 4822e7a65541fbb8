"""FGFI (Wang et al., "Distilling Object Detectors with Fine-grained Feature Imitation", CVPR 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.masked_feature_loss import masked_feature_loss
from ._common import add_up, weights


def fgfi_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], masks: Sequence[Tensor], *, per_image: bool = False
) -> Tensor:
    r"""Squared difference of features at the places that :func:`imitation_mask` marks.

    .. math:: L = \frac{1}{2 N_p} \sum_l \sum_{b,y,x} I^l_{byx} \sum_c (S^l_{bcyx} - T^l_{bcyx})^2, \quad N_p = \sum_l \sum I^l

    N_p counts the batch, as in the release (it does not divide by the channels): the loss **depends on how a batch is split**.
    With ``per_image`` each image is divided by its own count and the mean is taken, which does not (for equal shares). With no
    place marked it is 0.

    Args:
        student, teacher: (B, C, h, w) of each level, the student's adapted to the teacher's channels.
        masks: (B, h, w) of each level, bool or weights. Places of 0 are out, even if they are NaN.
        per_image: see above.

    Returns:
        A scalar. Gradients flow to ``student``.

    Raises:
        TypeError, ValueError: levels that differ in number, an argument of wrong dtype, shape or device.
    """
    name = "fgfi_loss"
    if not len(student) == len(teacher) == len(masks) > 0:
        levels = f"{len(student)}, {len(teacher)} and {len(masks)}"
        raise check.fail(name, "student, teacher and masks", "of one number of levels", levels)
    check.flag(name, "per_image", per_image)
    for level, (student_map, teacher_map) in enumerate(zip(student, teacher, strict=True)):
        check.feature_map(name, f"student[{level}]", student_map)
        check.floating(name, f"teacher[{level}]", teacher_map, tuple(student_map.shape))
    masks = [
        weights(name, f"masks[{level}]", mask, (student_map.shape[0], *student_map.shape[2:]))
        for level, (mask, student_map) in enumerate(zip(masks, student, strict=True))
    ]
    squares = add_up(
        masked_feature_loss(student_map, teacher_map.detach(), mask, normalizer=1.0, reduction="none")
        for student_map, teacher_map, mask in zip(student, teacher, masks, strict=True)
    )
    counts = add_up(mask.flatten(1).sum(1) for mask in masks)
    if per_image:
        return (squares / (2 * torch.where(counts > 0, counts, 1))).sum() / max(len(counts), 1)
    total = counts.sum()
    return squares.sum() / (2 * torch.where(total > 0, total, 1))
