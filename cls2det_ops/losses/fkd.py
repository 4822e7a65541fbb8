"""FKD (Zhang and Ma, "Improve Object Detection with Feature-based Knowledge Distillation", ICLR 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.masked_feature_loss import masked_feature_loss
from ._common import add_up, attention_masks, root


def fkd_masks(student: Tensor, teacher: Tensor, temperature: float = 0.5) -> tuple[Tensor, Tensor]:
    r"""Where, and in which channels, student and teacher together look: the mean of their attention masks.

    .. math:: m^s(F) = HW \, softmax_{hw}\big(\tfrac{1}{C} \sum_c |F_c| / T\big), \quad
              m^c(F) = C \, softmax_c\big(\tfrac{1}{HW} \sum_{hw} |F_{hw}| / T\big)

    As in the authors' release, which averages two softmaxes; the paper can also be read as one softmax of the sum.

    Args:
        student: (B, C, H, W), before any adapter.
        teacher: (B, C', H, W). If C' differs from C, the channel mask is the teacher's alone.
        temperature: T > 0.

    Returns:
        Spatial mask (B, H, W) and channel mask (B, C'), of mean 1, without gradient.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape or device.
    """
    name = "fkd_masks"
    check.feature_map(name, "student", student)
    check.floating(name, "teacher", teacher, (student.shape[0], "C", *student.shape[2:]))
    temperature = check.positive(name, "temperature", temperature)
    student_spatial, student_channel = attention_masks(student.detach(), temperature)
    spatial, channel = attention_masks(teacher.detach(), temperature)
    if student.shape[1] == teacher.shape[1]:
        channel = (student_channel + channel) / 2
    return (student_spatial + spatial) / 2, channel


def root_feature_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    channel_mask: Tensor | None = None,
    *,
    per_image: bool = False,
) -> Tensor:
    r"""Root of the masked sum of squared differences: FKD's attention-guided and non-local terms.

    .. math:: L = \Big(\sum_{b,c,y,x} M_{byx} \, m_{bc} \, (S_{bcyx} - T_{bcyx})^2\Big)^{1/2}

    The root is over the whole batch, as in the release: the loss grows with the root of the batch size and **depends on how a
    batch is split** over processes. With ``per_image`` it is the mean over images of each image's root, which does not
    (for equal shares).

    Args:
        student, teacher: (B, C, H, W).
        mask: (B, H, W), or None for ones. channel_mask: (B, C), or None.
        per_image: see above.

    Returns:
        A scalar. Gradients flow to student **and** teacher, whose non-local block is trained; at a difference of 0 they are 0.
    """
    name = "root_feature_loss"
    check.feature_map(name, "student", student)
    check.floating(name, "teacher", teacher, tuple(student.shape))
    check.flag(name, "per_image", per_image)
    rows = masked_feature_loss(student, teacher, mask, channel_mask, normalizer=1.0, reduction="none")
    return _batch_root(rows, per_image)


def fkd_attention_loss(
    student_spatial: Tensor,
    teacher_spatial: Tensor,
    student_channel: Tensor,
    teacher_channel: Tensor,
    *,
    per_image: bool = False,
) -> Tensor:
    r"""Attention transfer: :math:`\|G^s_S - G^s_T\|_2 + \|G^c_S - G^c_T\|_2`, whole-batch norms.

    Args:
        student_spatial, teacher_spatial: (B, H, W) or (B, 1, H, W), means over channels (``attention_means(...,
            absolute=False)``), the student's adapted.
        student_channel, teacher_channel: (B, C), means over places.
        per_image: as in :func:`root_feature_loss`, and with the same dependence on the split of a batch without it.

    Returns:
        A scalar. Gradients flow to all four.
    """
    name = "fkd_attention_loss"
    check.flag(name, "per_image", per_image)
    norms = []
    for kind, shape, student, teacher in (
        ("spatial", ("B", "H", "W"), _plane(student_spatial), _plane(teacher_spatial)),
        ("channel", ("B", "C"), student_channel, teacher_channel),
    ):
        check.floating(name, f"student_{kind}", student, shape)
        check.floating(name, f"teacher_{kind}", teacher, tuple(student.shape))
        dtype = check.accumulate_dtype(torch.promote_types(student.dtype, teacher.dtype))
        squares = (student.to(dtype) - teacher.to(dtype)).square()
        norms.append(_batch_root(squares.flatten(1).sum(1), per_image))
    return add_up(norms)


def _plane(spatial: Tensor) -> Tensor:
    """(B, H, W) of a map of one channel."""
    return spatial[:, 0] if isinstance(spatial, Tensor) and spatial.dim() == 4 and spatial.shape[1] == 1 else spatial


def _batch_root(rows: Tensor, per_image: bool) -> Tensor:
    return root(rows).sum() / max(len(rows), 1) if per_image else root(rows.sum())
