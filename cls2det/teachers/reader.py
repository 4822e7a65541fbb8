"""Reading a frozen network: crops in, named layers and logits out, by the fastest way that gives the network's own values.

Where ``torch.fx`` can trace the network, batch norms are folded into convolutions, nothing runs beyond what is asked for, and
``frozen.freeze`` merges layers. The result is compared with the plain network before it is used. Elsewhere hooks read the layers.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from cls2det.teachers.frozen import freeze

LOG = logging.getLogger(__name__)
MOST_EXTRA_TOKENS = 8  # of a class, a distillation and registers
TOLERANCE = 1e-3  # of the largest value: float32 in another order stays far below


def frozen_reader(
    network: nn.Module,
    layers: Sequence[str],
    logits: bool,
    crop_size: int,
    dtype: torch.dtype = torch.float32,
    name: str | None = None,
) -> nn.Module:
    """A frozen copy of ``network``, from crops (N, 3, S, S) to a dictionary: ``layers`` by name, and "logits" if asked.

    Args:
        network: from crops to logits (N, C), or to something with ``logits``, as transformers' classifiers
        layers: names of modules, or of nodes as torchvision's feature extraction calls them. Tokens (N, 1 + h·w, c) become
            maps (N, c, h, w), and so does what has its channels last
        logits: whether they are wanted; without them nothing runs behind the last layer
        crop_size: S, of the random crops on which the two ways are compared
        dtype: of all computation, except for a ResNet's ``frozen_stem``, which is all that the paper's KD-loc reads
        name: of the network, for messages; None is its class

    Raises:
        ValueError: a layer that the network does not have
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    name = name or type(network).__name__
    plain, crops = Hooked(network, layers, logits), _probe_for(network, crop_size)
    if plain.has_layers:
        plain.look(crops[:1])
    reasons: list[str] = []
    for way in (_fold_then_extract, _extract):  # folding may take a node's layer out of its name, and then another is read
        try:
            traced = freeze(_with_maps(way(network, layers, logits), crops), torch.float32)
            # A node of the graph that is no module: nothing else gives it.
            difference = largest_difference(traced, plain, crops) if plain.has_layers else 0.0
            if difference <= TOLERANCE:
                return traced if dtype == torch.float32 else freeze(_with_maps(way(network, layers, logits), crops), dtype)
            reasons.append(f"traced, its values differ by {difference:.1g}")
        except Exception as error:  # fx has a different one for each thing that it cannot trace
            reasons.append(f"it cannot be traced ({_short(error)})")
    if unknown := plain.unknown_layers():
        there = ", ".join(_some_layers(network, crops))
        raise ValueError(f"no layer {', '.join(unknown)} in {name}; there are {there}, and layers within these")
    LOG.info("%s is read by hooks: %s", name, reasons[-1])
    return plain.to(dtype)


def _fold_then_extract(network: nn.Module, layers: Sequence[str], logits: bool) -> torch.fx.GraphModule:
    return _extract(fuse(network), layers, logits)


def _extract(network: nn.Module, layers: Sequence[str], logits: bool) -> torch.fx.GraphModule:
    network = copy.deepcopy(network)  # torchvision traces it in both modes, and leaves it in training mode where that fails
    names = get_graph_node_names(network)[1]
    if unknown := [layer for layer in layers if not any(name == layer or name.startswith(f"{layer}.") for name in names)]:
        raise ValueError(f"no layer {', '.join(unknown)} in {type(network).__name__}; there are {', '.join(names[1:])}")
    nodes = {layer: layer for layer in layers} | ({names[-1]: "logits"} if logits else {})
    extractor: torch.fx.GraphModule = create_feature_extractor(network, nodes).eval()
    return extractor


@torch.no_grad()
def _with_maps(extractor: torch.fx.GraphModule, crops: Tensor) -> torch.fx.GraphModule:
    """What is no map becomes one. The others are left alone: the graph of a ResNet gets no call that it does not need."""
    values: dict[str, Tensor] = extractor(crops[:1])
    (output,) = (node for node in extractor.graph.nodes if node.op == "output")
    with extractor.graph.inserting_before(output):
        results = {
            name: node
            if name == "logits" or _is_map(values[name])
            else extractor.graph.call_function(as_map, (node, _has_channels_last(values[name])))
            for name, node in output.args[0].items()
        }
    output.args = (results,)
    extractor.recompile()
    return extractor


@torch.no_grad()
def _some_layers(network: nn.Module, crops: Tensor, most: int = 20) -> list[str]:
    """Names of layers that give maps or tokens, in the order in which they run: the parts of a part, where they are few."""
    maps: list[str] = []

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _arguments: Any, result: Any) -> None:
            with contextlib.suppress(ValueError, AttributeError, RuntimeError):
                as_map(result)
                maps.append(name)

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in network.named_modules() if name]
    try:
        network(crops[:1])
    finally:
        for handle in handles:
            handle.remove()
    names, depth = list(dict.fromkeys(maps)), 1
    for deeper in range(1, 8):
        if sum(name.count(".") < deeper for name in names) <= most:
            depth = deeper
    chosen = [name for name in names if name.count(".") < depth] or names
    return [*chosen[:most], "…"] if len(chosen) > most else chosen


def _probe_for(network: nn.Module, size: int) -> Tensor:
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    return probe(size).to(device)


def probe(size: int, count: int = 4) -> Tensor:
    """Crops (count, 3, size, size) of random blobs, coarse to fine, about as large as normalised pictures."""
    generator = torch.Generator().manual_seed(0)
    grids = [torch.randn(1, 3, 3 * 2**n, 3 * 2**n, generator=generator) for n in range(count)]
    return torch.cat([F.interpolate(grid, (size, size), mode="bilinear") for grid in grids])


@torch.no_grad()
def largest_difference(first: nn.Module, second: nn.Module, crops: Tensor) -> float:
    """Of all outputs, in shares of each one's largest value; infinite where one is not finite."""
    ours, theirs = first(crops), second(crops)
    worst = 0.0
    for name, value in theirs.items():
        difference = float((ours[name].float() - value.float()).abs().max() / value.float().abs().max().clamp(min=1e-12))
        worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return worst


class Hooked(nn.Module):
    """A network whose layers are read by forward hooks. Without ``logits`` it stops behind the last layer that is asked for."""

    def __init__(self, network: nn.Module, layers: Sequence[str], logits: bool):
        super().__init__()
        self.network, self.layers, self.logits = network, tuple(layers), logits
        self.channels_last: frozenset[str] = frozenset()

    @property
    def has_layers(self) -> bool:
        """Whether every layer is a module: a node of a traced graph need not be one."""
        return not self.unknown_layers()

    @torch.no_grad()
    def look(self, crops: Tensor) -> None:
        """Learn from square crops which layers have their channels last."""
        self.channels_last = frozenset(name for name, value in self(crops).items() if _has_channels_last(value))

    def unknown_layers(self) -> list[str]:
        """Layers that are no modules."""
        modules = dict(self.network.named_modules())
        return [layer for layer in self.layers if layer not in modules]

    def forward(self, crops: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(_module: nn.Module, _arguments: Any, result: Any) -> None:
                outputs[name] = as_map(result, name in self.channels_last)
                if not self.logits and len(outputs) == len(self.layers):
                    raise _Reached

            return hook

        handles = [self.network.get_submodule(name).register_forward_hook(keep(name)) for name in self.layers]
        dtype = next((parameter.dtype for parameter in self.network.parameters()), crops.dtype)
        try:
            result = self.network(crops.to(dtype))
        except _Reached:
            return outputs
        finally:
            for handle in handles:
                handle.remove()
        return outputs | {"logits": as_logits(result)}


class _Reached(Exception):
    """The last layer that is asked for has run."""


def as_logits(result: Any) -> Tensor:
    """(N, C) of what a classifier returned: a tensor, something with ``logits``, or a tuple or dictionary of them."""
    if isinstance(result, dict) and "logits" in result:
        result = result["logits"]
    elif hasattr(result, "logits"):
        result = result.logits
    elif isinstance(result, tuple):
        result = result[0]
    if not isinstance(result, Tensor) or result.dim() != 2:
        form = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(f"a teacher must give logits (N, classes), found {form}")
    return result


def as_map(result: Any, channels_last: bool = False) -> Tensor:
    """(N, c, h, w) of a layer's output: a map as it is, tokens (N, extra + h·w, c) as a square map without the extra ones.

    Args:
        result: a tensor, or a tuple that begins with it
        channels_last: a map is (N, h, w, c), as a Swin has it
    """
    while isinstance(result, tuple):
        result = result[0]
    values: Tensor = result
    if values.dim() == 4:
        return values.movedim(3, 1) if channels_last else values
    if values.dim() != 3:
        raise ValueError(f"a layer must give a map (N, c, h, w) or tokens (N, n, c), found {tuple(values.shape)}")
    side = math.isqrt(values.shape[1])
    if not torch.compiler.is_compiling() and values.shape[1] - side * side > MOST_EXTRA_TOKENS:
        raise ValueError(
            f"a layer gives {values.shape[1]} tokens, expected a square of them and at most {MOST_EXTRA_TOKENS} others: tokens of "
            "pictures that are not square are no map (feature_mode crop)"
        )
    tokens = values[:, values.shape[1] - side * side :]  # class and register tokens come first
    square: Tensor = tokens.transpose(1, 2).unflatten(2, (side, side))
    return square


def _has_channels_last(value: Any) -> bool:
    """Whether the output of a layer for a square crop is (N, h, w, c): a map's two sides are equal."""
    return isinstance(value, Tensor) and value.dim() == 4 and value.shape[1] == value.shape[2] != value.shape[3]


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and not _has_channels_last(value)


def _short(error: Exception) -> str:
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0][:100] if text else ''}"
