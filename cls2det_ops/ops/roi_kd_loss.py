"""Classifier-to-detector distillation in one call, for anyone's training loop."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks as check
from ..explain import warn_of_mistakes
from ._common import divisor, is_traced, without_weightless
from .kd_sigmoid_loss import kd_sigmoid_rows
from .kd_softmax_loss import kd_softmax_rows
from .roi_feature_loss import RoIMap, roi_feature_rows

HEADS = ("softmax", "sigmoid")


class RoIKDLoss(NamedTuple):
    """Scalars with gradient: ``loss = cls + loc``, both already weighted."""

    loss: Tensor
    cls: Tensor
    loc: Tensor


def roi_kd_loss(
    student_logits: Tensor,
    boxes: Tensor,
    teacher_logits: Tensor,
    target_boxes: Tensor,
    matched_idxs: Tensor,
    target_image_index: Tensor,
    maps: RoIMap | Sequence[RoIMap] = (),
    *,
    head: str = "softmax",
    temperature: float = 2.0,
    background: str | None = None,
    cls_weight: float = 0.4,
    loc_weight: float = 0.15,
    loss: str = "l1",
    beta: float = 1.0,
    padding_mode: str = "zeros",
    clip: bool = True,
    weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> RoIKDLoss:
    r"""Distil an image classifier into the positives of a detector: class probabilities and localisation.

    .. math:: L = \lambda_{cls} \frac1N \sum_k L^{cls}_k + \lambda_{loc} \sum_m w_m \frac1N \sum_k L^{loc}_{m,k}

    with L^cls of :func:`kd_softmax_loss` or :func:`kd_sigmoid_loss` and L^loc of :func:`roi_feature_loss` on each map:
    equation 12 of "Distilling Image Classifiers in Object Detectors" (NeurIPS 2021) with the features compared on maps
    of the whole image. (To compare teacher features of every crop as the paper does, call :func:`roi_crop`, the teacher,
    and :func:`matched_feature_loss`.)

    Args:
        student_logits: (K, C + 1) or (K, C), the class logits of the positives.
        boxes: (K, 4) decoded boxes of the positives, (x1, y1, x2, y2) in input pixels, with their gradient.
        teacher_logits: (G, C), the classifier's logits of the ground-truth crops.
        target_boxes: (G, 4) ground-truth boxes of the whole batch, concatenated.
        matched_idxs: (K,) the ground truth of each positive, an index into the concatenation; negative: the row is ignored,
            but it still counts in the default normalizer.
        target_image_index: (G,) the image of each ground truth; a positive lies in the image of its ground truth.
        maps: one :class:`RoIMap` or several to compare on; none leaves the localisation term at 0.
        head: "softmax" or "sigmoid" (its "bce" mode), the student's classification head.
        temperature: T > 0; the paper uses 2.
        background: "first", "last" or "none"; default "first" for softmax (torchvision), "none" for sigmoid.
        cls_weight, loc_weight: the paper's 0.4 and 0.15. The latter is per level of 0..255. With the maps' ``std`` it counts per
            standard deviation of the pictures, and 8.7 gives the paper's pull whatever their scale.
        loss, beta, padding_mode, clip: as in :func:`roi_feature_loss`.
        weight: (K,) weight of each positive in both terms.
        normalizer: N; default max(K, 1).

    Returns:
        :class:`RoIKDLoss` (loss, cls, loc), scalars in float32 (float64 for float64 input), zero and attached to the graph
        when there is no positive.

    Gradients flow to ``student_logits``, ``boxes`` and the maps' ``features`` where they require one.
    Positives whose match or image is out of range are ignored. Raises: as the losses it is made of.
    """
    name = "roi_kd_loss"
    check.choice(name, "head", head, HEADS)
    check.floating(name, "student_logits", student_logits, ("K", "C"))
    check.floating(name, "boxes", boxes, (student_logits.shape[0], 4), "student_logits")
    check.floating(name, "target_boxes", target_boxes, ("G", 4))
    check.floating(name, "teacher_logits", teacher_logits, (target_boxes.shape[0], "C"), "target_boxes")
    matched_idxs = check.index(name, "matched_idxs", matched_idxs, boxes.shape[0], "boxes")
    target_image_index = check.index(name, "target_image_index", target_image_index, target_boxes.shape[0], "target_boxes")
    check.same_device(
        name,
        student_logits=student_logits,
        boxes=boxes,
        teacher_logits=teacher_logits,
        target_boxes=target_boxes,
        matched_idxs=matched_idxs,
        target_image_index=target_image_index,
    )
    check.number(name, "cls_weight", cls_weight)
    check.number(name, "loc_weight", loc_weight)
    listed = list_of_maps(name, maps)
    if check.debug_enabled():
        warn_of_mistakes(
            name,
            student_logits=student_logits,
            boxes=boxes,
            teacher_logits=teacher_logits,
            target_boxes=target_boxes,
            matched_idxs=matched_idxs,
            target_image_index=target_image_index,
            maps=listed,
            head=head,
            background=background,
            loc_weight=loc_weight,
            weight=weight,
        )
    # every scalar operation is a launch on a GPU, in both directions: numbers go into the kernels, and weight and normalizer
    # are read once for all terms
    matched_idxs = without_weightless(name, matched_idxs, weight)
    acc = check.accumulate_dtype(
        functools.reduce(torch.promote_types, (student_logits.dtype, teacher_logits.dtype, boxes.dtype))
    )
    normalizer = max(boxes.shape[0], 1) if normalizer is None else divisor(name, normalizer, acc)
    share = normalizer.reciprocal() if isinstance(normalizer, Tensor) else 1 / normalizer

    traced = is_traced()

    def term(rows_of: Callable[[float], Tensor], *factors: float | Tensor) -> Tensor:
        inside = 1.0
        outside: list[float | Tensor] = []
        for factor in factors:
            if isinstance(factor, Tensor) or traced:
                outside.append(factor)
            else:
                inside *= factor
        rows = rows_of(inside)
        if weight is not None:
            rows = rows * check.constant(weight, rows.dtype)
        return functools.reduce(operator.mul, outside, rows.sum())

    logits = (student_logits, teacher_logits, matched_idxs, temperature)
    if head == "softmax":
        background = "first" if background is None else background
        cls = term(partial(kd_softmax_rows, *logits, background, None), cls_weight, share)
    else:
        background = "none" if background is None else background
        cls = term(partial(kd_sigmoid_rows, *logits, "bce", background, None), cls_weight, share)
    loc = None
    for roi_map in listed:
        matches = (boxes, None, target_boxes, target_image_index, matched_idxs)
        rows_of = partial(roi_feature_rows, roi_map, *matches, loss, beta, padding_mode, clip, None)
        of_map = term(rows_of, loc_weight, roi_map.weight, share)
        loc = of_map if loc is None else loc + of_map
    if loc is None:
        loc = boxes[:0].sum().to(cls.dtype)
    return RoIKDLoss(cls + loc, cls, loc)


def list_of_maps(function: str, maps: RoIMap | Sequence[RoIMap]) -> list[RoIMap]:
    """A checked list."""
    if isinstance(maps, RoIMap):
        return [maps]
    expected = f"{function}: maps must be a RoIMap or a sequence of them, found"
    if isinstance(maps, (Tensor, str)) or not isinstance(maps, Iterable):
        raise TypeError(f"{expected} {type(maps).__name__}: RoIMap(features, output_size, sampling_size) makes one")
    listed = list(maps)
    for number, roi_map in enumerate(listed):
        if not isinstance(roi_map, RoIMap):
            raise TypeError(f"{expected} {type(roi_map).__name__} at {number}")
    return listed
