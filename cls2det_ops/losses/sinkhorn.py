"""Entropic optimal transport, for distributions of local predictions (Guo et al., CVPR 2023, on 6D pose keypoints)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks as check


def sinkhorn_loss(
    cost: Tensor,
    student_weights: Tensor,
    teacher_weights: Tensor,
    *,
    epsilon: float = 0.1,
    iterations: int = 50,
) -> Tensor:
    r"""Cost of moving the student's weights onto the teacher's, for a batch of problems, by Sinkhorn's iterations in the log domain.

    .. math:: L_b = \sum_{nm} P_{nm} c_{nm}, \quad
              P = \arg\min_{P \mathbf{1} = a,\, P^T \mathbf{1} = b} \langle P, c \rangle + \epsilon \sum_{nm} P_{nm} (\log P_{nm} - 1)

    Each network's local predictions are weighted points, and aligning the two distributions needs no one-to-one match between
    them. Weights are scaled to a sum of 1. Sets of unequal size share one tensor: a point of weight 0 takes no part, whatever
    its cost. The iterations are batched matrix reductions, memory-bound and few, in PyTorch's own fused logsumexp; they run in
    float32 or float64 and hold for costs hundreds of times epsilon, where the multiplicative form underflows.

    Args:
        cost: (B, N, M), of moving student point n to teacher point m: ``torch.cdist(p, q) ** 2``, say.
        student_weights: (B, N); less than 0 counts as 0. teacher_weights: (B, M).
        epsilon: of the entropy, in units of the cost. Smaller is nearer to the unregularised transport, and needs more iterations.
        iterations: of both marginals; a fixed number, so that nothing waits for a GPU.

    Returns:
        (B,). The gradient to ``cost`` is the plan P, by the envelope theorem that of the regularised objective; it flows through
        neither the iterations nor the weights. A problem whose weights of one side are all 0 gives 0.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape, device or range.
    """
    name = "sinkhorn_loss"
    check.floating(name, "cost", cost, ("B", "N", "M"))
    check.floating(name, "student_weights", student_weights, tuple(cost.shape[:2]))
    check.floating(name, "teacher_weights", teacher_weights, (cost.shape[0], cost.shape[2]))
    check.same_device(name, cost=cost, student_weights=student_weights, teacher_weights=teacher_weights)
    epsilon = check.positive(name, "epsilon", epsilon)
    if not isinstance(iterations, int) or iterations < 1:
        raise check.fail(name, "iterations", "a positive integer", iterations)
    dtype = check.accumulate_dtype(cost.dtype)
    cost = cost.to(dtype)
    if not cost.numel():
        return cost.sum((1, 2))
    a, b = (weights.detach().to(dtype).clamp(min=0) for weights in (student_weights, teacher_weights))
    cost = torch.where((a > 0)[:, :, None] & (b > 0)[:, None], cost, 0)
    with torch.no_grad():
        plan = _plan(-cost / epsilon, _log_weights(a), _log_weights(b), iterations)
    return (plan * torch.where(plan > 0, cost, 0)).sum((1, 2))


def _log_weights(weights: Tensor) -> Tensor:
    """Logarithm of the weights over their sum; -inf for 0."""
    total = weights.sum(1, keepdim=True)
    return (weights / torch.where(total > 0, total, 1)).log()


def _plan(kernel: Tensor, log_a: Tensor, log_b: Tensor, iterations: int) -> Tensor:
    """(B, N, M) from the kernel's logarithm. A potential of a point without weight is -inf, and its row or column 0."""
    g = torch.zeros_like(log_b).masked_fill(log_b.isneginf(), -torch.inf)
    for _ in range(iterations):
        f = _potential(log_a, kernel + g[:, None])
        g = _potential(log_b, (kernel + f[:, :, None]).mT)
    return (f[:, :, None] + kernel + g[:, None]).exp()


def _potential(log_weight: Tensor, rows: Tensor) -> Tensor:
    moved = log_weight - rows.logsumexp(2)
    return torch.where(log_weight.isneginf() | moved.isnan() | moved.isposinf(), -torch.inf, moved)
