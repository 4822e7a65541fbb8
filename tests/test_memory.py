"""Values are not trusted: no index, box or logit makes a kernel read or write outside of its tensors."""

from __future__ import annotations

import pytest

from helpers import run_python
from op_cases import PUBLIC_OPS

HOSTILE = """
import sys
sys.path.append({tests!r})
import torch
from cls2det_ops import use_backend
from op_cases import make_case

device, backend = {device!r}, {backend!r}
HUGE = [2**63 - 1, -(2**63), 2**62, 2**31, -(2**31) - 1, 2**32, 4, -1, 0]
VALUES = [float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e18, -1e18, 2.0**31, -(2.0**31), 1e-45, 2.0**24 + 2]

def call(case, tensors, options, dtype):
    moved = {{key: value.to(dtype) if value.is_floating_point() and "boxes" not in key else value
             for key, value in tensors.items()}}
    moved = {{key: value.to(device) for key, value in moved.items()}}
    leaves = [moved[name].detach().requires_grad_() for name in case.gradients]
    moved.update(zip(case.gradients, leaves))
    with use_backend(backend):
        output = case.function(**moved, **options)
        torch.autograd.grad(output.sum(), leaves)
    return output

case = make_case({name!r})
bounded = {{"clip": [True, False], "padding_mode": ["zeros", "border"]}} if {name!r} in ("roi_crop", "roi_avg_pool", "roi_feature_loss") else {{"": [None]}}
for dtype in (torch.float32, torch.bfloat16):
    for argument, value in case.tensors.items():
        if not value.is_floating_point():  # indices: all rows hostile
            bad = torch.tensor(HUGE, dtype=torch.int64).repeat(2)[: len(value)]
            output = call(case, case.tensors | {{argument: bad}}, case.options, dtype)
            assert output.isfinite().all(), (argument, output)
            continue
        for hostile in VALUES:  # one value everywhere, then in one place of the first row
            everywhere, once = torch.full_like(value, hostile), value.clone()
            once.view(len(value), -1)[0, 1] = hostile
            for clip in bounded.get("clip", [None]):
                for padding in bounded.get("padding_mode", [None]):
                    options = case.options | ({{}} if clip is None else {{"clip": clip, "padding_mode": padding}})
                    call(case, case.tensors | {{argument: everywhere}}, options, dtype)
                    call(case, case.tensors | {{argument: once}}, options, dtype)
print("survived")
"""


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_hostile_values_in_a_process_of_their_own(native_backend, name):
    """Also a test of time: a box of 1e18 pixels must not be walked pixel by pixel."""
    from pathlib import Path

    code = HOSTILE.format(
        name=name, tests=str(Path(__file__).parent), device=native_backend.device, backend="native"
    )
    result = run_python(code, MALLOC_PERTURB_="165")  # glibc fills fresh and freed memory: reads outside show
    assert result.returncode == 0, f"exit {result.returncode}\n{result.stdout}{result.stderr}"
    assert "survived" in result.stdout
