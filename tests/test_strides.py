"""Any strides, any storage offset: the same numbers, and nothing outside of the tensor is read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers import LAYOUTS, assert_close, cast, evaluate
from op_cases import PUBLIC_OPS, make_case


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_every_argument_in_every_layout(backend, name, layout, dtype):
    case = make_case(name, c=7)
    tensors = cast(case.tensors, dtype)
    expected, expected_grads = evaluate(backend, case.function, tensors, case.options, case.gradients)
    layouts = dict.fromkeys(tensors, LAYOUTS[layout])
    output, grads = evaluate(backend, case.function, tensors, case.options, case.gradients, layouts=layouts)
    assert_close(output, expected)
    for argument in case.gradients:
        assert_close(grads[argument], expected_grads[argument])


def _repeated(tensor: Tensor) -> Tensor:
    """The first row (or image) again and again: stride 0."""
    return tensor[:1].expand(tensor.shape)


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_stride_zero(backend, name):
    case = make_case(name)
    expanded = {key: _repeated(value) if value.is_floating_point() else value for key, value in case.tensors.items()}
    copied = {key: value.contiguous() for key, value in expanded.items()}
    layouts = {key: _repeated for key, value in case.tensors.items() if value.is_floating_point()}
    expected, expected_grads = evaluate(backend, case.function, copied, case.options, case.gradients)
    output, grads = evaluate(backend, case.function, copied, case.options, case.gradients, layouts=layouts)
    assert_close(output, expected)
    for argument in case.gradients:
        assert grads[argument].shape == case.tensors[argument].shape
        assert_close(grads[argument], expected_grads[argument])


def _far_apart(tensor: Tensor) -> Tensor:
    """Rows (or images) 2^31 elements apart, in address space that is never touched between them."""
    row = tensor[0].contiguous()
    stride = 2**31 // (len(tensor) - 1) + 1
    storage = torch.empty(stride * (len(tensor) - 1) + row.numel(), dtype=tensor.dtype, device=tensor.device)
    return storage.as_strided(tensor.shape, (stride, *row.stride())).copy_(tensor)


@pytest.mark.parametrize("name", [name for name in PUBLIC_OPS if name != "roi_kd_loss"])
def test_offsets_past_32_bits(backend, name):
    case = make_case(name)
    tensors = cast(case.tensors, torch.bfloat16)
    largest = next(iter(tensors))  # the map or the student's logits
    expected, expected_grads = evaluate(backend, case.function, tensors, case.options, case.gradients)
    try:
        output, grads = evaluate(backend, case.function, tensors, case.options, case.gradients, layouts={largest: _far_apart})
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        pytest.skip("this machine does not lend 4 GB of address space")
    assert_close(output, expected)
    for argument in case.gradients:
        assert_close(grads[argument], expected_grads[argument])


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_upstream_gradient_in_any_layout(backend, name):
    case = make_case(name)
    options = case.options | ({"reduction": "none"} if case.rows else {})
    output, _ = evaluate(backend, case.function, case.tensors, options)
    wide = torch.randn((*output.shape, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for upstream in (wide[..., 0], torch.tensor(0.6, dtype=torch.float64).expand(output.shape)):
        _, expected = evaluate(backend, case.function, case.tensors, options, case.gradients, upstream.contiguous())
        _, grads = evaluate(backend, case.function, case.tensors, options, case.gradients, upstream)
        for argument in case.gradients:
            assert_close(grads[argument], expected[argument])


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_int32_indices(backend, name):
    case = make_case(name)
    expected, _ = evaluate(backend, case.function, case.tensors, case.options)
    output, _ = evaluate(backend, case.function, cast(case.tensors, torch.float64, torch.int32), case.options)
    assert torch.equal(output, expected)
