"""Weights, heads and detections that hold NaN or infinity: a threshold on the score would drop them without a word."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class NotFinite(ValueError):
    """A head of a detector gave NaN or infinity."""


def check_weights(model: nn.Module) -> None:
    """ValueError if a tensor of the model is not finite."""
    broken = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise ValueError(
            f"{len(broken)} of the model's tensors hold NaN or infinity ({', '.join(broken[:3])} …): its training diverged"
        )


def check_finite(detections: Mapping[str, Tensor], picture: str) -> None:
    """ValueError if a box or a score of the detections in ``picture`` is not finite."""
    if not (torch.isfinite(detections["boxes"]).all() and torch.isfinite(detections["scores"]).all()):
        raise ValueError(f"the model gave {picture} a box or a score that is NaN or infinite")


@contextlib.contextmanager
def finite_heads(detector: nn.Module) -> Iterator[None]:
    """Inside the block, ``NotFinite`` when a head of the detector gives a value that is not finite."""

    def check(name: str):
        def hook(_module, _arguments, output) -> None:
            if not all(torch.isfinite(value).all() for value in _tensors(output)):
                raise NotFinite(f"the model's {name} gave NaN or infinity: its weights or its precision do not serve")

        return hook

    handles = [
        module.register_forward_hook(check(name))
        for name, module in detector.named_modules()
        if name.rpartition(".")[2] in ("head", "box_predictor")
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (dict, list, tuple)):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)
