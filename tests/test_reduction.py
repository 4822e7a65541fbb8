"""reduction, weight and normalizer mean the same in every loss of rows."""

from __future__ import annotations

import pytest
import torch

from cls2det_ops import kd_softmax_loss
from helpers import assert_close, evaluate
from op_cases import ROW_LOSSES, make_case


def rows_and_gradients(backend, case, upstream, **options):
    return evaluate(backend, case.function, case.tensors, case.options | options, case.gradients, upstream)


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_sum_and_mean_follow_from_the_rows(backend, name):
    case = make_case(name)
    rows, row_grads = rows_and_gradients(backend, case, torch.full((9,), -1.7, dtype=torch.float64), reduction="none")
    total, total_grads = rows_and_gradients(backend, case, torch.tensor(-1.7, dtype=torch.float64), reduction="sum")
    mean, mean_grads = rows_and_gradients(backend, case, torch.tensor(-1.7 * 9, dtype=torch.float64))
    assert rows.shape == (9,)
    assert total.shape == mean.shape == ()
    assert_close(total, rows.sum())
    assert_close(mean, rows.sum() / 9)
    for grads in (total_grads, mean_grads):
        for argument in case.gradients:
            assert_close(grads[argument], row_grads[argument])


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_vector_upstream_reaches_each_row(backend, name):
    """The gradient for a vector is the sum of the gradients for its entries, and a zero entry silences its row."""
    case = make_case(name)
    vector = torch.tensor([2.0, -1.0, 0.0, 0.3, 5.0, 0.0, -0.2, 1.0, 1e-3])
    _, grads = rows_and_gradients(backend, case, vector, reduction="none")
    summed = {argument: torch.zeros_like(grads[argument]) for argument in case.gradients}
    for row in range(9):
        _, one = rows_and_gradients(backend, case, vector * (torch.arange(9) == row), reduction="none")
        for argument in case.gradients:
            summed[argument] += one[argument]
    for argument in case.gradients:
        assert_close(grads[argument], summed[argument])
        if len(grads[argument]) == 9:
            assert (grads[argument][[2, 5]] == 0).all()
            assert (grads[argument][[0, 1, 3, 4]].flatten(1) != 0).any(1).all()


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_weight_and_normalizer(backend, name):
    case = make_case(name)
    weight = torch.linspace(-0.5, 2, 9, dtype=torch.float64)
    rows, _ = rows_and_gradients(backend, case, None, reduction="none")
    weighted = rows * weight.to(rows.device)

    def loss_of(**options):
        on_device = {key: value.to(backend.device) if torch.is_tensor(value) else value for key, value in options.items()}
        return rows_and_gradients(backend, case, None, **on_device)[0]

    assert_close(loss_of(weight=weight, reduction="none"), weighted)
    assert_close(loss_of(weight=weight), weighted.sum() / 9)
    assert_close(loss_of(weight=weight.float()), weighted.sum() / 9, torch.float32)
    for normalizer in (2.5, torch.tensor(2.5), torch.tensor([2.5], dtype=torch.float64)):
        assert_close(loss_of(weight=weight, normalizer=normalizer), weighted.sum() / 2.5)
        assert_close(loss_of(weight=weight, normalizer=normalizer, reduction="sum"), weighted.sum() / 2.5)
        assert_close(loss_of(weight=weight, normalizer=normalizer, reduction="none"), weighted / 2.5)
    assert_close(loss_of(normalizer=torch.tensor(3)), rows.sum() / 3)


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_weighted_gradient_scales_by_row(backend, name):
    case = make_case(name)
    weight = torch.linspace(0, 2, 9, dtype=torch.float64)
    _, plain = rows_and_gradients(backend, case, weight / 4, reduction="none")
    _, grads = rows_and_gradients(backend, case, None, weight=weight.to(backend.device), normalizer=4)
    upstream = torch.randn((), generator=torch.Generator().manual_seed(7), dtype=torch.float64)  # what evaluate draws
    for argument in case.gradients:
        assert_close(grads[argument], plain[argument] * upstream.to(grads[argument].device))


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_weight_and_normalizer_are_constants(backend, name):
    case = make_case(name)
    tensors = {key: value.to(backend.device) for key, value in case.tensors.items()}
    tensors[case.gradients[0]].requires_grad_()
    weight = torch.ones(9, device=backend.device, requires_grad=True)
    normalizer = torch.tensor(2.0, device=backend.device, requires_grad=True)
    with backend.context():
        case.function(**tensors, **case.options, weight=weight, normalizer=normalizer).backward()
    assert weight.grad is None
    assert normalizer.grad is None


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_nothing_to_differentiate_gives_a_plain_number(backend, name):
    case = make_case(name)
    plain, _ = evaluate(backend, case.function, case.tensors, case.options)
    assert not plain.requires_grad
    with torch.no_grad():
        leaf = {key: value.to(backend.device) for key, value in case.tensors.items()}
        leaf[case.gradients[0]].requires_grad_()
        with backend.context():
            quiet = case.function(**leaf, **case.options)
    assert not quiet.requires_grad
    attached, _ = evaluate(backend, case.function, case.tensors, case.options, case.gradients)
    assert_close(plain, attached)
    assert_close(quiet, attached)


def test_nothing_to_average_is_zero_and_weight_zero_hides_a_bad_row(backend):
    """A normalizer tensor of 0 is an empty step, not NaN; a row of weight 0 may hold anything."""
    student = torch.tensor([[1.0, 2.0, 3.0], [float("nan"), 0.0, 1.0]], device=backend.device, requires_grad=True)
    teacher, match = torch.zeros(1, 2, device=backend.device), torch.zeros(2, dtype=torch.int64, device=backend.device)
    with backend.context():
        weight = torch.tensor([1.0, 0.0], device=backend.device)
        loss = kd_softmax_loss(student, teacher, match, weight=weight)
        (grad,) = torch.autograd.grad(loss, student)
        nothing = kd_softmax_loss(student[:0], teacher, match[:0], normalizer=torch.zeros((), device=backend.device))
    assert loss.isfinite() and loss > 0
    assert grad[0].isfinite().all() and (grad[0] != 0).any()
    if backend.name != "reference":  # there 0 * NaN of autograd stays NaN
        assert (grad[1] == 0).all()
    assert nothing == 0
