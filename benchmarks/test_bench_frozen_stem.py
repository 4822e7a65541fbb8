"""frozen_stem against its layers, on planar images and on channels-last ones."""

import pytest
import torch

from cls2det_ops import frozen_stem, reference
from harness import Workload, generator
from shapes import FROZEN_STEM


def workload(name: str, device: str) -> Workload:
    shape = FROZEN_STEM[name]
    random = generator(device)
    inputs = {
        "images": torch.randn(shape["k"], 3, shape["size"], shape["size"], generator=random, device=device),
        "weight": torch.randn(shape["channels"], 3, 7, 7, generator=random, device=device) / 12,
        "bias": torch.randn(shape["channels"], generator=random, device=device),
    }
    return Workload(frozen_stem, inputs, ("images",), {"channels-last": channels_last}, shape.get("compile", False))


def channels_last(images, weight, bias):
    last = {"memory_format": torch.channels_last}
    return reference.frozen_stem(images.contiguous(**last), weight.contiguous(**last), bias, 2, 3).contiguous()


@pytest.mark.parametrize("shape", FROZEN_STEM)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_frozen_stem(bench, shape, backward):
    bench(workload, shape, backward)
