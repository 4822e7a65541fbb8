"""Temperature-softmax distillation of a classifier's logits into the positives of a detector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks as check
from .. import reference
from .._library import native
from ..explain import warn_of_mistakes
from ._common import (
    factor_of_rows,
    reduce_rows,
    register_autograd,
    register_fake,
    run,
    save_row_gradients,
    wants_gradient,
    without_weightless,
)


def kd_softmax_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    matched_idxs: Tensor,
    temperature: float = 2.0,
    background: str = "first",
    *,
    weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Kullback-Leibler divergence of the student's from the teacher's softened class probabilities.

    .. math:: L_k = T^2 \sum_c P^t_{m(k),c} \big(\log P^t_{m(k),c} - \log P^s_{k,c}\big), \quad
              P^s = softmax(z^s / T), \; P^t = [softmax(z^t / T), 0]

    The KD-cls term of "Distilling Image Classifiers in Object Detectors" (NeurIPS 2021), equations 1 to 4: the sum runs
    over classes, the teacher's softmax does not see a background logit, and its background probability is 0.
    The gradient of a row is :math:`T (P^s - P^t)`.

    Args:
        student_logits: (K, C + 1) of the positives, or (K, C) with ``background="none"``; float32, float64, float16 or
            bfloat16, any strides.
        teacher_logits: (G, C) of the ground-truth crops, the same classes in the same order. A student with more columns
            than that (torchvision's COCO models have 91, with gaps) is cut to match: ``student_logits[:, [0, *category_ids]]``.
        matched_idxs: (K,) int64 or int32, the ground truth, in [0, G), of each positive: not its label.
        temperature: T > 0; the paper uses 2.
        background: the student's background column: "first" (torchvision), "last" (detectron2, mmdetection) or "none".
        weight, normalizer, reduction: as in :func:`roi_feature_loss`. The paper divides by the number of positives.

    Returns:
        A scalar, or (K,) for "none", in float32 (float64 for float64 logits).

    Gradients flow to ``student_logits`` only. Rows with a match outside [0, G) are ignored (0, no gradient).
    A teacher logit of -inf is a class of probability 0 and 0 log 0 is 0; a student logit of -inf where the teacher has
    probability gives +inf. NaN and +inf logits give a NaN row. :func:`debug_values` reports infinite logits.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape, device or value range, named with what was found.
    """
    name = "kd_softmax_loss"
    factor, normalizer, reduction = factor_of_rows(name, student_logits, normalizer, reduction)
    rows = kd_softmax_rows(student_logits, teacher_logits, matched_idxs, temperature, background, weight, factor)
    return reduce_rows(name, rows, weight, normalizer, reduction)


def kd_softmax_rows(
    student_logits: Tensor,
    teacher_logits: Tensor,
    matched_idxs: Tensor,
    temperature: float,
    background: str,
    weight: Tensor | None,
    factor: float,
) -> Tensor:
    """The (K,) losses of the rows times ``factor``; the weight only tells which rows are out."""
    name = "kd_softmax_loss"
    student_logits, teacher_logits, matched_idxs, column = matched_logits(
        name, student_logits, teacher_logits, matched_idxs, background
    )
    temperature = check.positive(name, "temperature", temperature)
    if native(student_logits):
        rows: Tensor = run(
            name,
            student_logits=student_logits,
            teacher_logits=teacher_logits,
            matched_idxs=matched_idxs,
            temperature=temperature,
            background=column,
            need_grad=wants_gradient(student_logits),
            factor=factor,
        )[0]
        return rows
    matches = without_weightless(name, matched_idxs, weight)
    return factor * reference.kd_softmax_loss(student_logits, teacher_logits, matches, temperature, background)


def matched_logits(
    name: str, student_logits: Tensor, teacher_logits: Tensor, matched_idxs: Tensor, background: str
) -> tuple[Tensor, Tensor, Tensor, int]:
    """The checked tensors of both kd losses in one dtype, and the code of the background column."""
    check.floating(name, "student_logits", student_logits, ("K", "C"))
    check.floating(name, "teacher_logits", teacher_logits, ("G", "C"))
    matched_idxs = check.index(name, "matched_idxs", matched_idxs, student_logits.shape[0], "student_logits")
    check.same_device(name, student_logits=student_logits, teacher_logits=teacher_logits, matched_idxs=matched_idxs)
    column = check.choice(name, "background", background, check.BACKGROUNDS)
    classes = teacher_logits.shape[1]
    expected = classes + int(background != "none")
    if student_logits.shape[1] != expected or classes == 0:
        raise check.fail(
            name,
            "student_logits",
            f"of {expected} columns ({max(classes, 1)} teacher classes, background={background!r})",
            f"{student_logits.shape[1]} columns (teacher_logits has {classes}){_other_columns(student_logits.shape[1], classes)}",
        )
    if check.debug_enabled():
        check.index_values(name, "matched_idxs", matched_idxs, teacher_logits.shape[0], "teacher_logits", ignored=True)
        check.finite_values(name, "student_logits", student_logits)
        check.finite_values(name, "teacher_logits", teacher_logits)
        warn_of_mistakes(
            name,
            student_logits=student_logits,
            teacher_logits=teacher_logits,
            matched_idxs=matched_idxs,
            head="softmax" if name == "kd_softmax_loss" else "sigmoid",
            background=background,
        )
    dtype = torch.promote_types(student_logits.dtype, teacher_logits.dtype)
    return check.in_dtype(student_logits, dtype), check.constant(teacher_logits, dtype), matched_idxs, column


def _other_columns(columns: int, classes: int) -> str:
    """The way out of a wrong number of columns."""
    if columns == classes:
        return ": background='none' is for a student without a background column"
    if columns == classes + 1:
        return ": name the student's background column with background='first' or 'last'"
    return ": select the columns of the same classes, in the same order"


def register_logits_loss(name: str) -> None:
    """Fake and gradient of both kd losses: the forward leaves d rows / d student_logits behind, the backward scales it."""

    @register_fake(name)
    def _(arguments: Any) -> tuple[Tensor, Tensor]:
        student_logits = arguments.student_logits
        rows = student_logits.new_empty(student_logits.shape[0], dtype=check.accumulate_dtype(student_logits.dtype))
        return rows, student_logits.new_empty(student_logits.shape if arguments.need_grad else (0,))

    def backward(ctx: Any, needs: Any, grad_rows: Tensor | None, _: None) -> dict[str, Tensor]:
        if grad_rows is None or not needs.student_logits:
            return {}
        row_grads, student_logits = ctx.saved_tensors
        grads = {"grad_rows": grad_rows, "row_grads": row_grads}
        return {"student_logits": run("scale_rows", **grads, input=student_logits, **ctx.options)}

    register_autograd(name, save_row_gradients(["student_logits"], ["factor"]), backward)


register_logits_loss("kd_softmax_loss")
