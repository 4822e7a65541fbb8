"""The last layer of a classifier: exchanged for another, left out, or with its outputs in another order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision
from torch import nn

from cls2det.errors import LibraryChanged


def with_new_last_layer(network: nn.Module, known: int, classes: int) -> nn.Module:
    """The classifier of ``known`` classes, with a new last layer of ``classes`` outputs. LibraryChanged where it ends otherwise."""
    path, last = last_layer(network, known)
    if isinstance(last, nn.Linear):
        new: nn.Module = nn.Linear(last.in_features, classes, bias=last.bias is not None)
    else:  # SqueezeNet
        new = nn.Conv2d(last.in_channels, classes, last.kernel_size)  # type: ignore[arg-type]
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, new)
    return network


def without_last_layer(network: nn.Module) -> nn.Module:
    """The classifier as an encoder, in place: what its last layer reads, (N, D)."""
    path, _ = last_layer(network)
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    return network


@torch.no_grad()
def exchange_outputs(network: nn.Module, order: Sequence[int]) -> None:
    """Let output k of a classifier be what its output ``order[k]`` was, in place; outputs beyond stay."""
    _, last = last_layer(network)
    for parameter in (last.weight, last.bias):
        if parameter is not None:
            parameter[: len(order)] = parameter[list(order)]


def last_layer(network: nn.Module, outputs: int | None = None) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Path and module of the layer that gives a classifier's outputs. LibraryChanged unless there are ``outputs`` of them."""
    layers = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    path, last = layers[-1]
    if outputs is not None and outputs != (last.out_features if isinstance(last, nn.Linear) else last.out_channels):
        raise LibraryChanged(
            f"torchvision {torchvision.__version__}",
            f"{type(network).__name__} ends in {last}, not in a layer of {outputs} outputs",
        )
    return path, last
