"""Temperature-sigmoid distillation, for detectors whose head scores every class on its own."""

from __future__ import annotations

from torch import Tensor

from .. import _checks as check
from .. import reference
from .._library import native
from ._common import factor_of_rows, reduce_rows, run, wants_gradient, without_weightless
from .kd_softmax_loss import matched_logits, register_logits_loss

MODES = ("bce", "l1norm")


def kd_sigmoid_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    matched_idxs: Tensor,
    temperature: float = 2.0,
    *,
    mode: str = "bce",
    background: str = "none",
    weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Kullback-Leibler divergence between softened sigmoid scores, :math:`S = \sigma(z / T)`.

    mode "bce", the two-way distribution of every class ("Distilling Image Classifiers in Object Detectors", NeurIPS 2021,
    equations 5 to 7); the gradient of a row is :math:`\frac{T}{C} (S^s - S^t)`:

    .. math:: L_k = \frac{T^2}{C} \sum_c S^t_c \log\frac{S^t_c}{S^s_c} + (1 - S^t_c) \log\frac{1 - S^t_c}{1 - S^s_c}

    mode "l1norm", scores normalised over the classes, :math:`Q = S / \sum_c S_c`; the gradient of a row is
    :math:`T (1 - S^s) (Q^s - Q^t)`:

    .. math:: L_k = T^2 \sum_c Q^t_c \log\frac{Q^t_c}{Q^s_c}

    Args:
        student_logits: (K, C) of the positives, or (K, C + 1) with an unused column; float32, float64, float16 or bfloat16.
        teacher_logits: (G, C) of the ground-truth crops.
        matched_idxs: (K,) int64 or int32, the ground truth, in [0, G), of each positive.
        temperature: T > 0; the paper uses 2.
        mode: "bce" or "l1norm".
        background: where the student has a column that the teacher lacks ("first" for torchvision's RetinaNet trained
            with labels from 1), or "none". The column takes no part and gets no gradient.
        weight, normalizer, reduction: as in :func:`roi_feature_loss`.

    Returns:
        A scalar, or (K,) for "none", in float32 (float64 for float64 logits).

    Gradients flow to ``student_logits`` only. Rows with a match outside [0, G) are ignored (0, no gradient).
    Infinite logits give the limit where it exists in mode "bce" (probability exactly 0 or 1; +inf when the student denies
    what the teacher is sure of); in mode "l1norm" -inf is a class of share 0. NaN gives a NaN row.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape, device or value range, named with what was found.
    """
    name = "kd_sigmoid_loss"
    factor, normalizer, reduction = factor_of_rows(name, student_logits, normalizer, reduction)
    rows = kd_sigmoid_rows(student_logits, teacher_logits, matched_idxs, temperature, mode, background, weight, factor)
    return reduce_rows(name, rows, weight, normalizer, reduction)


def kd_sigmoid_rows(
    student_logits: Tensor,
    teacher_logits: Tensor,
    matched_idxs: Tensor,
    temperature: float,
    mode: str,
    background: str,
    weight: Tensor | None,
    factor: float,
) -> Tensor:
    """The (K,) losses of the rows times ``factor``; the weight only tells which rows are out."""
    name = "kd_sigmoid_loss"
    student_logits, teacher_logits, matched_idxs, column = matched_logits(
        name, student_logits, teacher_logits, matched_idxs, background
    )
    temperature = check.positive(name, "temperature", temperature)
    code = check.choice(name, "mode", mode, MODES)
    if native(student_logits):
        rows: Tensor = run(
            name,
            student_logits=student_logits,
            teacher_logits=teacher_logits,
            matched_idxs=matched_idxs,
            temperature=temperature,
            mode=code,
            background=column,
            need_grad=wants_gradient(student_logits),
            factor=factor,
        )[0]
        return rows
    matches = without_weightless(name, matched_idxs, weight)
    return factor * reference.kd_sigmoid_loss(student_logits, teacher_logits, matches, temperature, mode, background)


register_logits_loss("kd_sigmoid_loss")
