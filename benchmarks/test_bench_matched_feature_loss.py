"""matched_feature_loss against adaptive_avg_pool2d on both sides, the gathered target and l1_loss."""

import pytest
import torch

from cls2det_ops import matched_feature_loss
from harness import Least, Workload, generator
from shapes import Shape

SHAPES: dict[str, Shape] = {
    "ssd300 K480 64x28x28 P8": {"k": 480, "g": 60, "channels": 64, "size": 28, "bins": 8, "compile": True},
    "frcnn K256 256x14x14 P7": {"k": 256, "g": 15, "channels": 256, "size": 14, "bins": 7},
    "small K16 64x7x7 P1": {"k": 16, "g": 4, "channels": 64, "size": 7, "bins": 1},
}


def workload(name: str, device: str) -> Workload:
    shape = SHAPES[name]
    random = generator(device)
    k, g, channels, size, bins = (shape[key] for key in ("k", "g", "channels", "size", "bins"))
    inputs = {
        "features": torch.randn(k, channels, size, size, generator=random, device=device),
        "target_features": torch.randn(g, channels, size, size, generator=random, device=device),
        "matched_idxs": torch.randint(g, (k,), generator=random, device=device),
    }
    return Workload(
        lambda **tensors: matched_feature_loss(**tensors, output_size=bins),
        inputs, ("features",), {"adaptive_avg_pool2d": lambda **tensors: plain(bins, **tensors)},
        compile=shape.get("compile", False), least=Least(reread=()),
    )  # fmt: skip


def plain(bins, features, target_features, matched_idxs):
    pool = torch.nn.functional.adaptive_avg_pool2d
    return torch.nn.functional.l1_loss(pool(features, bins), pool(target_features, bins)[matched_idxs])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_matched_feature_loss(bench, shape, backward):
    bench(workload, shape, backward)
