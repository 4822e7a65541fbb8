"""attention_means against the reference and against torch's abs and means."""

import pytest
import torch

from cls2det_ops import attention_means
from harness import Workload, generator
from shapes import WHOLE_MAPS as SHAPES


def workload(name: str, device: str) -> Workload:
    shape = SHAPES[name]
    size = (shape["images"], shape["channels"], *shape["size"])
    order = torch.channels_last if shape.get("channels_last") else torch.contiguous_format
    features = torch.randn(size, generator=generator(device), device=device).contiguous(memory_format=order)
    return Workload(
        lambda features: joined(*attention_means(features)), {"features": features}, ("features",), {"abs + mean": plain},
        compile=shape.get("compile", False),
    )  # fmt: skip


def joined(spatial, channel):
    """Both results in one tensor, which the harness compares; it is small beside the map."""
    return torch.cat([spatial.flatten(), channel.flatten()])


def plain(features):
    return joined(features.abs().mean(1), features.abs().mean((2, 3)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_attention_means(bench, shape, backward):
    bench(workload, shape, backward)
