"""frozen_stem against its layers, on planar images and on channels-last ones."""

import pytest
import torch
import torch.nn.functional as F

from cls2det_ops import frozen_stem, reference
from harness import Least, Workload, generator
from shapes import Shape

SHAPES: dict[str, Shape] = {  # of a ResNet-50, and of the demo's teacher
    "K160 3x112x112 C64": {"k": 160, "size": 112, "channels": 64, "compile": True},
    "K128 3x32x32 C16": {"k": 128, "size": 32, "channels": 16},
    "small K16 3x32x32 C16": {"k": 16, "size": 32, "channels": 16},
}


def workload(name: str, device: str) -> Workload:
    shape = SHAPES[name]
    random = generator(device)
    inputs = {
        "images": torch.randn(shape["k"], 3, shape["size"], shape["size"], generator=random, device=device),
        "weight": torch.randn(shape["channels"], 3, 7, 7, generator=random, device=device) / 12,
        "bias": torch.randn(shape["channels"], generator=random, device=device),
    }
    return Workload(
        frozen_stem, inputs, ("images",), {"channels-last": channels_last}, compile=shape.get("compile", False),
        least=Least(flops=lambda backward: flops(backward, **inputs)),
    )  # fmt: skip


def flops(backward, images, weight, bias):
    """Of the convolution. Its input gradient counts only the places that are a window's maximum and above 0."""
    convolved = F.conv2d(images, weight, bias, 2, 3)
    places = convolved.numel()
    if backward:
        pooled, maxima = F.max_pool2d(convolved, 3, 2, 1, return_indices=True)
        places_with_gradient = torch.zeros_like(convolved, dtype=torch.bool).flatten(2)
        places += int(places_with_gradient.scatter_(2, maxima.flatten(2), pooled.flatten(2) > 0).sum())
    return 2 * places * weight[0].numel()


def channels_last(images, weight, bias):
    last = {"memory_format": torch.channels_last}
    return reference.frozen_stem(images.contiguous(**last), weight.contiguous(**last), bias, 2, 3).contiguous()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_frozen_stem(bench, shape, backward):
    bench(workload, shape, backward)
