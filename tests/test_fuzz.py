"""Thousands of seeded random calls of every operator: sizes, strides, dtypes, options and values of every kind.

Each call runs between fences (guarded.py) and is held against the reference in float64. CLS2DET_FUZZ_EXAMPLES changes the
number of calls per operator and back end.
"""

from __future__ import annotations

import contextlib
import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from guarded import guarded_allocations
from helpers import DTYPES, LAYOUTS, ORACLE, assert_close, cast, evaluate, safe_boxes
from op_cases import PUBLIC_OPS, ROW_LOSSES, Case, make_case

EXAMPLES = int(os.environ.get("CLS2DET_FUZZ_EXAMPLES", "400"))
INF, NAN = float("inf"), float("nan")
BOX_KINDS = ("safe", "whole", "not finite", "far", "flat")
LOGIT_VALUES = (INF, -INF, NAN, 1e4, -1e4, 88.0, -104.0, 0.0)
SIZES = (1, 2, 3, 5, 8, 13)

fuzz = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def sprinkled(draw, tensor: Tensor, values: tuple[float, ...], most: int = 3) -> Tensor:
    """Some elements replaced by values from the list."""
    flat = tensor.flatten()
    for _ in range(draw(st.integers(0, most)) if flat.numel() else 0):
        flat[draw(st.integers(0, flat.numel() - 1))] = draw(st.sampled_from(values))
    return flat.view(tensor.shape)


def box_list(
    draw, kind: str, count: int, height: int, width: int, samples: tuple[int, int], scale: float, seed: int
) -> Tensor:
    boxes = safe_boxes(count, height, width, samples, scale=scale, seed=seed)
    if kind == "whole":  # on pixel borders and centres, where bilinear sampling has its kinks
        return (boxes * scale * 2).round() / 2 / scale
    if kind == "not finite":
        return sprinkled(draw, boxes, (INF, -INF, NAN))
    if kind == "far":
        return sprinkled(draw, boxes, (1e4, -1e4, 3e3, -1e-30))
    if kind == "flat" and count:
        boxes[::2, 2] = boxes[::2, 0]
        boxes[::3, 3] = boxes[::3, 1]
    return boxes


def index_of(draw, count: int, size: int) -> Tensor:
    """Mostly inside [0, size); some entries are not."""
    values = [draw(st.integers(-1, size)) if draw(st.integers(0, 5)) == 0 else draw(st.integers(0, max(size - 1, 0)))
              for _ in range(count)]  # fmt: skip
    return torch.tensor(values, dtype=torch.int64)


@st.composite
def calls(draw, name: str) -> tuple[Case, dict, dict]:
    """(case, layouts, what is special about its values)"""
    seed = draw(st.integers(0, 10**6))
    random = torch.Generator().manual_seed(seed)
    k, g, b = draw(st.integers(0, 14)), draw(st.integers(0, 5)), draw(st.integers(0, 3))
    c = draw(st.sampled_from((0, 1, 2, 3, 4, 5, 8, 16, 17, 20, 31, 33)))
    height, width = draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    special = {"dtype": draw(st.sampled_from(DTYPES)), "index": draw(st.sampled_from((torch.int32, torch.int64)))}
    options: dict = {}
    if name in ("kd_softmax_loss", "kd_sigmoid_loss"):
        c = draw(st.sampled_from((1, 2, 3, 20, 32, 33, 80, 81, 129)))
        options = {"temperature": draw(st.sampled_from((0.5, 1.0, 2.0, 10.0)))}
        options["background"] = draw(st.sampled_from(("none", "first", "last")))
        if name == "kd_sigmoid_loss":
            options["mode"] = draw(st.sampled_from(("bce", "l1norm")))
        spread = draw(st.sampled_from((0.0, 1.0, 30.0)))
        tensors = {
            "student_logits": sprinkled(draw, normal(k, c + (options["background"] != "none")) * spread, LOGIT_VALUES),
            "teacher_logits": sprinkled(draw, normal(g, c) * spread, LOGIT_VALUES),
        }
    elif name == "matched_feature_loss":
        tensors = {"features": normal(k, c, height, width), "target_features": normal(g, c, height, width)}
        options = {"output_size": (draw(st.integers(1, 7)), draw(st.integers(1, 7)))}
    elif name == "masked_feature_loss":
        masks = {"mask": (k, height, width), "channel_mask": (k, c)}
        tensors = {
            "student": sprinkled(draw, normal(k, c, height, width), (INF, NAN, 1e15)),
            "teacher": normal(k, c, height, width),
        }
        tensors |= {key: normal(*shape).relu() for key, shape in masks.items() if draw(st.booleans())}
        options = {
            "normalizer": draw(st.sampled_from((1.0, 7.0))),
            "reduction": draw(st.sampled_from(("none", "sum", "mean"))),
        }
    elif name == "imitation_mask":
        special["boxes"] = draw(st.sampled_from([kind for kind in BOX_KINDS if kind != "whole"]))  # equal IoUs may round apart
        sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))
        tensors = {
            "anchors": box_list(draw, special["boxes"], sum(sizes), height, width, (5, 5), 1.0, seed),
            "boxes": box_list(draw, special["boxes"], k, height, width, (5, 5), 1.0, seed + 1),
            "image_index": index_of(draw, k, b),
        }
        options = {"images": b, "level_sizes": sizes, "factor": draw(st.sampled_from((0.2, 0.5, 0.9)))}
        options["assignment"] = draw(st.sampled_from(("level", "all", "best")))
    elif name == "frozen_stem":  # values that every dtype holds, as in op_cases
        kernel, inputs = (draw(st.integers(1, 8)), draw(st.integers(1, 8))), draw(st.integers(1, 6))
        options = {"stride": draw(st.integers(1, 3)), "padding": draw(st.integers(0, min(kernel) - 1))}
        size = [max(side, k) for side, k in zip((height, width), kernel, strict=True)]
        tensors = {"images": normal(k, inputs, *size).round().clamp(-2, 2), "bias": normal(c).round()}
        tensors["weight"] = normal(c, inputs, *kernel).round().clamp(-1, 1)
        few = torch.rand(c, inputs, *kernel, generator=random) < 40 / (inputs * kernel[0] * kernel[1])
        tensors["weight"] = torch.where(few, tensors["weight"], 0)  # sums below 256: exact in bfloat16
    elif name == "attention_means":
        tensors = {"features": sprinkled(draw, normal(k, c, height, width), (INF, -INF, NAN, 0.0))}
        options = {"absolute": draw(st.booleans())}
    else:
        samples = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
        bins = samples if name == "roi_crop" else (draw(st.integers(1, 6)), draw(st.integers(1, 6)))
        scale = 1.0 if name == "roi_crop" else draw(st.sampled_from((1.0, 0.5, 0.3, 1 / 16)))
        special["boxes"] = draw(st.sampled_from(BOX_KINDS))
        options = {
            "output_size": bins,
            "clip": draw(st.booleans()),
            "padding_mode": draw(st.sampled_from(("zeros", "border"))),
        }
        if name != "roi_crop":
            options |= {"sampling_size": samples, "spatial_scale": scale}
        features = normal(b, c, height, width)
        if special["boxes"] == "safe" and options["padding_mode"] == "zeros":
            # with "border" torch multiplies pixels that it does not need by 0
            features = sprinkled(draw, features, (INF, -INF, NAN, 1e15))
        tensors = {
            "images" if name == "roi_crop" else "features": features,
            "boxes": box_list(draw, special["boxes"], k, height, width, samples, scale, seed),
            "image_index": index_of(draw, k, b),
        }
        if name == "roi_feature_loss":
            kind = "safe" if special["boxes"] == "not finite" else special["boxes"]
            tensors["target_boxes"] = box_list(draw, kind, g, height, width, samples, scale, seed + 1)
            tensors["target_image_index"] = index_of(draw, g, b)
    if name in ROW_LOSSES:
        tensors["matched_idxs"] = index_of(draw, k, g)
        options["reduction"] = draw(st.sampled_from(("none", "sum", "mean")))
        if name.endswith("feature_loss"):
            smooth = special["dtype"] != torch.float64  # rounding in fewer bits turns the sign of a difference near 0
            losses = ("l2", "smooth_l1") if smooth else ("l1", "l2", "smooth_l1")
            options |= {"loss": draw(st.sampled_from(losses)), "beta": draw(st.sampled_from((0.1, 1.0)))}
        if draw(st.booleans()):
            tensors["weight"] = torch.rand(k, generator=random, dtype=torch.float64).round(decimals=1)
    layouts = {key: LAYOUTS[layout] for key in tensors if (layout := draw(st.sampled_from(("", *LAYOUTS))))}
    case = make_case(name)
    return Case(case.function, tensors, options, case.gradients), layouts, special


def check(backend, case: Case, layouts: dict, special: dict) -> None:
    tensors = cast(case.tensors, special["dtype"], special["index"])
    exact = cast(tensors, torch.float64)
    expected, _ = evaluate(ORACLE, case.function, exact, case.options)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5)).to(special["dtype"])
    _, expected_grads = evaluate(ORACLE, case.function, exact, case.options, case.gradients, upstream)
    fences = guarded_allocations() if backend.device == "cpu" else contextlib.nullcontext()
    with fences:
        output, grads = evaluate(backend, case.function, tensors, case.options, case.gradients, upstream, layouts)
        output, grads = output.cpu().clone(), {key: grad.cpu().clone() for key, grad in grads.items()}
        if special["dtype"] != torch.float64:  # a probability that is 0 in float32 alone keeps an infinite divergence out
            expected = torch.where(expected.isposinf() & output.isfinite(), output.double(), expected)
        least = 1e-4 if special["dtype"] == torch.float16 else 1e-30  # below, float16 has fewer bits
        temperature = case.options.get("temperature", 0.0)  # divergences are differences of terms of size T^2
        terms = len(next(iter(tensors.values()))) if case.options.get("reduction") == "sum" else 1
        assert_close(output, expected, nan=True, least_scale=0.1 * temperature**2 * terms + least)
        for key, grad in grads.items():
            assert grad.dtype == tensors[key].dtype
            compare_gradient(key, grad, expected_grads[key], exact, expected, special, 0.1 * temperature + least)
        del output, grads


def compare_gradient(
    key: str, grad: Tensor, expected: Tensor, tensors: dict, output: Tensor, special: dict, least: float
) -> None:
    """Where the gradient is defined: not by a box on a kink or by one that is not finite, nor of an infinite loss."""
    if key == "boxes":
        if special["boxes"] == "whole":
            return
        finite = tensors["boxes"].isfinite().all(1)
        grad, expected = grad[finite], expected[finite]
    if not output.isfinite().all():
        return
    assert_close(grad, expected, nan=True, least_scale=least)


@pytest.mark.parametrize("name", [name for name in PUBLIC_OPS if name != "roi_kd_loss"])
@fuzz
@given(data=st.data())
def test_against_the_reference(kernel_backend, name, data):
    case, layouts, special = data.draw(calls(name))
    check(kernel_backend, case, layouts, special)
