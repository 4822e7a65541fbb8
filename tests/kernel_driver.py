"""Runs every kernel of a back end on a few small calls: python tests/kernel_driver.py cuda. For tools such as compute-sanitizer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent))

from backends import BACKENDS
from helpers import cast, evaluate
from op_cases import PUBLIC_OPS, Case, make_case

SIZES = (
    {},  # those of the tests
    {"k": 40, "g": 3, "b": 3, "c": 81, "height": 17, "width": 35},  # several blocks, warps and tiles, none of them full
    {"k": 5, "c": 130, "height": 3, "width": 2},  # rows of logits that do not fit registers
    {"k": 3, "c": 40, "height": 70, "width": 135, "kernel": 7},  # a ResNet's stem: strips, tiles and parts of the channels
)


def cases(op: str) -> Iterator[Case]:
    for sizes in SIZES:
        yield make_case(op, **sizes)
    if op == "matched_feature_loss":
        yield replace(make_case(op), options={"output_size": 9})  # more bins than pixels


def main(name: str) -> None:
    backend = BACKENDS[name]
    if backend.missing:
        raise SystemExit(f"{name}: {backend.missing}")
    for op in PUBLIC_OPS:
        for number, case in enumerate(cases(op)):
            for dtype in (torch.float32, torch.float16):
                output, grads = evaluate(backend, case.function, cast(case.tensors, dtype), case.options, case.gradients)
                assert all(value.isfinite().all() for value in (output, *grads.values())), f"{op} {number} {dtype}"
        print(f"{op} ran on {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
