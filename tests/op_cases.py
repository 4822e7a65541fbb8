"""One small call of every public operator, for the tests of properties that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import cls2det_ops
from cls2det_ops import RoIMap
from cls2det_ops import _checks as check
from helpers import safe_boxes


@dataclass(frozen=True)
class Case:
    function: Callable
    tensors: dict[str, Tensor]  # by argument name, float64 and int64
    options: dict = field(default_factory=dict)
    gradients: tuple[str, ...] = ()  # the differentiable arguments
    rows: bool = True  # whether it takes reduction="none"


def roi_kd_loss(features: Tensor, **tensors) -> Tensor:
    """The composite as a function of tensors alone."""
    return cls2det_ops.roi_kd_loss(**tensors, maps=RoIMap(features, 3, 6, 0.5)).loss


def attention_means(features: Tensor, **options) -> Tensor:
    """Both results side by side: (B, H W + C)."""
    spatial, channel = cls2det_ops.attention_means(features, **options)
    return torch.cat([spatial.flatten(1), channel], 1)


def imitation_mask(anchors: Tensor, **arguments) -> Tensor:
    """As numbers, which compare like other results."""
    return cls2det_ops.imitation_mask(anchors, **arguments).to(check.accumulate_dtype(anchors.dtype))


def make_case(
    name: str, k: int = 9, g: int = 4, b: int = 2, c: int = 5, height: int = 11, width: int = 14, kernel: int = 3
) -> Case:
    """K boxes, rows or whole maps, G targets, B images, C channels or classes; kernel: of a stem's convolution."""
    random = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    def below(size: int, count: int) -> Tensor:
        return torch.randint(max(size, 1), (count,), generator=random)

    match = below(g, k)
    of_target = below(b, g)
    of_box = torch.cat([of_target, of_target.new_zeros(1)])[match]
    if name == "roi_crop":
        tensors = {"images": normal(b, c, height, width), "boxes": safe_boxes(k, height, width, 5), "image_index": of_box}
        return Case(cls2det_ops.roi_crop, tensors, {"output_size": 5}, ("images", "boxes"), rows=False)
    if name == "roi_avg_pool":
        tensors = {"features": normal(b, c, height, width), "boxes": safe_boxes(k, height, width, 6, scale=0.5)}
        options = {"output_size": 3, "sampling_size": 6, "spatial_scale": 0.5}
        return Case(cls2det_ops.roi_avg_pool, tensors | {"image_index": of_box}, options, ("features", "boxes"), rows=False)
    if name == "roi_feature_loss":
        tensors = {
            "features": normal(b, c, height, width),
            "boxes": safe_boxes(k, height, width, 6, scale=0.5),
            "image_index": of_box,
            "target_boxes": safe_boxes(g, height, width, 6, scale=0.5, seed=1),
            "target_image_index": of_target,
            "matched_idxs": match,
        }
        options = {"output_size": 3, "sampling_size": 6, "spatial_scale": 0.5}
        return Case(cls2det_ops.roi_feature_loss, tensors, options, ("features", "boxes"))
    if name == "matched_feature_loss":
        tensors = {"features": normal(k, c, 7, 6), "target_features": normal(g, c, 7, 6), "matched_idxs": match}
        return Case(cls2det_ops.matched_feature_loss, tensors, {"output_size": 3}, ("features",))
    if name == "masked_feature_loss":  # K images
        tensors = {"student": normal(k, c, height, width), "teacher": normal(k, c, height, width)}
        tensors |= {"mask": normal(k, height, width).abs(), "channel_mask": normal(k, c).abs()}
        return Case(cls2det_ops.masked_feature_loss, tensors, {"reduction": "none"}, ("student", "teacher"), rows=False)
    if name == "attention_means":  # of K images
        return Case(attention_means, {"features": normal(k, c, height, width)}, {}, ("features",), rows=False)
    if name == "frozen_stem":  # of K images; sums that every dtype holds, so that all choose the same of equal values

        def whole(*shape: int) -> Tensor:
            return torch.randint(-1, 2, shape, generator=random).double()

        tensors = {"images": normal(k, 3, height, width).round(), "weight": whole(c, 3, kernel, kernel) / 64}
        tensors["bias"] = whole(c) / 64
        return Case(cls2det_ops.frozen_stem, tensors, {"stride": 2, "padding": kernel // 2}, ("images",), rows=False)
    if name == "imitation_mask":
        tensors = {"anchors": safe_boxes(700, height, width, 5, seed=2), "boxes": safe_boxes(k, height, width, 5)}
        options = {"images": b, "level_sizes": (430, 250, 20)}
        return Case(imitation_mask, tensors | {"image_index": below(b, k)}, options, rows=False)
    if name in ("kd_softmax_loss", "kd_sigmoid_loss"):
        columns = c + (name == "kd_softmax_loss")
        tensors = {"student_logits": normal(k, columns) * 3, "teacher_logits": normal(g, c) * 3, "matched_idxs": match}
        return Case(getattr(cls2det_ops, name), tensors, {}, ("student_logits",))
    if name == "roi_kd_loss":
        tensors = make_case("roi_feature_loss", k, g, b, c, height, width).tensors
        tensors = {key: value for key, value in tensors.items() if key != "image_index"}
        tensors |= {"student_logits": normal(k, c + 1), "teacher_logits": normal(g, c)}
        return Case(roi_kd_loss, tensors, {}, ("student_logits", "boxes", "features"), rows=False)
    raise KeyError(f"no case for {name}: write one in op_cases.py")


WHOLE_MAPS = ("attention_means", "frozen_stem", "masked_feature_loss")  # K is the number of their maps


def large_case(name: str, **sizes: int) -> Case:
    """A case of many rows, or of a few whole maps: for tests of thousands of threads that the emulator runs one by one."""
    return make_case(name, **sizes | ({"k": 7} if name in WHOLE_MAPS else {}))


def is_op(name: str) -> bool:
    """Whether a public name is the function of the module of that name."""
    return getattr(getattr(cls2det_ops, name), "__module__", "") == f"cls2det_ops.ops.{name}"


PUBLIC_OPS = [name for name in cls2det_ops.__all__ if is_op(name)]
DIFFERENTIABLE_OPS = [name for name in PUBLIC_OPS if make_case(name).gradients]
ROW_LOSSES = [name for name in PUBLIC_OPS if make_case(name).rows]
