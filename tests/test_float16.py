"""float16 at its limits: the largest and the smallest numbers, infinities, and sums that float16 could not hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers import BOX_ARGUMENTS, cast, compare, evaluate
from op_cases import PUBLIC_OPS, Case, make_case

LARGEST, SMALLEST = 65504.0, 2.0**-14  # the smallest with all its bits
KINDS = {
    "largest": lambda value: value.sign() * LARGEST,
    "smallest": lambda value: value.sign() * SMALLEST,
    "both": lambda value: torch.where(value.abs() < 1, value.sign() * SMALLEST, value.sign() * LARGEST),
}


def is_half(case: Case, name: str) -> bool:
    """Whether an argument is a map or logits, which are stored in 16 bits."""
    return name not in BOX_ARGUMENTS and (name in case.gradients or name.startswith(("target_features", "teacher")))


def extreme(name: str, kind: str) -> Case:
    case = make_case(name, k=33, g=7, c=40)
    tensors = {key: KINDS[kind](value) if is_half(case, key) else value for key, value in case.tensors.items()}
    return replace(case, tensors=tensors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_extremes(kernel_backend, name, kind):
    """Differences of 131,008 and sums of thousands of them are computed in float32, and rounded only then."""
    case = extreme(name, kind)
    options = case.options | ({"reduction": "none"} if case.rows else {})
    gradients = tuple(key for key in case.gradients if not is_half(case, key))  # theirs are rounded to 0 or infinity
    if kind == "smallest" and name == "kd_sigmoid_loss":  # two distributions that are the same but for rounding
        output, _ = evaluate(kernel_backend, case.function, cast(case.tensors, torch.float16), options)
        assert output.abs().max() < 1e-6
    else:
        output, _ = compare(kernel_backend, case.function, case.tensors, options, torch.float16, gradients)
        assert output.isfinite().all()
