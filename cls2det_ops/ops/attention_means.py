"""The means of a feature map over its channels and over its positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _checks as check
from .. import reference
from .._library import native
from ._common import map_like, refuse_second_derivative, register_autograd, register_fake, run


def attention_means(features: Tensor, *, absolute: bool = True) -> tuple[Tensor, Tensor]:
    r"""Mean of a map over its channels and mean over its positions, in one pass.

    .. math:: G^s_{byx} = \frac{1}{C} \sum_c |F_{bcyx}| \qquad G^c_{bc} = \frac{1}{H W} \sum_{y,x} |F_{bcyx}|

    The softmax of these, at a temperature, is the spatial and the channel attention of "Improve Object Detection with
    Feature-based Knowledge Distillation" (ICLR 2021), and of "Focal and Global Knowledge Distillation for
    Detectors" (CVPR 2022). With ``absolute=False`` both are means of F itself.

    Args:
        features: (B, C, H, W), float32, float64, float16 or bfloat16. Maps in NCHW or channels-last order are read as they lie,
            others are copied.
        absolute: whether ``|F|`` is averaged, or F.

    Returns:
        (spatial, channel): (B, H, W) and (B, C), in float32 (float64 for float64 features). Without channels, spatial is 0.

    Gradients flow to ``features``, in its memory format: sign(F) (grad_spatial / C + grad_channel / (H W)), without the sign
    for ``absolute=False``; sign(0) is 0. Only the features are kept for the backward.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape or device, named with what was found.
    """
    name = "attention_means"
    check.feature_map(name, "features", features)
    check.flag(name, "absolute", absolute)
    if native(features):
        means: tuple[Tensor, Tensor] = run(name, features=features, absolute=absolute)
        return means
    return reference.attention_means(features, absolute)


@register_fake("attention_means")
def _(arguments: Any) -> tuple[Tensor, Tensor]:
    features = arguments.features
    batch, channels, height, width = features.shape
    acc = check.accumulate_dtype(features.dtype)
    return features.new_empty(batch, height, width, dtype=acc), features.new_empty(batch, channels, dtype=acc)


@register_fake("attention_means_backward")
def _(arguments: Any) -> Tensor:
    return map_like(arguments.features)


def _save(ctx: Any, arguments: Any, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(arguments.features)
    ctx.absolute = arguments.absolute


def _backward(ctx: Any, needs: Any, grad_spatial: Tensor, grad_channel: Tensor) -> dict[str, Tensor]:
    (features,) = ctx.saved_tensors
    grads = {"grad_spatial": grad_spatial, "grad_channel": grad_channel}
    return {"features": run("attention_means_backward", **grads, features=features, absolute=ctx.absolute)}


register_autograd("attention_means", _save, _backward)
refuse_second_derivative("attention_means_backward")
