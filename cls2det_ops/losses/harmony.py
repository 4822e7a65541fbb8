"""Harmony: distillation that asks class scores and boxes to agree. The method and its equations are ours.

The idea is from the abstract of Tang et al., "Task-Balanced Distillation for Object Detection" (TBD, 2022). We could not get that
paper's equations, so these are not TBD, and results with them say nothing about TBD. The idea: a teacher's prediction has a high
class score where its box is good more often than a student's prediction does. So predictions count by that harmony, and features
count where either task looks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.masked_feature_loss import masked_feature_loss
from ._common import add_up, weights
from .bckd import overlaps


def harmony_score(scores: Tensor, boxes: Tensor, target_boxes: Tensor) -> tuple[Tensor, Tensor]:
    r"""How far a detector's class score and its box agree that there is an object: :math:`h_k = p_k \, IoU(b_k, g_k)`.

    The equation is ours (see the module).

    Args:
        scores: (K,) probability of the true class, in [0, 1].
        boxes, target_boxes: (K, 4) xyxy, predicted and true, with x1 <= x2 and y1 <= y2.

    Returns:
        h and the IoU, (K,) each, in float32 (float64 where an argument is), without a gradient.
    """
    name = "harmony_score"
    check.floating(name, "scores", scores, ("K",))
    check.floating(name, "boxes", boxes, (scores.shape[0], 4))
    check.floating(name, "target_boxes", target_boxes, (scores.shape[0], 4))
    check.same_device(name, scores=scores, boxes=boxes, target_boxes=target_boxes)
    dtype = check.accumulate_dtype(torch.promote_types(boxes.dtype, target_boxes.dtype))
    iou, _ = overlaps(boxes.detach().to(dtype), target_boxes.detach().to(dtype))
    return scores.detach() * iou, iou


def harmony_feature_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    cls_masks: Sequence[Tensor],
    box_masks: Sequence[Tensor],
    balance: float = 0.5,
) -> Tensor:
    r"""Squared difference of features, half of it where the classification looks and half where the regression does.

    .. math:: L = \frac{1}{B C} \sum_{l,b,y,x} \Big(\beta \frac{P^l_{byx}}{\sum_{l,y,x} P_b} + (1 - \beta)
              \frac{U^l_{byx}}{\sum_{l,y,x} U_b}\Big) \sum_c (S^l_{bcyx} - T^l_{bcyx})^2

    A mask that is 0 in all of an image adds nothing there. One pass over the maps by :func:`masked_feature_loss`. The loss does not
    depend on how a batch is split into equal shares. The equation is ours (see the module).

    Args:
        student, teacher: (B, C, h, w) of each level, the student's adapted to the teacher's channels.
        cls_masks: P, (B, h, w) of each level, the teacher's class scores, say.
        box_masks: U, (B, h, w) of each level, how well the teacher's boxes fit, say.
        balance: β, the share of the classification, in [0, 1].

    Returns:
        A scalar. Gradients flow to ``student``.

    Raises:
        TypeError, ValueError: levels that differ in number, an argument of wrong dtype, shape, device or value range.
    """
    name = "harmony_feature_loss"
    if not len(student) == len(teacher) == len(cls_masks) == len(box_masks) > 0:
        levels = f"{len(student)}, {len(teacher)}, {len(cls_masks)} and {len(box_masks)}"
        raise check.fail(name, "student, teacher, cls_masks and box_masks", "of one number of levels", levels)
    if check.not_negative(name, "balance", balance) > 1:
        raise check.fail(name, "balance", "in [0, 1]", balance)
    for level, (student_map, teacher_map) in enumerate(zip(student, teacher, strict=True)):
        check.feature_map(name, f"student[{level}]", student_map)
        check.floating(name, f"teacher[{level}]", teacher_map, tuple(student_map.shape))
    shares = [
        _shares(name, of, masks, student, share)
        for of, masks, share in (("cls_masks", cls_masks, balance), ("box_masks", box_masks, 1 - balance))
    ]
    return add_up(
        masked_feature_loss(
            student_map, teacher_map.detach(), cls + box, normalizer=max(student_map.shape[0] * student_map.shape[1], 1)
        )
        for student_map, teacher_map, cls, box in zip(student, teacher, *shares, strict=True)
    )


def _shares(function: str, of: str, masks: Sequence[Tensor], student: Sequence[Tensor], share: float) -> list[Tensor]:
    """The masks, scaled so that each image's sum over all levels is ``share``."""
    masks = [
        weights(function, f"{of}[{level}]", mask, (student_map.shape[0], *student_map.shape[2:]))
        for level, (mask, student_map) in enumerate(zip(masks, student, strict=True))
    ]
    total = add_up(mask.flatten(1).sum(1) for mask in masks)
    total = torch.where(total > 0, total, 1)[:, None, None]
    return [mask / total * share for mask in masks]  # the division first: share / total is infinite for a tiny total
