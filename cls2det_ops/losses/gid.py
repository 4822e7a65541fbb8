"""GID (Dai et al., "General Instance Distillation for Object Detection", CVPR 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _checks as check
from ._common import cross_entropy, instances, pair, root, weights

FORMS = ("norm", "squared")
HEADS = ("sigmoid", "softmax")


def gid_feature_loss(student: Tensor, teacher: Tensor, form: str = "norm") -> Tensor:
    r"""Features of K instances: :math:`\frac{1}{K} \sum_i \|t_i - s_i\|_2` over each instance's whole block.

    Args:
        student, teacher: (K, ...), flattened, of one shape: (K, C, h, w) pooled from the maps, the student's adapted.
        form: "norm" is the paper's; "squared" is the release's sum of squares / (K h w), for (K, C, h, w).

    Returns:
        A scalar, 0 for K = 0. Gradients flow to ``student``. It is a mean over instances: where processes have unequal
        numbers of them, it depends on the split.
    """
    name = "gid_feature_loss"
    check.choice(name, "form", form, FORMS)
    if form == "norm":
        instances(name, "student", student)
    shape = tuple(student.shape) if form == "norm" else ("K", "C", "h", "w")
    student, teacher = pair(name, student, teacher, shape)
    squares = (student - teacher).square().flatten(1).sum(1)
    if form == "norm":
        return root(squares).sum() / max(len(squares), 1)
    return squares.sum() / max(len(squares) * student.shape[2] * student.shape[3], 1)


def gid_relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Distances between instances, in units of their mean, alike in student and teacher.

    .. math:: L = \frac{1}{K^2 - K} \sum_{i \neq j} smooth_{L1}\Big(\frac{\|t_i - t_j\|}{\bar t} - \frac{\|s_i - s_j\|}{\bar s}\Big)

    with the bar the mean of the off-diagonal distances and beta = 1. Distances come from one matrix product in PyTorch:
    for instances of this length (C h w, often 25 600) no kernel of ours is faster.

    Args:
        student: (K, ...), flattened. teacher: (K, ...), which may be of another length.

    Returns:
        A scalar, 0 for K < 3. Gradients flow to ``student``. Instances of all images are compared with each other: the loss
        **depends on how a batch is split**, and there is no form of it that does not.
    """
    name = "gid_relation_loss"
    instances(name, "student", student)
    instances(name, "teacher", teacher)
    if len(student) != len(teacher):
        raise check.fail(name, "teacher", f"of {len(student)} instances like student", len(teacher))
    check.same_device(name, student=student, teacher=teacher)
    count = len(student)
    if count < 3 or not student.numel() or not teacher.numel():
        return student[:0].sum(dtype=check.accumulate_dtype(student.dtype))
    student_distances, teacher_distances = _distances(student), _distances(teacher.detach())
    return F.smooth_l1_loss(student_distances, teacher_distances, reduction="sum") / (count * count - count)


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
        mask: M, (N,) bool or weights. Rows of 0 are not read.
        head: "sigmoid" or "softmax". cls_weight: alpha. box_weight: beta.

    Returns:
        A scalar, 0 where nothing is marked. Gradients flow to the student's two. It is a mean over marked anchors: where
        processes have unequal numbers of them, it depends on the split.
    """
    name = "gid_response_loss"
    student_logits, teacher_logits = pair(name, student_logits, teacher_logits, ("N", "C"), "logits")
    student_boxes, teacher_boxes = pair(name, student_boxes, teacher_boxes, (len(student_logits), 4), "boxes")
    check.choice(name, "head", head, HEADS)
    cls_weight = check.not_negative(name, "cls_weight", cls_weight)
    box_weight = check.not_negative(name, "box_weight", box_weight)
    mask = weights(name, "mask", mask, (len(student_logits),))
    check.same_device(name, student_logits=student_logits, student_boxes=student_boxes, mask=mask)
    rows = torch.where(mask)[0]  # few of many: to read the others would cost more than to wait for their number
    logits, targets = student_logits[rows], teacher_logits[rows]
    if head == "sigmoid":
        scores = F.binary_cross_entropy_with_logits(logits, targets.sigmoid(), reduction="none")
    else:
        scores = cross_entropy(logits, targets.softmax(1))
    boxes = (student_boxes[rows] - teacher_boxes[rows]).abs()
    terms = cls_weight * scores.sum(1) + box_weight * boxes.sum(1)
    total = mask.sum()
    return (mask[rows] * terms).sum() / torch.where(total > 0, total, 1)


def _distances(features: Tensor) -> Tensor:
    """(K, K) distances over the mean of the off-diagonal ones. By the matrix product, in the dtype of sums, without autocast."""
    with torch.autocast(features.device.type, enabled=False):
        rows = features.flatten(1).to(check.accumulate_dtype(features.dtype))
        largest = rows.detach().abs().amax()
        rows = rows / torch.where(largest > 0, largest, 1)  # the ratio has no unit, and squares of any features fit
        rows = rows - rows.detach().mean(0)  # distances do not change, and the product loses fewer digits
        squares = rows.square().sum(1)
        distances = root((squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=0))
        distances = distances * (1 - torch.eye(len(rows), dtype=rows.dtype, device=rows.device))
        mean = distances.sum() / (len(rows) * (len(rows) - 1))
        return distances / torch.where(mean > 0, mean, 1)
