"""The last layer of a classifier: exchanged for another, left out, or trained alone."""

from __future__ import annotations

from typing import Any

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
    if hasattr(network, "reset_classifier"):  # timm knows its own, of which a network may have two
        network.reset_classifier(0)  # type: ignore[operator]
        return network
    path, _ = last_layer(network)
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    return network


def output_layers(network: nn.Module) -> list[nn.Module]:
    """What turns a classifier's embedding into its outputs: the layers that a linear probe trains."""
    of_timm: Any = getattr(network, "get_classifier", None)
    if of_timm is not None:
        layers = of_timm()
        return list(layers) if isinstance(layers, tuple | list) else [layers]
    if type(network).__module__.startswith("torchvision."):
        return [last_layer(network)[1]]
    children = [child for child in network.children() if any(True for _ in child.parameters())]
    body = max(children, key=lambda child: sum(parameter.numel() for parameter in child.parameters()))
    if len(children) < 2:
        raise ValueError(f"{type(network).__name__} has no layer for its outputs beside its body")
    return [child for child in children if child is not body]


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
