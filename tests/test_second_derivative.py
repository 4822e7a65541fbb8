"""A second derivative is refused with a clear message, never a silently wrong number."""

from __future__ import annotations

import pytest
import torch

from op_cases import DIFFERENTIABLE_OPS, make_case


@pytest.mark.parametrize("name", DIFFERENTIABLE_OPS)
def test_create_graph_is_refused(native_backend, name):
    case = make_case(name)
    tensors = {key: value.to(native_backend.device) for key, value in case.tensors.items()}
    leaves = [tensors[argument].requires_grad_() for argument in case.gradients]
    with native_backend.context():
        output = case.function(**tensors, **case.options)
        grads = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        with pytest.raises((NotImplementedError, RuntimeError), match="no second derivative"):
            torch.autograd.grad(sum(grad.square().sum() for grad in grads), leaves)


@pytest.mark.parametrize("name", DIFFERENTIABLE_OPS)
def test_gradient_penalty_on_another_input_is_refused(native_backend, name):
    """The gradient depends on its upstream too: differentiating that way would need the same second derivative."""
    case = make_case(name)
    tensors = {key: value.to(native_backend.device) for key, value in case.tensors.items()}
    leaf = tensors[case.gradients[0]].requires_grad_()
    factor = torch.tensor(2.0, dtype=torch.float64, device=native_backend.device, requires_grad=True)
    with native_backend.context():
        output = case.function(**tensors, **case.options) * factor
        (grad,) = torch.autograd.grad(output.sum(), leaf, create_graph=True)
        with pytest.raises((NotImplementedError, RuntimeError), match="no second derivative"):
            torch.autograd.grad(grad.sum(), factor)


@pytest.mark.parametrize("name", DIFFERENTIABLE_OPS)
def test_backward_may_be_run_twice(backend, name):
    case = make_case(name)
    tensors = {key: value.to(backend.device) for key, value in case.tensors.items()}
    leaves = [tensors[argument].requires_grad_() for argument in case.gradients]
    with backend.context():
        output = case.function(**tensors, **case.options).sum()
        first = torch.autograd.grad(output, leaves, retain_graph=True)
        second = torch.autograd.grad(output * 3, leaves)
    for one, three in zip(first, second, strict=True):
        assert torch.allclose(one * 3, three)
