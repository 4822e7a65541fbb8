"""Features in predicted boxes compared with features in their ground-truth boxes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _checks as check
from .. import reference
from .._library import native
from ..explain import warn_of_mistakes
from ._common import (
    factor_of_rows,
    reduce_rows,
    refuse_second_derivative,
    register_autograd,
    register_fake,
    run,
    save_row_gradients,
    wants_gradient,
    without_weightless,
)


class RoIMap(NamedTuple):
    """A map on which predicted and ground-truth boxes are compared.

    features (B, C, H, W); output_size, sampling_size and spatial_scale as in :func:`roi_avg_pool`; target_features and
    target_spatial_scale, the map of the ground-truth side if it is another one; weight of this map's term in the sum; std, the
    unit of its differences, as in :func:`roi_feature_loss`.
    The paper's pixel term is ``RoIMap(images, output_size=4, sampling_size=112)`` on images of 0..255.
    """

    features: Tensor
    output_size: int | tuple[int, int]
    sampling_size: int | tuple[int, int]
    spatial_scale: float = 1.0
    target_features: Tensor | None = None
    target_spatial_scale: float | None = None
    weight: float = 1.0
    std: float = 1.0


def roi_feature_loss(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor | None,
    target_boxes: Tensor,
    target_image_index: Tensor,
    matched_idxs: Tensor,
    output_size: int | tuple[int, int],
    sampling_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    *,
    target_features: Tensor | None = None,
    target_spatial_scale: float | None = None,
    loss: str = "l1",
    beta: float = 1.0,
    std: float = 1.0,
    padding_mode: str = "zeros",
    clip: bool = True,
    weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Distance between the pooled features of K predicted boxes and of their ground-truth boxes.

    .. math:: L_k = \frac{1}{C P^2} \sum_{c,p,q} d\big(pool(F, box_k)_{cpq} - pool(F^{target}, box^{gt}_{m(k)})_{cpq}\big)

    with pool the :func:`roi_avg_pool` of both sides and d the absolute value ("l1"), the square ("l2") or smooth-L1 with
    ``beta`` ("smooth_l1"). Crops and the pooled features of predicted boxes are never stored; each ground truth is pooled
    once (the CUDA kernels keep those (G, C, P, P) for the call, the CPU kernels one at a time).
    With the images as ``features`` this is the teacher-free "loc" term of "Distilling Image Classifiers in Object
    Detectors" (NeurIPS 2021), equation 11; with feature maps it is equation 10 on shared maps in place of crops.

    Args:
        features: (B, C, H, W), float32, float64, float16 or bfloat16, any strides.
        boxes: (K, 4) predicted boxes (x1, y1, x2, y2) in input pixels; times ``spatial_scale`` in pixels of ``features``.
        image_index: (K,) int64 or int32, the image of each predicted box; None: that of its ground truth.
        target_boxes: (G, 4) ground-truth boxes of the batch, like ``boxes``.
        target_image_index: (G,) the image of each ground truth.
        matched_idxs: (K,) the ground truth, in [0, G), of each predicted box.
        output_size, sampling_size, spatial_scale, padding_mode, clip: as in :func:`roi_avg_pool`.
        target_features: (B', C, H', W'), the map of the ground-truth side (a teacher's); default: ``features``.
        target_spatial_scale: its scale; default: ``spatial_scale``.
        loss: "l1", "l2" or "smooth_l1"; beta: where smooth-L1 turns from square to linear, in units of ``std``.
        std: the unit of the differences, such as the standard deviation of the pictures in their own units: the loss is that
            of features divided by it. So one weight fits pictures of 0..255 (58), [0, 1] (0.23) and normalised ones (1).
        weight: (K,) weight of each row; a constant, no gradient is sent to it.
        normalizer: divisor of the result, such as the number of positives over all processes; a tensor of one element
            keeps a compiled step from recompiling when it changes.
            A tensor that is not positive counts as 1.
        reduction: "mean" divides the weighted sum by ``normalizer``, or by max(K, 1) without one; "sum" and "none"
            (the K rows) are divided only if a normalizer is given. K counts ignored rows too: to divide by the positives
            alone, pass only those or give the normalizer.

    Returns:
        A scalar, or (K,) for "none", in float32 (float64 for float64 features).

    Gradients flow to ``boxes``, and to ``features`` when they require one (through the predicted boxes only); none to the
    ground-truth side.

    A row is ignored (0, no gradient) when its match, its image or its match's image is out of range: the -1 and -2 of
    torchvision's matchers may stay in. Boxes that are not finite give NaN. :func:`debug_values` reports both, and leaves
    negative indices alone.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape, device or value range, named with what was found.
    """
    name = "roi_feature_loss"
    factor, normalizer, reduction = factor_of_rows(name, boxes, normalizer, reduction)
    roi_map = RoIMap(features, output_size, sampling_size, spatial_scale, target_features, target_spatial_scale, std=std)
    matches = (boxes, image_index, target_boxes, target_image_index, matched_idxs)
    rows = roi_feature_rows(roi_map, *matches, loss, beta, padding_mode, clip, weight, factor)
    return reduce_rows(name, rows, weight, normalizer, reduction)


def roi_feature_rows(
    roi_map: RoIMap,
    boxes: Tensor,
    image_index: Tensor | None,
    target_boxes: Tensor,
    target_image_index: Tensor,
    matched_idxs: Tensor,
    loss: str,
    beta: float,
    padding_mode: str,
    clip: bool,
    weight: Tensor | None,
    factor: float,
) -> Tensor:
    """The (K,) losses of the rows times ``factor``; the weight only tells which rows are out, and the map's own is left out."""
    name = "roi_feature_loss"
    features, output_size, sampling_size, spatial_scale, target_features, target_spatial_scale, _, std = roi_map
    check.feature_map(name, "features", features)
    check.floating(name, "boxes", boxes, ("K", 4))
    check.floating(name, "target_boxes", target_boxes, ("G", 4))
    indices = (
        {} if image_index is None else {"image_index": check.index(name, "image_index", image_index, boxes.shape[0], "boxes")}
    )
    matched_idxs = check.index(name, "matched_idxs", matched_idxs, boxes.shape[0], "boxes")
    target_image_index = check.index(name, "target_image_index", target_image_index, target_boxes.shape[0], "target_boxes")
    scale = check.positive(name, "spatial_scale", spatial_scale)
    target_scale = check.positive(
        name, "target_spatial_scale", spatial_scale if target_spatial_scale is None else target_spatial_scale
    )
    target_features = features if target_features is None else target_features
    check.feature_map(name, "target_features", target_features)
    if target_features.shape[1] != features.shape[1]:
        raise check.fail(name, "target_features", f"of {features.shape[1]} channels like features", target_features.shape[1])
    check.same_device(
        name,
        features=features,
        boxes=boxes,
        target_features=target_features,
        target_boxes=target_boxes,
        target_image_index=target_image_index,
        matched_idxs=matched_idxs,
        **indices,
    )
    size = check.size_pair(name, "output_size", output_size)
    samples = check.size_pair(name, "sampling_size", sampling_size)
    border = bool(check.choice(name, "padding_mode", padding_mode, check.PADDING_MODES))
    clip = check.flag(name, "clip", clip)
    kind = check.choice(name, "loss", loss, check.LOSSES)
    unit, beta = unit_of_differences(name, loss, beta, std)
    if check.debug_enabled():
        for argument, index in indices.items():
            check.index_values(name, argument, index, features.shape[0], "features", ignored=True)
        check.index_values(name, "target_image_index", target_image_index, target_features.shape[0], "target_features")
        check.index_values(name, "matched_idxs", matched_idxs, target_boxes.shape[0], "target_boxes", ignored=True)
        check.box_values(name, "boxes", boxes)
        check.box_values(name, "target_boxes", target_boxes)
        warn_of_mistakes(
            name,
            boxes=boxes,
            target_boxes=target_boxes,
            matched_idxs=matched_idxs,
            target_image_index=target_image_index,
            image_index=indices.get("image_index"),
            features=features,
            spatial_scale=scale,
            target_features=target_features if target_features is not features else None,
            target_spatial_scale=target_scale if target_scale != scale else None,
            std=std,
            weight=weight,
        )
    dtype = torch.promote_types(features.dtype, target_features.dtype)
    features, target_features = check.in_dtype(features, dtype), check.constant(target_features, dtype)
    acc = check.accumulate_dtype(dtype)
    boxes, target_boxes = check.in_dtype(boxes, acc), check.constant(target_boxes, acc)
    tensors: dict[str, Any] = {
        "features": features,
        "boxes": boxes,
        "image_index": indices.get("image_index"),
        "target_features": target_features,
        "target_boxes": target_boxes,
        "target_image_index": target_image_index,
    }
    options: dict[str, Any] = {"spatial_scale": scale, "target_spatial_scale": target_scale, "clip": clip, "beta": beta}
    if native(features):
        rows: Tensor = run(
            name,
            **tensors,
            matched_idxs=matched_idxs,
            out_h=size[0],
            out_w=size[1],
            samples_h=samples[0],
            samples_w=samples[1],
            **options,
            border=border,
            loss=kind,
            need_boxes=wants_gradient(boxes),
            factor=unit * factor,
        )[0]
        return rows
    if image_index is None:
        tensors["image_index"] = _images_of_matches(matched_idxs, target_image_index)
    return (unit * factor) * reference.roi_feature_loss(
        **tensors,
        matched_idxs=without_weightless(name, matched_idxs, weight),
        output_size=size,
        sampling_size=samples,
        **options,
        padding_mode=padding_mode,
        loss=loss,
    )


def _images_of_matches(matched_idxs: Tensor, target_image_index: Tensor) -> Tensor:
    """target_image_index[matched_idxs]; any image for a match out of range, whose row is ignored."""
    count = target_image_index.shape[0]
    return target_image_index[matched_idxs.clamp(0, count - 1)] if count else matched_idxs


def unit_of_differences(function: str, loss: str, beta: float, std: float) -> tuple[float, float]:
    """Factor of the loss, and ``beta`` of plain features, that make it the loss of features divided by ``std``."""
    beta, std = check.positive(function, "beta", beta), check.positive(function, "std", std)
    return (1 / std**2 if loss == "l2" else 1 / std), beta * std


@register_fake("roi_feature_loss")
def _(arguments: Any) -> tuple[Tensor, Tensor]:
    boxes = arguments.boxes
    return boxes.new_empty(boxes.shape[0]), boxes.new_empty(boxes.shape if arguments.need_boxes else (0,))


@register_fake("roi_feature_loss_backward")
def _(arguments: Any) -> Tensor:
    features: Tensor = arguments.features
    return features.new_empty(features.shape)


TENSORS = ("features", "boxes", "image_index", "target_features", "target_boxes", "target_image_index", "matched_idxs")
OPTIONS = (
    "out_h",
    "out_w",
    "samples_h",
    "samples_w",
    "spatial_scale",
    "target_spatial_scale",
    "border",
    "clip",
    "loss",
    "beta",
    "factor",
)


def _backward(ctx: Any, needs: Any, grad_rows: Tensor | None, _: None) -> dict[str, Tensor]:
    if grad_rows is None:
        return {}
    box_grads, *saved = ctx.saved_tensors
    tensors = dict(zip(TENSORS, saved, strict=True))
    grads = {}
    if needs.features:
        grads["features"] = run("roi_feature_loss_backward", grad_rows=grad_rows, **tensors, **ctx.options)
    if needs.boxes:
        grads["boxes"] = run(
            "scale_rows", grad_rows=grad_rows, row_grads=box_grads, input=tensors["boxes"], factor=ctx.options["factor"]
        )
    return grads


register_autograd("roi_feature_loss", save_row_gradients(TENSORS, OPTIONS), _backward)
refuse_second_derivative("roi_feature_loss_backward")
