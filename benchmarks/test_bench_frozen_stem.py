"""frozen_stem against its layers, on planar images and on channels-last ones."""

import pytest
import torch
import torch.nn.functional as F

from cls2det_ops import frozen_stem, reference
from harness import Least, Workload, generator
from shapes import FROZEN_STEM


def workload(name: str, device: str) -> Workload:
    shape = FROZEN_STEM[name]
    random = generator(device)
    inputs = {
        "images": torch.randn(shape["k"], 3, shape["size"], shape["size"], generator=random, device=device),
        "weight": torch.randn(shape["channels"], 3, 7, 7, generator=random, device=device) / 12,
        "bias": torch.randn(shape["channels"], generator=random, device=device),
    }
    return Workload(
        frozen_stem, inputs, ("images",), {"channels-last": channels_last}, shape.get("compile", False),
        Least(flops=lambda backward: flops(backward, **inputs)),
    )  # fmt: skip


def flops(backward, images, weight, bias):
    """Of the convolution; of its input gradient only from the places that a pool has chosen and ReLU has let through."""
    convolved = F.conv2d(images, weight, bias, 2, 3)
    places = convolved.numel()
    if backward:
        pooled, chosen = F.max_pool2d(convolved, 3, 2, 1, return_indices=True)
        passed = torch.zeros_like(convolved, dtype=torch.bool).flatten(2)
        places += int(passed.scatter_(2, chosen.flatten(2), pooled.flatten(2) > 0).sum())
    return 2 * places * weight[0].numel()


def channels_last(images, weight, bias):
    last = {"memory_format": torch.channels_last}
    return reference.frozen_stem(images.contiguous(**last), weight.contiguous(**last), bias, 2, 3).contiguous()


@pytest.mark.parametrize("shape", FROZEN_STEM)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_frozen_stem(bench, shape, backward):
    bench(workload, shape, backward)
