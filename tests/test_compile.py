"""torch.compile without graph breaks, one graph for every number of positives, autocast, and export."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from cls2det_ops import kd_softmax_loss
from helpers import TOLERANCE, assert_close, cast, evaluate
from op_cases import PUBLIC_OPS, make_case


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_call(function, case, device):
    """Output and gradients of one compiled call, as evaluate gives them for an eager one."""
    tensors = {key: value.to(device) for key, value in cast(case.tensors, torch.float32).items()}
    leaves = [tensors[argument].requires_grad_() for argument in case.gradients]
    output = function(**tensors)
    if not leaves:
        return output, {}
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    grads = torch.autograd.grad(output, leaves, upstream.to(output.device, output.dtype))
    return output.detach(), dict(zip(case.gradients, grads, strict=True))


def check(backend, function, case):
    expected, expected_grads = evaluate(
        backend, case.function, cast(case.tensors, torch.float32), case.options, case.gradients
    )
    output, grads = compiled_call(function, case, backend.device)
    assert_close(output, expected)
    for argument in case.gradients:
        assert_close(grads[argument], expected_grads[argument])


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_fullgraph_forward_and_backward(native_backend, name):
    case = make_case(name)
    function = torch.compile(lambda **tensors: case.function(**tensors, **case.options), fullgraph=True, backend="aot_eager")
    with native_backend.context():
        check(native_backend, function, case)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_no_recompilation_per_number_of_positives(native_backend, name, dynamic):
    """By default one graph for the first K and one for all others; dynamic=True needs no second."""
    counter = CompileCounterWithBackend("aot_eager")
    first = make_case(name)
    function = torch.compile(
        lambda **tensors: first.function(**tensors, **first.options), fullgraph=True, dynamic=dynamic, backend=counter
    )
    settled = 1 if dynamic else 2
    counts = []
    with native_backend.context():
        for k in (9, 12, 5, 33, 20, 7):
            check(native_backend, function, make_case(name, k=k))
            counts.append(counter.frame_count)
    assert counts[settled - 1 :] == [counts[settled - 1]] * (7 - settled), f"compilations after each K: {counts}"


@pytest.mark.parametrize("name", ["kd_softmax_loss", "roi_feature_loss"])
def test_normalizer_as_tensor_does_not_recompile(native_backend, name):
    counter = CompileCounterWithBackend("aot_eager")
    case = make_case(name)
    function = torch.compile(lambda n, **t: case.function(**t, **case.options, normalizer=n), fullgraph=True, backend=counter)
    tensors = {key: value.to(native_backend.device) for key, value in case.tensors.items()}
    with native_backend.context():
        losses = [function(torch.tensor(float(n), device=native_backend.device), **tensors) * n for n in (2, 3, 5, 7)]
    assert counter.frame_count == 1
    for value in losses[1:]:
        assert_close(value, losses[0])


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler on CPU")
def test_inductor(native_backend):
    """With the default compiler of torch, amid operations that it fuses."""
    case = make_case("kd_softmax_loss")
    tensors = {key: value.to(native_backend.device) for key, value in cast(case.tensors, torch.float32).items()}

    def step(student, teacher, match):
        return kd_softmax_loss(student.relu() * 2, teacher, match) + student.square().mean()

    student = tensors["student_logits"].requires_grad_()
    rest = tensors["teacher_logits"], tensors["matched_idxs"]
    with native_backend.context():
        expected = step(student, *rest)
        (expected_grad,) = torch.autograd.grad(expected, student)
        output = torch.compile(step, fullgraph=True)(student, *rest)
        (grad,) = torch.autograd.grad(output, student)
    assert_close(output, expected)
    assert_close(grad, expected_grad)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_autocast_changes_nothing(backend, name, low):
    """Inside autocast the ops compute in the dtype of what they are given: float32 inputs lose no precision."""
    case = make_case(name)
    tensors = cast(case.tensors, torch.float32)
    expected, expected_grads = evaluate(backend, case.function, tensors, case.options, case.gradients)

    def function(**arguments):
        with torch.autocast(backend.device, low):
            return case.function(**arguments)

    output, grads = evaluate(backend, function, tensors, case.options, case.gradients)
    assert output.dtype == expected.dtype
    assert_close(output, expected)
    for argument in case.gradients:
        assert_close(grads[argument], expected_grads[argument])


def test_autocast_logits_of_a_layer(backend):
    """A head under autocast gives bfloat16 logits, the frozen teacher float32 ones; the gradient reaches the float32 weight."""
    case = make_case("kd_softmax_loss")
    head = torch.nn.Linear(8, 6).to(backend.device)
    inputs = torch.randn(9, 8, generator=torch.Generator().manual_seed(0)).to(backend.device)
    teacher, match = (case.tensors[key].to(backend.device) for key in ("teacher_logits", "matched_idxs"))
    losses = []
    for enabled in (False, True):
        head.zero_grad()
        with backend.context(), torch.autocast(backend.device, torch.bfloat16, enabled=enabled):
            loss = kd_softmax_loss(head(inputs), teacher.float(), match)
        loss.backward()
        losses.append((loss.detach(), head.weight.grad.clone()))
    assert losses[1][0].dtype == torch.float32
    assert_close(losses[1][0], losses[0][0], tolerance=2 * TOLERANCE[torch.bfloat16])
    assert_close(losses[1][1], losses[0][1], tolerance=4 * TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_export(native_backend, name):
    case = make_case(name)
    tensors = {key: value.to(native_backend.device) for key, value in cast(case.tensors, torch.float32).items()}

    class Step(torch.nn.Module):
        def forward(self, **arguments):
            return case.function(**arguments, **case.options)

    with native_backend.context():
        program = torch.export.export(Step(), (), tensors)
        assert_close(program.module()(**tensors), case.function(**tensors, **case.options))
    assert any("cls2det" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_export_for_any_number_of_positives(native_backend, name):
    """One exported program serves every K."""
    case = make_case(name)

    class Step(torch.nn.Module):
        def forward(self, tensors):
            return case.function(**tensors, **case.options)

    def tensors_of(k: int) -> dict[str, torch.Tensor]:
        return {
            key: value.to(native_backend.device) for key, value in cast(make_case(name, k=k).tensors, torch.float32).items()
        }

    positives = torch.export.Dim("positives", min=2)
    few, many = make_case(name, k=9).tensors, make_case(name, k=12).tensors
    dynamic = {key: {0: positives} if few[key].shape != many[key].shape else None for key in few}
    assert any(dynamic.values())
    with native_backend.context():
        program = torch.export.export(Step(), (tensors_of(9),), dynamic_shapes=(dynamic,))
        for k in (9, 5, 33):
            assert_close(program.module()(tensors_of(k)), case.function(**tensors_of(k), **case.options))
