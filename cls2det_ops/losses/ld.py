"""LD (Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.kd_softmax_loss import kd_softmax_loss


def ld_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 10.0,
    weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Divergence of box-edge distributions, for heads that predict each edge as a softmax over bins.

    .. math:: L = \frac{1}{N} \sum_k w_k \sum_{e=1}^{4} T^2 \, KL\big(softmax(t_{ke} / T) \,\|\, softmax(s_{ke} / T)\big)

    Summed over the bins and the four edges; mmdetection's form takes the mean over bins, so that its weights are n times as
    large. It is :func:`kd_softmax_loss` with a row for each edge.

    Args:
        student, teacher: (K, 4, n) logits. temperature: T > 0, 10 in the paper.
        weight: (K,), or None for ones; a row of weight 0 is out, even if it is NaN.
        normalizer: N, a number or a tensor of one element; None for K.

    Returns:
        A scalar. Gradients flow to ``student``. With an explicit normalizer it does not depend on how a batch is split.
    """
    name = "ld_loss"
    check.floating(name, "student", student, ("K", 4, "n"))
    check.floating(name, "teacher", teacher, tuple(student.shape))
    if student.shape[2] == 0:
        raise check.fail(name, "student", "of at least one bin", "none")
    if weight is not None:
        check.floating(name, "weight", weight, (len(student),))
        weight = weight.repeat_interleave(4)
    edges = student.flatten(0, 1), teacher.flatten(0, 1), torch.arange(4 * len(student), device=student.device)
    normalizer = max(len(student), 1) if normalizer is None else normalizer
    return kd_softmax_loss(*edges, temperature, "none", weight=weight, normalizer=normalizer, reduction="sum")
