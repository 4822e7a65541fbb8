"""BCKD (Yang et al., "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection", ICCV 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _checks as check
from ._common import divided, pair, row_weight


def bckd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 1.0,
    *,
    weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Scores of sigmoid heads: two-way cross-entropy against the teacher's, by how far the two are apart.

    .. math:: L = \frac{1}{N} \sum_{n,c} w_n \, |\sigma(t_{nc}) - \sigma(s_{nc})|^\beta \, BCE\big(s_{nc}, \sigma(t_{nc})\big)

    Equations 4 and 5 of the paper; the factor has no gradient. Element-wise arithmetic on maps that the head has just written;
    torch.compile fuses it.

    Args:
        student_logits, teacher_logits: (N, C), without a background column. beta: power of the factor, at least 0.
        weight: (N,), or None for ones. normalizer: a number or a tensor of one element (positives, in the paper); None for N.

    Returns:
        A scalar. Gradients flow to ``student_logits``. With an explicit normalizer it does not depend on how a batch is split.
    """
    name = "bckd_loss"
    student, teacher = pair(name, student_logits, teacher_logits.detach(), ("N", "C"), "logits")
    if not beta >= 0:
        raise check.fail(name, "beta", "at least 0", beta)
    soft = teacher.sigmoid()
    factor = (soft - student.detach().sigmoid()).abs() ** beta
    rows = (factor * F.binary_cross_entropy_with_logits(student, soft, reduction="none")).sum(1)
    weight = row_weight(name, weight, rows)
    return divided(name, rows.sum() if weight is None else (rows * weight).sum(), normalizer, len(rows))


def bckd_box_loss(
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    weight: Tensor | None = None,
    *,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Boxes: :math:`\frac{1}{N} \sum_k w_k (1 - GIoU(s_k, t_k))`, the localisation part of the paper.

    Args:
        student_boxes, teacher_boxes: (K, 4) xyxy. weight: (K,), the teacher's confidence, or None for ones.
        normalizer: a number or a tensor of one element; None for K.

    Returns:
        A scalar. Gradients flow to ``student_boxes``. With an explicit normalizer it does not depend on how a batch is split.
    """
    name = "bckd_box_loss"
    student, teacher = pair(name, student_boxes, teacher_boxes.detach(), ("K", 4), "boxes")
    rows = 1 - _giou(student, teacher)
    weight = row_weight(name, weight, rows)
    return divided(name, rows.sum() if weight is None else (rows * weight).sum(), normalizer, len(rows))


def _giou(one: Tensor, other: Tensor) -> Tensor:
    """Generalised IoU of boxes in pairs (Rezatofighi et al., CVPR 2019)."""

    def area(sides: Tensor) -> Tensor:
        return sides[:, 0] * sides[:, 1]

    own = area(one[:, 2:] - one[:, :2]) + area(other[:, 2:] - other[:, :2])
    low, high = torch.maximum(one[:, :2], other[:, :2]), torch.minimum(one[:, 2:], other[:, 2:])
    inner = area((high - low).clamp(min=0))
    hull = area(torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2]))
    union, tiny = own - inner, torch.finfo(one.dtype).eps
    return inner / (union + tiny) - (hull - union) / (hull + tiny)
