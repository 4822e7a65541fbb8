"""Every registered operator passes torch's opcheck; every public one has a reference, a test file and a benchmark."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import cls2det_ops
from backends import Backend
from cls2det_ops import reference
from helpers import cast, evaluate
from op_cases import DIFFERENTIABLE_OPS, PUBLIC_OPS, Case, make_case

COMPOSITES = {"roi_kd_loss"}  # made of public operators: their references are its reference
ROOT = Path(__file__).parents[1]


class Recorder(TorchDispatchMode):
    """The calls of our operators inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "cls2det":
            assert not kwargs, "arguments that the schema allows by name alone"
            self.calls.append((function.__name__.split(".")[0], args))
        return function(*args, **(kwargs or {}))


def variants(name: str) -> Iterator[tuple[Case, tuple[str, ...]]]:
    """A case and the gradients to ask for: all, the first alone, the last alone, none; and once without the optional tensors."""
    case = make_case(name)
    for gradients in dict.fromkeys((case.gradients, case.gradients[:1], case.gradients[-1:], ())):
        yield case, gradients
    if case.optional:
        without = {key: value for key, value in case.tensors.items() if key not in case.optional}
        yield replace(case, tensors=without), case.gradients


@functools.cache
def calls_of(name: str, dtype: torch.dtype, backend: Backend) -> list[tuple[str, tuple]]:
    """The operators that a public function calls in both directions, with their arguments, without repetition."""
    calls = {}
    for case, gradients in variants(name):
        with Recorder() as recorder:
            evaluate(backend, case.function, cast(case.tensors, dtype), case.options, gradients)
        for operator, arguments in recorder.calls:
            kind = [(value.shape, value.requires_grad) if torch.is_tensor(value) else value for value in arguments]
            calls[operator, str(kind)] = operator, arguments
    return list(calls.values())


def leaves(operator: str, arguments: tuple) -> tuple:
    """Copies of the arguments. Those of a backward operator need no gradient, since it refuses to be differentiated."""
    differentiated = operator in DIFFERENTIABLE_OPS
    return tuple(
        value.detach().clone().requires_grad_(differentiated and value.requires_grad) if torch.is_tensor(value) else value
        for value in arguments
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in PUBLIC_OPS if name not in COMPOSITES])
def test_opcheck(native_backend, name, dtype):
    """Schema (no aliasing, no hidden mutation), fake kernel, autograd registration, and AOT dispatch of each operator."""
    pytest.importorskip("expecttest")  # torch's opcheck needs it
    for operator, arguments in calls_of(name, dtype, native_backend):
        torch.library.opcheck(getattr(torch.ops.cls2det, operator).default, leaves(operator, arguments))


def test_the_cases_call_every_registered_operator(native_backend):
    """So opcheck sees every operator, and every operator has a public function."""
    called = {operator for name in PUBLIC_OPS for operator, _ in calls_of(name, torch.float32, native_backend)}
    names = (name.split("::") for name in torch._C._dispatch_get_all_op_names())
    assert called == {operator.split(".")[0] for namespace, operator in names if namespace == "cls2det"}


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_native_call_reaches_the_kernels_and_reference_call_does_not(native_backend, name):
    case = make_case(name)
    tensors = {key: value.to(native_backend.device) for key, value in case.tensors.items()}
    with native_backend.context(), Recorder() as recorder:
        case.function(**tensors, **case.options)
    assert recorder.calls
    with cls2det_ops.use_backend("reference"), Recorder() as recorder:
        case.function(**tensors, **case.options)
    assert not recorder.calls


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_public_operator_has_reference_test_and_benchmark(name):
    assert name in COMPOSITES or inspect.isfunction(getattr(reference, name, None)), f"reference.py lacks {name}"
    assert (ROOT / "tests" / f"test_{name}.py").is_file()
    assert (ROOT / "benchmarks" / f"test_bench_{name}.py").is_file()
    assert not name.startswith("_") and getattr(cls2det_ops, name).__module__ == f"cls2det_ops.ops.{name}"


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_public_docstring_tells_what_a_user_needs(name):
    function = getattr(cls2det_ops, name)
    text = inspect.getdoc(function)
    for needed in ("Args:", "Returns:", "Gradients flow to", "Raises:", ".. math::"):
        assert needed in text or needed.rstrip(":") + ": " in text, f"the docstring of {name} lacks {needed}"
    for argument in inspect.signature(function).parameters:
        assert argument in text, f"the docstring of {name} does not mention {argument}"


@pytest.mark.parametrize("name", DIFFERENTIABLE_OPS)
@pytest.mark.filterwarnings("ignore")
def test_a_trace_holds_the_operator(native_backend, name):
    """The short way of eager calls must not show in a TorchScript trace, where it would be a Python function."""
    case = make_case(name)
    tensors = [value.to(native_backend.device).requires_grad_(key in case.gradients) for key, value in case.tensors.items()]

    def function(*values: torch.Tensor) -> torch.Tensor:
        return case.function(**dict(zip(case.tensors, values, strict=True)), **case.options)

    with native_backend.context():
        graph = str(torch.jit.trace(function, tuple(tensors), check_trace=False).graph)
    assert "cls2det::" in graph and "^" not in graph


@pytest.mark.parametrize("name", PUBLIC_OPS)
@pytest.mark.parametrize("mode", ["auto", "reference"])
@pytest.mark.parametrize("debug", [False, True])
def test_shapes_on_the_meta_device(name, mode, debug):
    """Without compiled schemas too: the plain back end gives them."""

    def results(device: str, size: int) -> list[tuple]:
        case = make_case(name, k=size)
        tensors = {key: value.detach().clone().to(device) for key, value in cast(case.tensors, torch.float32).items()}
        for argument in case.gradients:
            tensors[argument].requires_grad_()
        outputs = case.function(**tensors, **case.options)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if case.gradients:
            torch.stack([output.sum() for output in outputs]).sum().backward()
        gradients = [tensors[argument].grad for argument in case.gradients]
        assert {value.device.type for value in (*outputs, *gradients)} == {device}
        return [(value.shape, value.dtype) for value in (*outputs, *gradients)]

    with cls2det_ops.use_backend(mode), cls2det_ops.debug_values(debug):
        for size in (9, 0):
            assert results("meta", size) == results("cpu", size)
