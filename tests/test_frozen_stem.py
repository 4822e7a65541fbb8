"""frozen_stem: against torch's convolution, ReLU and max-pool, and every back end against the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cls2det_ops
from helpers import DTYPES, LAYOUTS, ORACLE, assert_close, compare, evaluate

SHAPES = {  # N, inputs, height, width, channels, kernel, stride, padding
    "a ResNet's": (2, 3, 37, 41, 24, (7, 7), 2, 3),
    "a ResNet's, several strips, tiles and parts of the channels": (1, 4, 70, 135, 40, (7, 7), 2, 3),
    "a ResNet's, one pixel": (1, 1, 1, 1, 1, (7, 7), 2, 3),
    "small kernel": (3, 1, 9, 11, 5, (3, 3), 1, 1),
    "one pixel": (1, 2, 1, 1, 3, (1, 1), 1, 0),
    "kernel of 8, one place": (2, 2, 8, 8, 4, (8, 8), 3, 0),
    "wide kernel, several tiles of pixels and of inputs": (1, 6, 35, 19, 11, (2, 5), 2, 1),
    "stride above the kernel": (2, 3, 23, 20, 17, (2, 3), 5, 1),
}


def stem(n: int, inputs: int, height: int, width: int, channels: int, kernel: tuple[int, int], stride: int, padding: int):
    """Tensors and options. Sums of a few whole numbers, which every dtype holds exactly: so all back ends decide ties alike."""
    random = torch.Generator().manual_seed(channels)
    weight = torch.randint(-1, 2, (channels, inputs, *kernel), generator=random).double()
    weight *= torch.rand(weight.shape, generator=random) < 40 / weight[0].numel()
    images = torch.randint(-2, 3, (n, inputs, height, width), generator=random).double()
    tensors = {"images": images, "weight": weight, "bias": torch.randint(-2, 3, (channels,), generator=random).double()}
    return tensors, {"stride": stride, "padding": padding}


def literal(images: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    return F.max_pool2d(F.relu(F.conv2d(images, weight, bias, stride=stride, padding=padding)), 3, stride=2, padding=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_layers(backend, shape):
    """On values without ties, which no layer of a network has."""
    tensors, options = stem(*SHAPES[shape])
    tensors = {
        key: value + torch.rand(value.shape, generator=torch.Generator().manual_seed(1)) for key, value in tensors.items()
    }
    output, grads = evaluate(backend, cls2det_ops.frozen_stem, tensors, options, ("images",))
    expected, expected_grads = evaluate(ORACLE, literal, tensors, options, ("images",))
    assert_close(output, expected)
    assert_close(grads["images"], expected_grads["images"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["", *LAYOUTS])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(backend, dtype, shape, layout):
    tensors, options = stem(*SHAPES[shape])
    layouts = dict.fromkeys(("images", "weight"), LAYOUTS[layout]) if layout else None
    output, grads = compare(backend, cls2det_ops.frozen_stem, tensors, options, dtype, ("images",), layouts)
    assert output.dtype == grads["images"].dtype == dtype
    assert backend.name == "reference" or output.is_contiguous()


def test_is_the_stem_of_a_resnet(backend):
    torchvision = pytest.importorskip("torchvision")
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None).eval().requires_grad_(False)
    nn.init.normal_(network.bn1.bias)
    conv = fuse_conv_bn_eval(network.conv1, network.bn1)
    images = torch.randn(2, 3, 40, 56, requires_grad=True)
    expected = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), images)
    moved = [value.detach().to(backend.device) for value in (images, conv.weight, conv.bias)]
    moved[0].requires_grad_()
    with backend.context():
        output = cls2det_ops.frozen_stem(*moved)
        (grad,) = torch.autograd.grad(output.square().sum(), moved[0])
    assert_close(output, expected)
    assert_close(grad, expected_grad)


def test_the_first_of_equal_values_gets_the_gradient(backend):
    tensors = {"images": torch.ones(1, 1, 4, 4), "weight": torch.ones(1, 1, 1, 1), "bias": torch.zeros(1)}
    _, grads = evaluate(
        backend, cls2det_ops.frozen_stem, tensors, {"stride": 1, "padding": 0}, ("images",), torch.ones(1, 1, 2, 2)
    )
    expected = torch.zeros(4, 4)
    expected[0, 0] = expected[0, 1] = expected[1, 0] = expected[1, 1] = 1
    assert torch.equal(grads["images"][0, 0].cpu(), expected)


@pytest.mark.parametrize("value", [-1.0, 0.0])
def test_no_gradient_where_relu_stops(backend, value):
    tensors = {"images": torch.full((1, 1, 4, 4), value), "weight": torch.ones(2, 1, 1, 1), "bias": torch.tensor([0.0, 2.0])}
    tensors["images"].requires_grad_()
    output, grads = evaluate(backend, cls2det_ops.frozen_stem, tensors, {"stride": 1, "padding": 0}, ("images",))
    assert (output[:, 0] == 0).all()
    assert (output[:, 1] == 2 + value).all()
    stopped = tensors | {"weight": tensors["weight"][:1], "bias": tensors["bias"][:1]}
    _, grads = evaluate(backend, cls2det_ops.frozen_stem, stopped, {"stride": 1, "padding": 0}, ("images",))
    assert (grads["images"] == 0).all()


def test_nan_spreads_to_the_windows_that_see_it(backend):
    tensors = {"images": torch.ones(1, 1, 9, 9), "weight": torch.ones(1, 1, 1, 1), "bias": torch.zeros(1)}
    tensors["images"][0, 0, 4, 5] = float("nan")
    output, _ = evaluate(backend, cls2det_ops.frozen_stem, tensors, {"stride": 1, "padding": 0})
    assert output[0, 0].isnan().nonzero().tolist() == [[2, 2], [2, 3]]


def test_weights_are_constants(backend):
    tensors, options = stem(*SHAPES["small kernel"])
    moved = {key: value.to(backend.device).requires_grad_() for key, value in tensors.items()}
    with backend.context():
        output = cls2det_ops.frozen_stem(**moved, **options)
    output.sum().backward()
    assert moved["images"].grad.abs().sum() > 0
    assert moved["weight"].grad is None
    assert moved["bias"].grad is None


def test_many_images_equal_one_by_one(native_backend):
    """More images than one chunk of convolutions holds on a CPU."""
    random = torch.Generator().manual_seed(3)
    images = torch.randn(40, 3, 64, 64, generator=random)
    tensors = {
        "images": images,
        "weight": torch.randn(64, 3, 7, 7, generator=random),
        "bias": torch.randn(64, generator=random),
    }
    output, grads = evaluate(native_backend, cls2det_ops.frozen_stem, tensors, None, ("images",), torch.ones(40, 64, 16, 16))
    for i in (0, 17, 39):
        one = tensors | {"images": images[i : i + 1]}
        alone, alone_grads = evaluate(
            native_backend, cls2det_ops.frozen_stem, one, None, ("images",), torch.ones(1, 64, 16, 16)
        )
        assert_close(output[i : i + 1], alone)
        assert_close(grads["images"][i : i + 1], alone_grads["images"])


def test_gradcheck(backend):
    random = torch.Generator().manual_seed(0)
    images, weight, bias = (
        torch.randn(*shape, generator=random, dtype=torch.float64).to(backend.device)
        for shape in ((2, 2, 7, 6), (3, 2, 3, 2), (3,))
    )
    with backend.context():
        assert torch.autograd.gradcheck(
            lambda images: cls2det_ops.frozen_stem(images, weight, bias, padding=1), (images.requires_grad_(),)
        )
