"""masked_feature_loss against the reference and against F.mse_loss times both masks."""

import pytest
import torch
import torch.nn.functional as F

from cls2det_ops import masked_feature_loss
from harness import Workload, generator
from shapes import WHOLE_MAPS as SHAPES

NORMALIZER = 1000.0


def workload(name: str, device: str) -> Workload:
    shape = SHAPES[name]
    random = generator(device)
    images, channels, size = shape["images"], shape["channels"], shape["size"]
    order = torch.channels_last if shape.get("channels_last") else torch.contiguous_format

    def features() -> torch.Tensor:
        return torch.randn(images, channels, *size, generator=random, device=device).contiguous(memory_format=order)

    inputs = {
        "student": features(),
        "teacher": features(),
        "mask": torch.rand(images, *size, generator=random, device=device),
        "channel_mask": torch.rand(images, channels, generator=random, device=device),
    }
    return Workload(
        lambda **tensors: masked_feature_loss(**tensors, normalizer=NORMALIZER),
        inputs, ("student",), {"F.mse_loss": plain}, compile=shape.get("compile", False),
    )  # fmt: skip


def plain(student, teacher, mask, channel_mask):
    squares = F.mse_loss(student, teacher, reduction="none")
    return (squares * mask[:, None] * channel_mask[:, :, None, None]).sum() / NORMALIZER


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_masked_feature_loss(bench, shape, backward):
    bench(workload, shape, backward)
