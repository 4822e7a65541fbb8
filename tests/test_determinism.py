"""The same call gives the same bits, whatever the number of threads and whatever ran before."""

from __future__ import annotations

import pytest
import torch

from backends import Backend
from helpers import cast, evaluate
from op_cases import PUBLIC_OPS, Case, large_case, make_case

LARGE = {"k": 300, "g": 40, "b": 3, "c": 33, "height": 23, "width": 30}  # enough rows to be shared among threads


def bits(backend: Backend, case: Case, dtype: torch.dtype) -> list[torch.Tensor]:
    options = case.options | ({"reduction": "none"} if case.rows else {})
    output, grads = evaluate(backend, case.function, cast(case.tensors, dtype), options, case.gradients)
    return [output, *grads.values()]


def equal_bits(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_twice(backend, name, dtype, threads):
    if backend.device == "cuda" and backend.name == "reference":
        pytest.skip("plain PyTorch scatters with atomics")
    threads(2)
    case = large_case(name, **LARGE)
    first = bits(backend, case, dtype)
    assert all(tensor.isfinite().all() for tensor in first)
    for _ in range({"cuda": 20, "emulated": 1}.get(backend.name, 3)):  # tests/emu changes the order of the emulation's threads
        assert equal_bits(first, bits(backend, case, dtype))


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_one_thread_or_three(native_backend, name, threads):
    case = large_case(name, **LARGE)
    threads(1)
    one = bits(native_backend, case, torch.float32)
    for count in (2, 3):
        threads(count)
        assert equal_bits(one, bits(native_backend, case, torch.float32)), f"{count} threads give other bits than one"


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_two_calls_at_once_from_two_python_threads(native_backend, name):
    """DataParallel and ThreadPool users: no state is shared between calls."""
    from concurrent.futures import ThreadPoolExecutor

    case = large_case(name, **LARGE)
    with native_backend.context():
        expected = bits(native_backend, case, torch.float32)
        with ThreadPoolExecutor(2) as pool:
            for result in pool.map(lambda _: bits(native_backend, case, torch.float32), range(4)):
                assert equal_bits(expected, result)


@pytest.mark.parametrize("name", ["kd_softmax_loss", "kd_sigmoid_loss", "matched_feature_loss", "roi_feature_loss"])
def test_a_row_does_not_depend_on_its_neighbours(kernel_backend, name):
    case = large_case(name, **LARGE)
    few = make_case(name, **(LARGE | {"k": 5}))
    few_tensors = dict(case.tensors)
    for key, value in few.tensors.items():
        if len(value) == 5 and not key.startswith(("target", "teacher")):
            few_tensors[key] = case.tensors[key][7:12]
    options = case.options | {"reduction": "none"}
    everything, _ = evaluate(kernel_backend, case.function, cast(case.tensors, torch.float32), options)
    alone, _ = evaluate(kernel_backend, case.function, cast(few_tensors, torch.float32), options)
    assert torch.equal(everything[7:12], alone)
