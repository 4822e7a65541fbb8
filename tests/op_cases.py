"""A call of every public operator, in any size and with any options, for the tests that all operators share.

A new operator needs one function here, which has its name. The tests of registration, empty inputs, fuzz, memory, strides,
determinism, compilation, float16, DDP and CUDA then cover it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import cls2det_ops
from cls2det_ops import RoIMap
from cls2det_ops import _checks as check
from helpers import safe_boxes

INF, NAN = float("inf"), float("nan")
PIXELS = (INF, -INF, NAN, 1e15)
LOGITS = (INF, -INF, NAN, 1e4, -1e4, 88.0, -104.0, 0.0)


@dataclass(frozen=True)
class Case:
    """A call and what the shared tests need to know of it."""

    function: Callable
    tensors: dict[str, Tensor]  # by argument name, float64 and int64
    options: dict[str, Any] = field(default_factory=dict)
    gradients: tuple[str, ...] = ()  # the differentiable arguments
    optional: tuple[str, ...] = ()  # tensors that may be left out
    rows: bool = False  # a loss of rows: it takes weight, normalizer and reduction
    whole_maps: bool = False  # K counts whole maps, of which large tests take few
    zero_without: str = "k"  # the sizes of Scene that make the result 0 when they are 0
    special_values: dict[str, tuple[float, ...]] = field(default_factory=dict)  # by tensor; the fuzz puts some of them in
    safe_boxes_alone: bool = False  # no boxes on pixel borders in the fuzz, where equal overlaps may round apart


def first(*values: Any) -> Any:
    return values[0]


@dataclass
class Scene:
    """Sizes, random numbers and options, from which a case is made."""

    k: int = 9  # boxes, rows or whole maps
    g: int = 4  # targets
    b: int = 2  # images
    c: int = 5  # channels or classes
    height: int = 11
    width: int = 14
    kernel: int = 3  # of a stem's convolution
    seed: int = 0
    pick: Callable[..., Any] = first  # the value of an option: the first of several, or any in the fuzz

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(3 + self.seed)
        match = self.below(self.g, self.k)
        of_target = self.below(self.b, self.g)
        of_box = torch.cat([of_target, of_target.new_zeros(1)])[match]
        self.indices = {"matched_idxs": match, "target_image_index": of_target, "image_index": of_box}

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random, dtype=torch.float64)

    def whole(self, *shape: int) -> Tensor:
        return torch.randint(-1, 2, shape, generator=self.random).double()

    def below(self, size: int, count: int) -> Tensor:
        return torch.randint(max(size, 1), (count,), generator=self.random)

    def boxes(self, count: int, samples: int | tuple[int, int], scale: float = 1.0, seed: int = 0) -> Tensor:
        return safe_boxes(count, self.height, self.width, samples, scale=scale, seed=seed + self.seed)

    def pair(self, value: int, largest: int) -> tuple[int, int]:
        return self.pick(value, *range(1, largest + 1)), self.pick(value, *range(1, largest + 1))


def roi_crop(scene: Scene) -> Case:
    size = scene.pair(5, 9)
    tensors = {"images": scene.normal(scene.b, scene.c, scene.height, scene.width), "boxes": scene.boxes(scene.k, size)}
    tensors["image_index"] = scene.indices["image_index"]
    options = {"output_size": size, **_borders(scene)}
    return Case(
        cls2det_ops.roi_crop, tensors, options, ("images", "boxes"), zero_without="kbc", special_values={"images": PIXELS}
    )


def roi_avg_pool(scene: Scene) -> Case:
    options = _pooling(scene)
    tensors = {"features": scene.normal(scene.b, scene.c, scene.height, scene.width)}
    tensors["boxes"] = scene.boxes(scene.k, options["sampling_size"], options["spatial_scale"])
    tensors["image_index"] = scene.indices["image_index"]
    gradients = ("features", "boxes")
    special = {"features": PIXELS}
    return Case(cls2det_ops.roi_avg_pool, tensors, options, gradients, zero_without="kbc", special_values=special)


def roi_feature_loss(scene: Scene) -> Case:
    options = _pooling(scene)
    samples, scale = options["sampling_size"], options["spatial_scale"]
    tensors = {
        "features": scene.normal(scene.b, scene.c, scene.height, scene.width),
        "boxes": scene.boxes(scene.k, samples, scale),
        "image_index": scene.indices["image_index"],
        "target_boxes": scene.boxes(scene.g, samples, scale, seed=1),
        "target_image_index": scene.indices["target_image_index"],
        "matched_idxs": scene.indices["matched_idxs"],
    }
    options |= _distance(scene)
    gradients = ("features", "boxes")
    special = {"features": PIXELS}
    return Case(
        cls2det_ops.roi_feature_loss, tensors, options, gradients, rows=True, zero_without="kgbc", special_values=special
    )


def matched_feature_loss(scene: Scene) -> Case:
    shape = (scene.c, scene.pick(7, 1, 2, 3, 5, 8, 13), scene.pick(6, 1, 2, 3, 5, 8, 13))
    tensors = {"features": scene.normal(scene.k, *shape), "target_features": scene.normal(scene.g, *shape)}
    tensors["matched_idxs"] = scene.indices["matched_idxs"]
    options = {"output_size": scene.pair(3, 7), **_distance(scene)}
    return Case(cls2det_ops.matched_feature_loss, tensors, options, ("features",), rows=True, zero_without="kgc")


def masked_feature_loss(scene: Scene) -> Case:
    shape = (scene.k, scene.c, scene.height, scene.width)
    tensors = {"student": scene.normal(*shape), "teacher": scene.normal(*shape)}
    masks = {"mask": scene.normal(scene.k, scene.height, scene.width), "channel_mask": scene.normal(scene.k, scene.c)}
    tensors |= {name: scene.pick(mask.abs(), mask.relu()) for name, mask in masks.items()}
    return Case(
        cls2det_ops.masked_feature_loss,
        tensors,
        {"normalizer": scene.pick(1.0, 7.0), "reduction": scene.pick("none", "sum", "mean")},
        gradients=("student", "teacher"),
        optional=("mask", "channel_mask"),
        whole_maps=True,
        zero_without="kc",
        special_values={"student": (INF, NAN, 1e15)},
    )


def both_means(features: Tensor, **options: Any) -> Tensor:
    """Both results of attention_means side by side: (B, H W + C)."""
    spatial, channel = cls2det_ops.attention_means(features, **options)
    return torch.cat([spatial.flatten(1), channel], 1)


def attention_means(scene: Scene) -> Case:
    tensors = {"features": scene.normal(scene.k, scene.c, scene.height, scene.width)}
    options = {"absolute": scene.pick(True, False)}
    special = {"features": (INF, -INF, NAN, 0.0)}
    return Case(both_means, tensors, options, ("features",), whole_maps=True, zero_without="kc", special_values=special)


def frozen_stem(scene: Scene) -> Case:
    """Sums of a few whole numbers, which every dtype holds exactly: so all back ends decide ties alike."""
    inputs, kernel = scene.pick(3, 1, 2, 4, 5, 6), scene.pair(scene.kernel, 8)
    size = [max(side, length) for side, length in zip((scene.height, scene.width), kernel, strict=True)]
    weight = scene.whole(scene.c, inputs, *kernel) / 64
    few = torch.rand(weight.shape, generator=scene.random) < 40 / (inputs * kernel[0] * kernel[1])
    tensors = {"images": scene.normal(scene.k, inputs, *size).round().clamp(-2, 2), "weight": torch.where(few, weight, 0)}
    tensors["bias"] = scene.whole(scene.c) / 64
    options = {"stride": scene.pick(2, 1, 3), "padding": scene.pick(min(kernel) // 2, *range(min(kernel)))}
    return Case(cls2det_ops.frozen_stem, tensors, options, ("images",), whole_maps=True, zero_without="kc")


def imitation_mask(scene: Scene) -> Case:
    def numbers(anchors: Tensor, **arguments: Any) -> Tensor:
        """The mask as numbers, which compare like other results."""
        return cls2det_ops.imitation_mask(anchors, **arguments).to(check.accumulate_dtype(anchors.dtype))

    levels = scene.pick((430, 250, 20), (1,), (1, 1), (1, 1, 1, 1))
    sizes = tuple(scene.pick(level, *range(41)) for level in levels)
    tensors = {"anchors": scene.boxes(sum(sizes), 5, seed=2), "boxes": scene.boxes(scene.k, 5)}
    tensors["image_index"] = scene.below(scene.b, scene.k)
    options = {"images": scene.b, "level_sizes": sizes, "factor": scene.pick(0.5, 0.2, 0.9)}
    options["assignment"] = scene.pick("level", "all", "best")
    return Case(numbers, tensors, options, zero_without="kb", safe_boxes_alone=True)


def kd_softmax_loss(scene: Scene) -> Case:
    return _logits(scene, cls2det_ops.kd_softmax_loss, "first")


def kd_sigmoid_loss(scene: Scene) -> Case:
    return _logits(scene, cls2det_ops.kd_sigmoid_loss, "none", mode=scene.pick("bce", "l1norm"))


def _logits(scene: Scene, function: Callable, background: str, **options: str) -> Case:
    options |= {"temperature": scene.pick(2.0, 0.5, 1.0, 10.0), "background": scene.pick(background, "none", "first", "last")}
    columns, spread = scene.c + (options["background"] != "none"), scene.pick(3.0, 0.0, 1.0, 30.0)
    tensors = {"student_logits": scene.normal(scene.k, columns) * spread}
    tensors["teacher_logits"] = scene.normal(scene.g, scene.c) * spread
    tensors["matched_idxs"] = scene.indices["matched_idxs"]
    special = {"student_logits": LOGITS, "teacher_logits": LOGITS}
    return Case(function, tensors, options, ("student_logits",), rows=True, zero_without="kg", special_values=special)


def roi_kd_loss(scene: Scene) -> Case:
    def loss(features: Tensor, **tensors: Tensor) -> Tensor:
        """The composite as a function of tensors alone."""
        return cls2det_ops.roi_kd_loss(**tensors, maps=RoIMap(features, 3, 6, 0.5)).loss

    tensors = roi_feature_loss(scene).tensors
    del tensors["image_index"]
    tensors |= {"student_logits": scene.normal(scene.k, scene.c + 1), "teacher_logits": scene.normal(scene.g, scene.c)}
    return Case(loss, tensors, gradients=("student_logits", "boxes", "features"), zero_without="kg")


def _borders(scene: Scene) -> dict[str, Any]:
    return {"clip": scene.pick(True, False), "padding_mode": scene.pick("zeros", "border")}


def _pooling(scene: Scene) -> dict[str, Any]:
    sizes = {"output_size": scene.pair(3, 6), "sampling_size": scene.pair(6, 9)}
    return {**sizes, "spatial_scale": scene.pick(0.5, 1.0, 0.3, 1 / 16), **_borders(scene)}


def _distance(scene: Scene) -> dict[str, Any]:
    return {"loss": scene.pick("l1", "l2", "smooth_l1"), "beta": scene.pick(1.0, 0.1)}


def make_case(name: str, **sizes: Any) -> Case:
    """The case of an operator, for a :class:`Scene` of these sizes."""
    if name not in PUBLIC_OPS or name not in globals():
        raise KeyError(f"no case for {name}: write one in op_cases.py")
    return globals()[name](Scene(**sizes))


def large_case(name: str, **sizes: int) -> Case:
    """A case of many rows, or of a few whole maps: for tests of thousands of threads that the emulator runs one by one."""
    return make_case(name, **sizes | ({"k": 7} if make_case(name).whole_maps else {}))


def is_op(name: str) -> bool:
    """Whether a public name is the function of the module of that name."""
    return getattr(getattr(cls2det_ops, name), "__module__", "") == f"cls2det_ops.ops.{name}"


PUBLIC_OPS = [name for name in cls2det_ops.__all__ if is_op(name)]
DIFFERENTIABLE_OPS = [name for name in PUBLIC_OPS if make_case(name).gradients]
ROW_LOSSES = [name for name in PUBLIC_OPS if make_case(name).rows]
