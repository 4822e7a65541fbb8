"""What one call with K = 1 costs, where the arithmetic is next to nothing: python benchmarks/overhead.py

One thread of the CPU, tiny tensors. Prints, for the forward and for forward and backward of each function, the microseconds
of the fastest of many short rounds, which other work on the machine can hardly move.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import cls2det_ops as ops

CALLS = 40  # per round


def calls() -> dict[str, Callable[[], object]]:
    """By function and direction, one call at K = 1."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    image, crop, pooled = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    box, target = torch.tensor([[1.2, 1.3, 6.1, 6.4]]), torch.tensor([[1.1, 1.6, 6.3, 6.2]])
    student, teacher, first = torch.randn(1, 4), torch.randn(1, 3), torch.zeros(1, dtype=torch.int64)
    one_map = ops.RoIMap(image, 2, 4)
    functions: dict[str, tuple[tuple[Tensor, ...], Callable[..., Tensor]]] = {  # the leaves, and the call
        "kd_softmax_loss": ((student,), lambda s: ops.kd_softmax_loss(s, teacher, first)),
        "roi_feature_loss": (
            (box,),
            lambda b: ops.roi_feature_loss(image, b, first, target, first, first, output_size=2, sampling_size=4),
        ),
        "roi_crop": ((box,), lambda b: ops.roi_crop(image, b, first, 4)),
        "matched_feature_loss": ((crop,), lambda f: ops.matched_feature_loss(f, pooled, first, 2)),
        "roi_kd_loss": ((student, box), lambda s, b: ops.roi_kd_loss(s, b, teacher, target, first, first, one_map).loss),
    }
    by_title: dict[str, Callable[[], object]] = {}
    for name, (tensors, function) in functions.items():
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        upstream = torch.ones_like(function(*tensors))

        by_title[f"{name} forward"] = partial(function, *tensors)
        by_title[f"{name} forward and backward"] = partial(differentiate, function, leaves, upstream)
    return by_title


def differentiate(function: Callable[..., Tensor], leaves: list[Tensor], upstream: Tensor) -> None:
    torch.autograd.grad(function(*leaves), leaves, upstream)


def microseconds(call: Callable[[], object], seconds: float) -> float:
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, time.perf_counter() - start)
    return best / CALLS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing per row")
    options = parser.parse_args()
    for name, call in calls().items():
        print(f"{name:<42}{microseconds(call, options.seconds):8.1f} us", flush=True)


if __name__ == "__main__":
    main()
