"""Values are not trusted: no index, box or logit makes a kernel read or write outside of its tensors."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest
import torch

import emulated
from forked import run_forked
from guarded import guarded_allocations
from helpers import run_python
from op_cases import PUBLIC_OPS

TESTS = str(Path(__file__).parent)

HOSTILE = """
import itertools, sys
tests, name, backend = sys.argv[1:]
sys.path.append(tests)
import torch
from backends import BACKENDS
from op_cases import make_case

backend = BACKENDS[backend]
HUGE = [2**63 - 1, -(2**63), 2**62, 2**31, -(2**31) - 1, 2**32, 4, -1, 0]
VALUES = [float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e18, -1e18, 2.0**31, -(2.0**31), 1e-45, 2.0**24 + 2]

def call(case, tensors, options, dtype):
    moved = {key: value.to(dtype) if value.is_floating_point() and "boxes" not in key else value
             for key, value in tensors.items()}
    moved = {key: value.to(backend.device) for key, value in moved.items()}
    leaves = [moved[name].detach().requires_grad_() for name in case.gradients]
    moved.update(zip(case.gradients, leaves))
    with backend.context():
        output = case.function(**moved, **options)
        if leaves:
            torch.autograd.grad(output.sum(), leaves)
    return output

case = make_case(name, c=3, height=7, width=9)
borders = [dict(clip=clip, padding_mode=mode) for clip in (True, False) for mode in ("zeros", "border")]
borders = borders if "clip" in case.options else [{}]
for dtype in (torch.float32, torch.bfloat16):
    for argument, value in case.tensors.items():
        if not value.is_floating_point():  # indices: all rows hostile
            bad = torch.tensor(HUGE, dtype=torch.int64).repeat(2)[: len(value)]
            output = call(case, case.tensors | {argument: bad}, case.options, dtype)
            assert output.isfinite().all(), (argument, output)
            continue
        for hostile, border in itertools.product(VALUES, borders):  # one value everywhere, then in one place of the first row
            everywhere, once = torch.full_like(value, hostile), value.clone()
            once.view(-1)[1] = hostile
            call(case, case.tensors | {argument: everywhere}, case.options | border, dtype)
            call(case, case.tensors | {argument: once}, case.options | border, dtype)
print("survived")
"""


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_hostile_values_in_a_process_of_their_own(backend, name):
    """It would also run out of time if a kernel walked a box of 1e18 pixels pixel by pixel."""
    run = run_python if backend.device == "cuda" else run_forked  # a fork cannot use a GPU that its parent has used
    result = run(HOSTILE, TESTS, name, backend.name)
    assert result.returncode == 0, f"exit {result.returncode}\n{result.stdout}{result.stderr}"
    assert "survived" in result.stdout


GUARDED = """
import ctypes, mmap, sys
tests, name, backend = sys.argv[1:]
sys.path.append(tests)
import torch
from backends import BACKENDS
from op_cases import make_case

libc = ctypes.CDLL(None, use_errno=True)
keep = []

def guarded(tensor, side):
    # a copy that ends at ("after"), or starts behind ("before"), a page that may not be touched
    if tensor.numel() == 0:
        return tensor
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        return guarded(tensor.permute(0, 2, 3, 1).contiguous(), side).permute(0, 3, 1, 2)
    size = tensor.numel() * tensor.element_size()
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    guard = start if side == "before" else start + pages * mmap.PAGESIZE
    offset = mmap.PAGESIZE if side == "before" else pages * mmap.PAGESIZE - size
    view = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset).view(tensor.shape).copy_(tensor)
    assert libc.mprotect(ctypes.c_void_p(guard), mmap.PAGESIZE, 0) == 0
    keep.append(memory)
    return view

with BACKENDS[backend].context():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for c, width in ((3, 13), (4, 16), (16, 17), (17, 9), (33, 7), (64, 15), (80, 4)):
            case = make_case(name, k=5, c=c, width=width)
            for side in ("before", "after"):
                for channels_last in (False, True):
                    tensors = {}
                    for key, value in case.tensors.items():
                        if value.is_floating_point():
                            value = value.to(torch.float64 if dtype == torch.float64 else torch.float32 if "boxes" in key else dtype)
                        if channels_last and value.dim() == 4:
                            value = value.contiguous(memory_format=torch.channels_last)
                        tensors[key] = guarded(value, side)
                    leaves = [tensors[argument].requires_grad_() for argument in case.gradients]
                    output = case.function(**tensors, **case.options)
                    upstream = guarded(torch.ones(output.shape, dtype=output.dtype), side)
                    if leaves:
                        torch.autograd.grad(output, leaves, upstream)
print("survived")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as on Linux")
@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_no_read_beyond_either_end_of_an_input(kernel_backend, name):
    """First every input ends at a page that ends the process when it is read, then every input starts behind one."""
    if kernel_backend.device != "cpu":
        pytest.skip("the memory of a GPU has no such pages: compute-sanitizer looks there")
    result = run_forked(GUARDED, TESTS, name, kernel_backend.name)
    assert result.returncode == 0, f"exit {result.returncode}\n{result.stdout}{result.stderr[-2000:]}"
    assert "survived" in result.stdout


@pytest.mark.parametrize("offset", [-1, -4000, 20, 4000])
def test_fences_of_the_fuzz_notice_a_single_byte(offset):
    if emulated.BUILDS["plain"].compiler() is None:
        pytest.skip("no C++ compiler")

    def overwrite(offset: int) -> None:
        tensor = torch.zeros(5)  # 20 bytes
        ctypes.memset(tensor.data_ptr() + offset, 0, 1)

    with guarded_allocations():
        assert torch.empty(5).isnan().all()
        overwrite(0)
    with pytest.raises(AssertionError, match="1 bytes outside of tensors were overwritten"), guarded_allocations():
        overwrite(offset)
