"""GID (Dai et al., "General Instance Distillation for Object Detection", CVPR 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _checks as check
from ._common import pair, root

FORMS = ("norm", "squared")
HEADS = ("sigmoid", "softmax")


def gid_feature_loss(student: Tensor, teacher: Tensor, form: str = "norm") -> Tensor:
    r"""Features of K instances: :math:`\frac{1}{K} \sum_i \|t_i - s_i\|_2` over each instance's whole block.

    Args:
        student, teacher: (K, C, h, w), pooled from the maps, the student's adapted.
        form: "norm" is the paper's; "squared" is the release's sum of squares / (K h w).

    Returns:
        A scalar, 0 for K = 0. Gradients flow to ``student``. It is a mean over instances: where processes have unequal
        numbers of them, it depends on the split.
    """
    name = "gid_feature_loss"
    student, teacher = pair(name, student, teacher.detach(), ("K", "C", "h", "w"))
    check.choice(name, "form", form, FORMS)
    squares = (student - teacher).square().flatten(1).sum(1)
    if form == "norm":
        return root(squares).sum() / max(len(squares), 1)
    return squares.sum() / max(len(squares) * student.shape[2] * student.shape[3], 1)


def gid_relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Distances between instances, in units of their mean, alike in student and teacher.

    .. math:: L = \frac{1}{K^2 - K} \sum_{i \neq j} smooth_{L1}\Big(\frac{\|t_i - t_j\|}{\bar t} - \frac{\|s_i - s_j\|}{\bar s}\Big)

    with the bar the mean of the off-diagonal distances and beta = 1. Distances come from one matrix product, which for the
    lengths at hand (C h w, often 25 600) is the limit; a kernel of ours would not beat it.

    Args:
        student: (K, ...), flattened. teacher: (K, ...), which may be of another length.

    Returns:
        A scalar, 0 for K < 3. Gradients flow to ``student``. Instances of all images are compared with each other: the loss
        **depends on how a batch is split**, and there is no form of it that does not.
    """
    name = "gid_relation_loss"
    for argument, tensor in (("student", student), ("teacher", teacher)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.dim() < 2:
            raise check.fail(
                name, argument, "a floating-point tensor (K, ...)", getattr(tensor, "shape", type(tensor).__name__)
            )
    if len(student) != len(teacher):
        raise check.fail(name, "teacher", f"of {len(student)} instances like student", len(teacher))
    check.same_device(name, student=student, teacher=teacher)
    count = len(student)
    if count < 3:
        return 0.0 * student.sum(dtype=check.accumulate_dtype(student.dtype))
    ours, theirs = _distances(student), _distances(teacher.detach())
    return F.smooth_l1_loss(ours, theirs, reduction="sum") / (count * count - count)


def gid_response_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    mask: Tensor,
    *,
    head: str = "sigmoid",
    cls_weight: float = 0.1,
    box_weight: float = 1.0,
) -> Tensor:
    r"""Scores and boxes at the anchors that lie on instances.

    .. math:: L = \frac{1}{\sum M} \sum_n M_n \big(\alpha L_{cls}(s_n, t_n) + \beta \|r^s_n - r^t_n\|_1\big)

    L_cls is the cross-entropy against the teacher's probabilities: two-way, summed over the columns, for "sigmoid" heads, over
    all columns for "softmax" ones (the paper distils the detector's own kind of loss).

    Args:
        student_logits, teacher_logits: (N, C).
        student_boxes, teacher_boxes: (N, 4), in the code of the box coder.
        mask: (N,) bool.
        head: "sigmoid" or "softmax". cls_weight: alpha. box_weight: beta.

    Returns:
        A scalar, 0 where nothing is marked. Gradients flow to the student's two. It is a mean over marked anchors: where
        processes have unequal numbers of them, it depends on the split.
    """
    name = "gid_response_loss"
    student_logits, teacher_logits = pair(name, student_logits, teacher_logits.detach(), ("N", "C"), "logits")
    student_boxes, teacher_boxes = pair(name, student_boxes, teacher_boxes.detach(), (len(student_logits), 4), "boxes")
    check.choice(name, "head", head, HEADS)
    if mask.shape != (len(student_logits),):
        raise check.fail(name, "mask", f"of shape ({len(student_logits)},)", f"shape {tuple(mask.shape)}")
    rows = torch.where(mask)[0]
    logits, wanted = student_logits[rows], teacher_logits[rows]
    if head == "sigmoid":
        scores = F.binary_cross_entropy_with_logits(logits, wanted.sigmoid(), reduction="sum")
    else:
        scores = -(wanted.softmax(1) * logits.log_softmax(1)).sum()
    boxes = (student_boxes[rows] - teacher_boxes[rows]).abs().sum()
    return (cls_weight * scores + box_weight * boxes) / max(len(rows), 1)


def _distances(instances: Tensor) -> Tensor:
    """(K, K) distances over the mean of the off-diagonal ones. By the matrix product, in the dtype of sums, without autocast."""
    with torch.autocast(instances.device.type, enabled=False):
        rows = instances.flatten(1).to(check.accumulate_dtype(instances.dtype))
        rows = rows - rows.detach().mean(0)  # distances do not change, and the product loses fewer digits
        squares = rows.square().sum(1)
        distances = root((squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=0))
        distances = distances * (1 - torch.eye(len(rows), dtype=rows.dtype, device=rows.device))
        mean = distances.sum() / (len(rows) * (len(rows) - 1))
        return distances / torch.where(mean > 0, mean, 1)
