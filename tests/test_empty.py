"""No boxes, no ground truths or no images is no error: the result is 0 and stays attached to the graph."""

from __future__ import annotations

import pytest
import torch

from helpers import evaluate
from op_cases import PUBLIC_OPS, ROW_LOSSES, make_case

EMPTY = {
    "no_positives": {"k": 0},
    "no_ground_truth": {"g": 0},
    "no_images": {"b": 0},
    "nothing": {"k": 0, "g": 0, "b": 0},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", EMPTY)
@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_empty_input_gives_zeros_with_a_graph(backend, name, sizes, dtype):
    case = make_case(name, **EMPTY[sizes])
    tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in case.tensors.items()}
    output, grads = evaluate(backend, case.function, tensors, case.options, case.gradients)
    assert output.isfinite().all()
    if any(size in case.zero_without for size in EMPTY[sizes]):
        assert (output == 0).all()
        for argument in case.gradients:
            assert grads[argument].shape == tensors[argument].shape
            assert (grads[argument] == 0).all()


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_no_rows(backend, name):
    case = make_case(name, k=0)
    for reduction, shape in (("none", (0,)), ("sum", ()), ("mean", ())):
        options = case.options | {"reduction": reduction, "weight": torch.ones(0, device=backend.device)}
        output, _ = evaluate(backend, case.function, case.tensors, options)
        assert output.shape == shape
        assert (output == 0).all()


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_mean_of_ignored_rows_alone_is_zero(backend, name):
    """torchvision gives -1 and -2 for anchors without a match; a batch may have nothing else."""
    case = make_case(name)
    case.tensors["matched_idxs"][:] = torch.tensor([-1, -2, -1, -2, -1, -2, -1, -2, -1])
    output, grads = evaluate(backend, case.function, case.tensors, case.options, case.gradients)
    assert output == 0
    assert all((grad == 0).all() for grad in grads.values())


def test_empty_step_can_be_added_to_a_loss_and_differentiated(backend):
    """DDP needs every parameter in the graph of every step, also of one without positives."""
    layer = torch.nn.Linear(3, 6).to(backend.device)
    case = make_case("kd_softmax_loss", k=0)
    teacher = case.tensors["teacher_logits"].float().to(backend.device)
    with backend.context():
        loss = case.function(layer(torch.zeros(0, 3, device=backend.device)), teacher, case.tensors["matched_idxs"]
                             .to(backend.device))  # fmt: skip
    loss.backward()
    assert (layer.weight.grad == 0).all()
    assert (layer.bias.grad == 0).all()


@pytest.mark.parametrize("name", [name for name in PUBLIC_OPS if "c" in make_case(name).zero_without])
def test_no_channels(backend, name):
    case = make_case(name, c=0)
    output, _ = evaluate(backend, case.function, case.tensors, case.options)
    assert (output == 0).all()
