"""LD (Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.kd_softmax_loss import kd_softmax_loss
from ._common import divided, row_weight


def ld_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 10.0,
    *,
    weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Divergence of box-edge distributions, for heads that predict each edge as a softmax over bins.

    .. math:: L = \frac{1}{N} \sum_k w_k \sum_{e=1}^{4} T^2 \, KL\big(softmax(t_{ke} / T) \,\|\, softmax(s_{ke} / T)\big)

    Summed over the bins and the four edges; mmdetection's form takes the mean over bins, so that its weights are n times as
    large. It is :func:`kd_softmax_loss` with a row for each edge.

    Args:
        student, teacher: (K, 4, n) logits. temperature: T > 0, 10 in the paper.
        weight: (K,), or None for ones. normalizer: N, a number or a tensor of one element; None for K.

    Returns:
        A scalar. Gradients flow to ``student``. With an explicit normalizer it does not depend on how a batch is split.
    """
    name = "ld_loss"
    check.floating(name, "student", student, ("K", 4, "n"))
    check.floating(name, "teacher", teacher, tuple(student.shape))
    count = len(student)
    each = torch.arange(4 * count, device=student.device)
    rows = kd_softmax_loss(student.flatten(0, 1), teacher.flatten(0, 1), each, temperature, "none", reduction="none")
    rows = rows.view(count, 4).sum(1)
    weight = row_weight(name, weight, rows)
    return divided(name, rows.sum() if weight is None else (rows * weight).sum(), normalizer, count)
