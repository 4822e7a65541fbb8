"""Features of crops compared with the features of the ground-truth crop that each is matched to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks as check
from .. import reference
from .._library import native
from ._common import (
    factor_of_rows,
    map_order,
    reduce_rows,
    refuse_second_derivative,
    register_autograd,
    register_fake,
    run,
    save_row_gradients,
    wants_gradient,
    without_weightless,
)


def matched_feature_loss(
    features: Tensor,
    target_features: Tensor,
    matched_idxs: Tensor,
    output_size: int | tuple[int, int],
    *,
    loss: str = "l1",
    beta: float = 1.0,
    weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Distance between the pooled features of K crops and of their matched ground-truth crops.

    .. math:: L_k = \frac{1}{C P^2} \sum_{c,p,q} d\big(AP_P(F_k)_{cpq} - AP_P(F^{target}_{m(k)})_{cpq}\big)

    with AP adaptive average pooling and d as in :func:`roi_feature_loss`: the KD-loc feature term of "Distilling Image
    Classifiers in Object Detectors" (NeurIPS 2021), equation 10. A ground truth's features are pooled once and read
    through the match; no gathered copy is made.

    Args:
        features: (K, C, h, w) teacher features of the predicted crops, float32, float64, float16 or bfloat16, any strides. On a
            CPU NCHW and channels-last order are read as they lie and others are copied, as are targets in another order.
        target_features: (G, C, h, w) teacher features of the ground-truth crops.
        matched_idxs: (K,) int64 or int32, the ground truth, in [0, G), of each crop.
        output_size: P or (h, w), bins per axis.
        loss, beta, weight, normalizer, reduction: as in :func:`roi_feature_loss`.

    Returns:
        A scalar, or (K,) for "none", in float32 (float64 for float64 features).

    Gradients flow to ``features`` only, on a CPU in their memory format. Rows with a match outside [0, G) are ignored (0, no
    gradient).

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape, device or value range, named with what was found.
    """
    name = "matched_feature_loss"
    factor, normalizer, reduction = factor_of_rows(name, features, normalizer, reduction)
    check.feature_map(name, "features", features)
    check.floating(name, "target_features", target_features, ("G", *features.shape[1:]))
    matched_idxs = check.index(name, "matched_idxs", matched_idxs, features.shape[0], "features")
    check.same_device(name, features=features, target_features=target_features, matched_idxs=matched_idxs)
    size = check.size_pair(name, "output_size", output_size)
    kind = check.choice(name, "loss", loss, check.LOSSES)
    beta = check.positive(name, "beta", beta)
    if check.debug_enabled():
        check.index_values(name, "matched_idxs", matched_idxs, target_features.shape[0], "target_features", ignored=True)
    dtype = torch.promote_types(features.dtype, target_features.dtype)
    features, target_features = check.in_dtype(features, dtype), check.constant(target_features, dtype)
    if native(features):
        rows, _ = run(
            name,
            features=features,
            target_features=target_features,
            matched_idxs=matched_idxs,
            out_h=size[0],
            out_w=size[1],
            loss=kind,
            beta=beta,
            need_grad=wants_gradient(features),
            factor=factor,
        )
    else:
        matches = without_weightless(name, matched_idxs, weight)
        rows = factor * reference.matched_feature_loss(features, target_features, matches, size, loss, beta)
    return reduce_rows(name, rows, weight, normalizer, reduction)


@register_fake("matched_feature_loss")
def _(arguments: Any) -> tuple[Tensor, Tensor]:
    features = arguments.features
    acc = check.accumulate_dtype(features.dtype)
    rows = features.new_empty(features.shape[0], dtype=acc)
    if not arguments.need_grad:
        return rows, features.new_empty(0, dtype=acc)
    pooled = (*features.shape[:2], arguments.out_h, arguments.out_w)
    return rows, torch.empty(pooled, dtype=acc, device=features.device, memory_format=_gradient_order(features))


@register_fake("matched_feature_loss_backward")
def _(arguments: Any) -> Tensor:
    features: Tensor = arguments.features
    return torch.empty_like(features, memory_format=_gradient_order(features))


def _gradient_order(features: Tensor) -> torch.memory_format:
    return map_order(features) if features.device.type == "cpu" else torch.contiguous_format


def _backward(ctx: Any, needs: Any, grad_rows: Tensor | None, _: None) -> dict[str, Tensor]:
    if grad_rows is None or not needs.features:
        return {}
    pooled_grad, features = ctx.saved_tensors
    grads = {"grad_rows": grad_rows, "pooled_grad": pooled_grad}
    return {"features": run("matched_feature_loss_backward", **grads, features=features, **ctx.options)}


register_autograd("matched_feature_loss", save_row_gradients(["features"], ["factor"]), _backward)
refuse_second_derivative("matched_feature_loss_backward")
