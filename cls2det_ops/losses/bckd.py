"""BCKD (Yang et al., "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection", ICCV 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _checks as check
from ..ops._common import reduce_rows
from ._common import pair, without_weightless


def bckd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 1.0,
    weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Scores of sigmoid heads: two-way cross-entropy against the teacher's, by how far the two are apart.

    .. math:: L = \frac{1}{N} \sum_{n,c} w_n \, |\sigma(t_{nc}) - \sigma(s_{nc})|^\beta \, BCE\big(s_{nc}, \sigma(t_{nc})\big)

    No gradient flows through the factor. The arithmetic is element-wise, in plain PyTorch.

    Args:
        student_logits, teacher_logits: (N, C), without a background column. beta: power of the factor, at least 0.
        weight: (N,), or None for ones; a row of weight 0 is out, even if it is NaN.
        normalizer: a number or a tensor of one element (positives, in the paper); None for N.

    Returns:
        A scalar. Gradients flow to ``student_logits``. With an explicit normalizer it does not depend on how a batch is split.
    """
    name = "bckd_loss"
    student, teacher = pair(name, student_logits, teacher_logits, ("N", "C"), "logits")
    beta = check.not_negative(name, "beta", beta)
    student, teacher = without_weightless(name, weight, student, teacher)
    soft = teacher.sigmoid()
    factor = (soft - student.detach().sigmoid()).abs() ** beta
    rows = (factor * F.binary_cross_entropy_with_logits(student, soft, reduction="none")).sum(1)
    return reduce_rows(name, rows, weight, normalizer, "mean")


def bckd_box_loss(
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Boxes: :math:`\frac{1}{N} \sum_k w_k (1 - GIoU(s_k, t_k))`, the localisation part of the paper.

    Args:
        student_boxes, teacher_boxes: (K, 4) xyxy with x1 <= x2 and y1 <= y2, in any unit.
        weight: (K,), the teacher's confidence, or None for ones.
        normalizer: a number or a tensor of one element; None for K.

    Returns:
        A scalar. Gradients flow to ``student_boxes``. With an explicit normalizer it does not depend on how a batch is split.
    """
    name = "bckd_box_loss"
    student, teacher = pair(name, student_boxes, teacher_boxes, ("K", 4), "boxes")
    if check.debug_enabled():
        check.box_values(name, "student_boxes", student)
        check.box_values(name, "teacher_boxes", teacher)
    student, teacher = without_weightless(name, weight, student, teacher)
    return reduce_rows(name, 1 - _giou(student, teacher), weight, normalizer, "mean")


def _giou(one: Tensor, other: Tensor) -> Tensor:
    """Generalised IoU of boxes in pairs (Rezatofighi et al., CVPR 2019)."""
    iou, empty = overlaps(one, other)
    return iou - empty


def overlaps(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """IoU of pairs of boxes, and the share of the box around both that neither covers. Both are ratios: boxes of any size fit."""
    largest = torch.cat([one, other], 1).detach().abs().amax(1, keepdim=True)
    one, other = (boxes / torch.where(largest > 0, largest, 1) for boxes in (one, other))

    def area(sides: Tensor) -> Tensor:
        return sides[:, 0] * sides[:, 1]

    areas = area(one[:, 2:] - one[:, :2]) + area(other[:, 2:] - other[:, :2])
    low, high = torch.maximum(one[:, :2], other[:, :2]), torch.minimum(one[:, 2:], other[:, 2:])
    inner = area((high - low).clamp(min=0))
    hull = area(torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2]))
    union = areas - inner
    return _ratio(inner, union), _ratio(hull - union, hull)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 where the whole is 0."""
    return part / torch.where(whole > torch.finfo(whole.dtype).tiny, whole, 1)
