"""Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", NeurIPS 2017."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks as check
from ..ops._common import reduce_rows
from ._common import cross_entropy, pair

BACKGROUNDS = ("first", "last")


def chen_class_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    background_weight: float = 1.5,
    background: str = "first",
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Soft labels for every sampled box, background among them: :math:`L = -\frac{1}{R} \sum_r \sum_c w_c P^t_{rc} \log P^s_{rc}`.

    w is ``background_weight`` in the background's column and 1 elsewhere. A cross-entropy, not a
    divergence: it is not 0 where student and teacher agree. R is some hundreds, and plain PyTorch is fast enough.

    Args:
        student_logits, teacher_logits: (R, C + 1).
        background_weight: 1.5 in the paper. background: its column, "first" or "last".
        temperature: T > 0, 1 in the paper; the loss is not multiplied by its square.
        reduction: "mean", "sum" or "none" over rows.

    Returns:
        A scalar, 0 for R = 0, or (R,) for "none". Gradients flow to ``student_logits``. A mean over rows: it does not depend on
        the split of a batch into equal numbers of boxes. A class of probability 0 costs nothing, whatever its logits.
    """
    name = "chen_class_loss"
    student, teacher = pair(name, student_logits, teacher_logits, ("R", "C"), "logits")
    if student.shape[1] == 0:
        raise check.fail(name, "student_logits", "of at least one column", "none")
    temperature = check.positive(name, "temperature", temperature)
    column = -check.choice(name, "background", background, BACKGROUNDS)
    weight = student.new_ones(student.shape[1])
    weight[column] = check.not_negative(name, "background_weight", background_weight)
    terms = cross_entropy(student / temperature, (teacher / temperature).softmax(1))
    return reduce_rows(name, (weight * terms).sum(1), None, None, reduction)


def chen_bounded_loss(student_boxes: Tensor, teacher_boxes: Tensor, target_boxes: Tensor, *, margin: float = 0.0) -> Tensor:
    r"""Squared error of the boxes that the student regresses worse than the teacher does; the others are left alone.

    .. math:: L_r = \|s_r - y_r\|^2 \; \text{if} \; \|s_r - y_r\|^2 + m > \|t_r - y_r\|^2, \; \text{else} \; 0

    The decision is per box (a known port decides once for the whole batch).

    Args:
        student_boxes, teacher_boxes, target_boxes: (R, 4), in the code of the box coder.
        margin: m, in squared units of it; not given in the paper.

    Returns:
        The mean over R, 0 for R = 0. Gradients flow to ``student_boxes``. It does not depend on the split of a batch into equal
        numbers of boxes.
    """
    name = "chen_bounded_loss"
    student, teacher = pair(name, student_boxes, teacher_boxes, ("R", 4), "boxes")
    check.floating(name, "target_boxes", target_boxes, tuple(student.shape))
    check.same_device(name, student_boxes=student, target_boxes=target_boxes)
    margin = check.not_negative(name, "margin", margin)
    target = target_boxes.detach().to(student.dtype)
    error, bound = ((boxes - target).square().sum(1) for boxes in (student, teacher))
    return torch.where(error + margin <= bound, 0, error).sum() / max(len(error), 1)
