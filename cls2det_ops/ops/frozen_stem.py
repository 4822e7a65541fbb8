"""The stem of a frozen network, differentiable for its images alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks as check
from .. import reference
from .._library import native
from ._common import refuse_second_derivative, register_autograd, register_fake, run, wants_gradient

LARGEST_KERNEL = 8  # and stride


def frozen_stem(images: Tensor, weight: Tensor, bias: Tensor, *, stride: int = 2, padding: int = 3) -> Tensor:
    r"""Convolution, ReLU and 3 x 3 max-pool of stride 2: a ResNet's first layers, with batch norm folded into the convolution.

    .. math:: \mathrm{maxpool}_{3, 2, 1}(\max(0, W * I + b))

    What KD-loc of "Distilling Image Classifiers in Object Detectors" (NeurIPS 2021, equation 10; its layer l0) runs on the
    crop of every predicted box. Each pool sends its gradient to the one place of the convolution that it chose, and what ReLU
    stopped is skipped. So most of the convolution's input gradient is not computed, and no map of the convolution's
    resolution is stored. The backward keeps one byte for each output value, and W.

    Args:
        images: (N, C_in, H, W), float32, float64, float16 or bfloat16, any strides.
        weight: (C, C_in, k_h, k_w), kernels of up to 8; a constant, no gradient is sent to it. Taken to the images' dtype.
        bias: (C,); likewise.
        stride: of the convolution, 1 to 8.
        padding: of the convolution, with zeros; less than the kernel.

    Returns:
        (N, C, h, w) in the images' dtype, h = ((H + 2 padding - k_h) // stride) // 2 + 1, and w likewise.

    Gradients flow to ``images`` only. Ties are decided as torch does: the first of equal values, and no gradient where the
    convolution gives 0 or less. A NaN spreads through its window. 16-bit images are computed in float32; autocast changes
    nothing.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape, device or value range, named with what was found.
    """
    name = "frozen_stem"
    check.feature_map(name, "images", images)
    check.floating(name, "weight", weight, ("C", images.shape[1], "k_h", "k_w"))
    check.floating(name, "bias", bias, (weight.shape[0],))
    check.same_device(name, images=images, weight=weight, bias=bias)
    kernel = tuple(weight.shape[2:])
    if not 1 <= min(kernel) <= max(kernel) <= LARGEST_KERNEL:
        raise check.fail(name, "weight", f"of a kernel of 1 to {LARGEST_KERNEL}", kernel)
    if not 1 <= check.count(name, "stride", stride) <= LARGEST_KERNEL:
        raise check.fail(name, "stride", f"1 to {LARGEST_KERNEL}", stride)
    if check.count(name, "padding", padding) >= min(kernel):
        raise check.fail(name, "padding", f"less than the kernel, {kernel}", padding)
    if any(size + 2 * padding < k for size, k in zip(images.shape[2:], kernel, strict=True)):
        raise check.fail(name, "images", f"padded, at least as large as the kernel, {kernel}", tuple(images.shape[2:]))
    weight, bias = weight.detach().to(images.dtype), bias.detach().to(images.dtype)
    if native(images):
        output: Tensor
        need_grad = wants_gradient(images)
        output, _ = run(name, images=images, weight=weight, bias=bias, stride=stride, padding=padding, need_grad=need_grad)
        return output
    return reference.frozen_stem(images, weight, bias, stride, padding)


@register_fake("frozen_stem")
def _(arguments: Any) -> tuple[Tensor, Tensor]:
    images, weight, stride, padding = arguments.images, arguments.weight, arguments.stride, arguments.padding
    sides = [(side + 2 * padding - k) // stride // 2 + 1 for side, k in zip(images.shape[2:], weight.shape[2:], strict=True)]
    shape = (images.shape[0], weight.shape[0], *sides)
    return images.new_empty(shape), images.new_empty(shape if arguments.need_grad else (0,), dtype=torch.uint8)


@register_fake("frozen_stem_backward")
def _(arguments: Any) -> Tensor:
    grad: Tensor = arguments.grad
    return grad.new_empty(grad.shape[0], arguments.weight.shape[1], arguments.height, arguments.width)


def _save(ctx: Any, arguments: Any, output: tuple[Tensor, Tensor]) -> None:
    _, index = output
    ctx.mark_non_differentiable(index)
    ctx.save_for_backward(index, arguments.weight)
    height, width = arguments.images.shape[2:]
    ctx.options = {"height": height, "width": width, "stride": arguments.stride, "padding": arguments.padding}


def _backward(ctx: Any, needs: Any, grad: Tensor, _: Tensor) -> dict[str, Tensor]:
    if not needs.images:
        return {}
    index, weight = ctx.saved_tensors
    return {"images": run("frozen_stem_backward", grad=grad, index=index, weight=weight, **ctx.options)}


register_autograd("frozen_stem", _save, _backward)
refuse_second_derivative("frozen_stem_backward")
