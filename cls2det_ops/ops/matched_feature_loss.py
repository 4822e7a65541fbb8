"""Features of crops compared with the features of the ground-truth crop that each is matched to."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks as check
from .. import reference
from .._library import native
from ._common import (
    reduce_rows,
    refuse_second_derivative,
    register_fake,
    register_loss,
    run,
    run_loss,
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
        features: (K, C, h, w) teacher features of the predicted crops, float32, float64, float16 or bfloat16, any strides.
        target_features: (G, C, h, w) teacher features of the ground-truth crops.
        matched_idxs: (K,) int64 or int32, the ground truth, in [0, G), of each crop.
        output_size: P or (h, w), bins per axis.
        loss, beta, weight, normalizer, reduction: as in :func:`roi_feature_loss`.

    Returns:
        A scalar, or (K,) for "none", in float32 (float64 for float64 features).

    Gradients flow to ``features`` only. Rows with a match outside [0, G) are ignored (0, no gradient).

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape, device or value range, named with what was found.
    """
    name = "matched_feature_loss"
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
        arguments = (features, target_features, matched_idxs, *size, kind, beta, wants_gradient(features))
        return run_loss(name, arguments, weight, normalizer, reduction)
    kept = without_weightless(name, matched_idxs, weight)
    rows = reference.matched_feature_loss(features, target_features, kept, size, loss, beta)
    return reduce_rows(name, rows, weight, normalizer, reduction)


@register_fake("matched_feature_loss")
def _(features, target_features, matched_idxs, out_h, out_w, loss, beta, need_grad):
    acc = check.accumulate_dtype(features.dtype)
    pooled = (features.shape[0], features.shape[1], out_h, out_w) if need_grad else (0,)
    return features.new_empty(features.shape[0], dtype=acc), features.new_empty(pooled, dtype=acc)


@register_fake("matched_feature_loss_backward")
def _(grad_rows, pooled_grad, features):
    return features.new_empty(features.shape)


def _backward(ctx, grad_rows, _):
    grad = None
    if grad_rows is not None and ctx.needs_input_grad[0]:
        grad = run("matched_feature_loss_backward", grad_rows, *ctx.saved_tensors)
    return (grad, *[None] * 7)


register_loss("matched_feature_loss", save_row_gradients(1), _backward)
refuse_second_derivative("matched_feature_loss_backward")
