"""Seeded random calls of every operator: sizes, strides, dtypes, options and values of every kind.

Each call runs between fences (guarded.py) and is compared with the reference in float64. CLS2DET_FUZZ_EXAMPLES changes the
number of calls per operator and back end.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from guarded import guarded_allocations
from helpers import BOX_ARGUMENTS, DTYPES, LAYOUTS, ORACLE, assert_close, cast, evaluate
from op_cases import INF, NAN, PUBLIC_OPS, Case, make_case

EXAMPLES = int(os.environ.get("CLS2DET_FUZZ_EXAMPLES", "100"))
BOX_KINDS = ("safe", "whole", "not finite", "far", "flat")
CLASSES = (1, 2, 3, 20, 32, 33, 80, 81, 129)
CHANNELS = (0, 1, 2, 3, 4, 5, 8, 16, 17, 20, 31, 33)
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


def changed_boxes(draw, kind: str, boxes: Tensor, scale: float) -> Tensor:
    if kind == "whole":  # on pixel borders and centres, where bilinear sampling has its kinks
        return (boxes * scale * 2).round() / 2 / scale
    if kind == "not finite":
        return sprinkled(draw, boxes, (INF, -INF, NAN))
    if kind == "far":
        return sprinkled(draw, boxes, (1e4, -1e4, 3e3, -1e-30))
    if kind == "flat" and len(boxes):
        boxes[::2, 2] = boxes[::2, 0]
        boxes[::3, 3] = boxes[::3, 1]
    return boxes


def index_of(draw, count: int, size: int) -> Tensor:
    """Indices that are mostly inside [0, size)."""
    values = [draw(st.integers(-1, size)) if draw(st.integers(0, 5)) == 0 else draw(st.integers(0, max(size - 1, 0)))
              for _ in range(count)]  # fmt: skip
    return torch.tensor(values, dtype=torch.int64)


@st.composite
def calls(draw, name: str) -> tuple[Case, dict, dict]:
    """A case, layouts by argument, and dtypes and kind of boxes by name."""
    usual = make_case(name)
    special = {"dtype": draw(st.sampled_from(DTYPES)), "index": draw(st.sampled_from((torch.int32, torch.int64)))}

    def pick(*values):
        if special["dtype"] != torch.float64:  # rounding in fewer bits turns the sign of a difference near 0
            values = [value for value in values if not (isinstance(value, str) and value == "l1")]
        return draw(st.sampled_from(values))

    sizes = {"k": draw(st.integers(0, 14)), "g": draw(st.integers(0, 5)), "b": draw(st.integers(0, 3))}
    sizes["c"] = draw(st.sampled_from(CHANNELS if "c" in usual.zero_without else CLASSES))
    sizes |= {"height": draw(st.sampled_from(SIZES)), "width": draw(st.sampled_from(SIZES))}
    case = make_case(name, **sizes, pick=pick, seed=draw(st.integers(0, 10**6)))
    tensors, options = dict(case.tensors), dict(case.options)
    if "boxes" in tensors:
        special["boxes"] = draw(
            st.sampled_from([kind for kind in BOX_KINDS if not (case.safe_boxes_alone and kind == "whole")])
        )
    # with "border" torch multiplies pixels that it does not need by 0
    pixels = special.get("boxes", "safe") == "safe" and options.get("padding_mode", "zeros") == "zeros"
    for key, value in case.tensors.items():
        if key in case.optional and draw(st.booleans()):
            del tensors[key]
        elif key in BOX_ARGUMENTS:
            kind = "safe" if key == "target_boxes" and special["boxes"] == "not finite" else special["boxes"]
            tensors[key] = changed_boxes(draw, kind, value, options.get("spatial_scale", 1.0))
        elif not value.is_floating_point():
            tensors[key] = index_of(draw, len(value), sizes["g" if key == "matched_idxs" else "b"])
        elif key in case.special_values and pixels:
            tensors[key] = sprinkled(draw, value, case.special_values[key])
    if case.rows:
        options["reduction"] = draw(st.sampled_from(("none", "sum", "mean")))
        if draw(st.booleans()):
            random = torch.Generator().manual_seed(draw(st.integers(0, 100)))
            tensors["weight"] = torch.rand(sizes["k"], generator=random, dtype=torch.float64).round(decimals=1)
    layouts = {key: LAYOUTS[layout] for key in tensors if (layout := draw(st.sampled_from(("", *LAYOUTS))))}
    return replace(case, tensors=tensors, options=options), layouts, special


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
