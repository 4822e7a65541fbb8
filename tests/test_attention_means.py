"""attention_means: against torch's abs and mean, and every back end against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import cls2det_ops
from helpers import ANYWHERE, DTYPES, ORACLE, assert_close, channels_last, compare, evaluate
from op_cases import both_means


def scene(batch: int = 3, channels: int = 5, height: int = 7, width: int = 6) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(channels)
    return {"features": torch.randn(batch, channels, height, width, generator=random, dtype=torch.float64)}


@pytest.mark.parametrize("absolute", [True, False])
def test_equals_abs_and_mean(backend, absolute):
    def literal(features: Tensor) -> Tensor:
        values = features.abs() if absolute else features
        return torch.cat([values.mean(1).flatten(1), values.mean((2, 3))], 1)

    output, grads = evaluate(backend, both_means, scene(), {"absolute": absolute}, ("features",))
    expected, expected_grads = evaluate(ORACLE, literal, scene(), None, ("features",))
    assert_close(output, expected)
    assert_close(grads["features"], expected_grads["features"])


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (2, 3, 1, 9), (3, 1, 5, 4), (2, 37, 9, 31), (1, 130, 5, 1), (2, 2, 33, 70), (2, 8, 7, 10)],
    ids=str,
)
def test_matches_reference(backend, dtype, last, shape, absolute):
    layouts = {"features": channels_last} if last else None
    output, grads = compare(backend, both_means, scene(*shape), {"absolute": absolute}, dtype, ("features",), layouts)
    assert output.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    order = torch.channels_last if last else torch.contiguous_format
    assert backend.name == "reference" or grads["features"].is_contiguous(memory_format=order)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number_is_widened_and_every_gradient_rounded_as_in_torch(kernel_backend, dtype):
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    random = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (2**15,), generator=random)
    halfway = numbers[::8].float().view(torch.int32)[:, None] + torch.tensor([0x0FFF, 0x1000, 0x7FFF, 0x8000])
    upstream = torch.cat([bits, halfway.flatten()]).to(torch.int32).view(torch.float32).reshape(1, -1, 1)
    upstream = upstream.to(kernel_backend.device)
    features = numbers.reshape(1, 1, -1, 1).to(kernel_backend.device).requires_grad_()
    with kernel_backend.context():
        spatial, channel = cls2det_ops.attention_means(features, absolute=False)
        (grad,) = torch.autograd.grad([spatial, channel], features, [upstream, torch.zeros_like(channel)])
    torch.testing.assert_close(spatial, features[:, 0].float(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(grad[:, 0], upstream.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ANYWHERE.values(), ids=ANYWHERE)
def test_images_that_begin_anywhere(backend, dtype, layout):
    compare(backend, both_means, scene(3, 8, 7, 10), None, dtype, ("features",), {"features": layout})


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
def test_several_tiles_of_either_order(backend, last):
    layouts = {"features": channels_last} if last else None
    compare(backend, both_means, scene(2, 70, 30, 40), None, torch.float32, ("features",), layouts)
    compare(backend, both_means, scene(1, 1100, 9, 9), None, torch.float32, ("features",), layouts)


@pytest.mark.parametrize(("dtype", "channels"), [(torch.float32, 144), (torch.bfloat16, 272)])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
def test_gradient_larger_than_the_caches(native_backend, last, dtype, channels):
    layouts = dict.fromkeys(["features"], channels_last) if last else None
    compare(native_backend, both_means, scene(2, channels, 128, 128), None, dtype, ("features",), layouts)


@pytest.mark.parametrize("used", [0, 1], ids=["spatial", "channel"])
def test_one_result_alone(backend, used):
    def function(features: Tensor) -> Tensor:
        return cls2det_ops.attention_means(features)[used]

    compare(backend, function, scene(), None, torch.float32, ("features",))


def test_zero_has_no_gradient(backend):
    tensors = scene()
    tensors["features"][1, 2] = 0
    _, grads = evaluate(backend, both_means, tensors, None, ("features",))
    assert (grads["features"][1, 2] == 0).all()
    assert (grads["features"][1, 1] != 0).all()


def test_nan_stays_in_its_row_and_column(backend):
    tensors = scene()
    tensors["features"][1, 2, 3, 4] = float("nan")
    output, _ = evaluate(backend, both_means, tensors)
    assert output.isnan().nonzero().tolist() == [[1, 3 * 6 + 4], [1, 7 * 6 + 2]]


def test_large_values_of_float16(backend):
    """Sums that float16 could not hold."""
    tensors = {"features": torch.full((1, 40, 16, 16), -60000.0, dtype=torch.float64)}
    output, _ = compare(backend, both_means, tensors, None, torch.float16)
    assert output.isfinite().all()


@pytest.mark.parametrize(("batch", "channels"), [(0, 5), (3, 0)])
def test_empty(backend, batch, channels):
    tensors = {"features": torch.zeros(batch, channels, 7, 6)}
    output, grads = evaluate(backend, both_means, tensors, None, ("features",))
    assert output.shape == (batch, 7 * 6 + channels)
    assert (output == 0).all()
    assert grads["features"].shape == tensors["features"].shape


@pytest.mark.parametrize("absolute", [True, False])
def test_gradcheck(backend, absolute):
    features = scene(2, 3, 4, 2)["features"].to(backend.device).requires_grad_()
    with backend.context():
        assert torch.autograd.gradcheck(lambda features: cls2det_ops.attention_means(features, absolute=absolute), (features,))
