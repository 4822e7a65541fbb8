"""What only a GPU can show: streams, captured graphs, no waiting for the host, a second device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backends import BACKENDS
from helpers import assert_close, cast
from op_cases import PUBLIC_OPS, Case, make_case

CUDA = BACKENDS["cuda"]
pytestmark = pytest.mark.skipif(bool(CUDA.missing), reason=f"cuda: {CUDA.missing}")
SIZES = {"k": 70, "g": 9, "b": 3, "c": 21, "height": 19, "width": 33}


def on_gpu(case: Case, device: str = "cuda") -> dict[str, Tensor]:
    tensors = {name: value.to(device) for name, value in cast(case.tensors, torch.float32).items()}
    return {name: value.requires_grad_(name in case.gradients) for name, value in tensors.items()}


def step(case: Case, tensors: dict[str, Tensor], **options) -> list[Tensor]:
    """Output and gradients of one forward and backward; nothing in it leaves the device."""
    with CUDA.context():
        output = case.function(**tensors, **case.options, **options)
        leaves = [tensors[name] for name in case.gradients]
        grads = torch.autograd.grad(output.square().sum(), leaves) if leaves else ()
        return [output.detach(), *grads]


def assert_same_bits(results: list[Tensor], expected: list[Tensor]) -> None:
    for result, reference in zip(results, expected, strict=True):
        assert reference.isfinite().all()
        assert torch.equal(result, reference)


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_side_stream(name):
    """Everything runs on the current stream: inputs that arrive late there are waited for."""
    case = make_case(name, **SIZES)
    source = on_gpu(case)
    expected = step(case, source)
    late = {key: torch.full_like(value, -7) for key, value in source.items()}
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # tens of milliseconds
        for key, value in late.items():
            value.copy_(source[key].detach())
        for key in case.gradients:
            late[key].requires_grad_()
        results = step(case, late)
    stream.synchronize()
    assert_same_bits(results, expected)


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_captured_graph_of_forward_and_backward(name):
    case = make_case(name, **SIZES)
    static = on_gpu(case)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(case, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(case, static)
    for factor in (1.0, 0.7):
        with torch.no_grad():
            for key, value in static.items():
                if value.is_floating_point() and "boxes" not in key:
                    value.copy_(case.tensors[key].float() * factor)
        graph.replay()
        assert_same_bits(captured, step(case, static))


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_no_host_synchronisation(name):
    case = make_case(name, **SIZES)
    tensors = on_gpu(case)
    options = {}
    if case.rows:
        options = {"weight": torch.rand(SIZES["k"], device="cuda"), "normalizer": torch.full((), 3.0, device="cuda")}
    expected = step(case, tensors, **options)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = step(case, tensors, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same_bits(results, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU or none")
@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_second_device_while_the_first_is_current(name):
    case = make_case(name, **SIZES)
    expected = step(case, on_gpu(case))
    results = step(case, on_gpu(case, "cuda:1"))
    assert all(value.device.index == 1 for value in results)
    for result, reference in zip(results, expected, strict=True):
        assert_close(result, reference)
