"""A frozen network in fewer kernel launches: layers that follow each other are one call, and a batch is one captured graph.

The time of a teacher on some tens of crops per step is that of its launches, not of its arithmetic: a ResNet-50 makes about 170
of them. Its batch norms are folded into their convolutions before (``torch.fx.experimental.optimization.fuse``). Then its first
layers are one operator; on a GPU convolution, sum and ReLU are one of cuDNN's; and a batch is one captured graph, or a few.
"""

from __future__ import annotations

import operator
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cls2det_ops import frozen_stem

LARGEST_GRAPH = 128  # crops, enough to keep a GPU busy; every captured size holds memory for its crops and results
GRAPH_STEP = 16  # sizes are multiples of it


def freeze(network: torch.fx.GraphModule, dtype: torch.dtype) -> nn.Module:
    """A network without batch norms, from crops to a dictionary of tensors; its weights get no gradient, crops may.

    Args:
        dtype: of everything but the ``frozen_stem``
    """
    network = network.to(memory_format=torch.channels_last)
    _fuse_stem(network, dtype)
    _fuse_relu(network)
    network.recompile()
    return network.requires_grad_(False).eval()


class Replayed(nn.Module):
    """A frozen network that, on a GPU and without gradient, replays captured graphs, one for each size of a batch.

    Crops are padded to the next size, and more than ``LARGEST_GRAPH`` go in parts, which bounds the memory that graphs hold.
    Results are copies: a later call does not change them. For one thread and stream at a time.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.training = network, network.training
        self._forget()

    def _forget(self) -> None:
        self._graphs: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, Tensor, dict[str, Tensor]]] = {}
        self._stream: torch.cuda.Stream | None = None  # of all captures, which share their memory

    def _apply(self, *arguments: Any, **options: Any) -> Replayed:
        self._forget()  # the weights move, and a graph reads them at their old address
        super()._apply(*arguments, **options)
        return self

    @property
    def captured_sizes(self) -> list[int]:
        """Crops per graph, of the graphs that exist."""
        return sorted(size for size, *_ in self._graphs)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_graphs": {}, "_stream": None}

    def forward(self, crops: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor]
        if not (crops.is_cuda and len(crops)) or torch.is_grad_enabled():
            outputs = self.network(crops)
            return outputs
        with torch.cuda.device(crops.device):
            if torch.cuda.is_current_stream_capturing():
                outputs = self.network(crops)
                return outputs
            parts = [self._replay(part) for part in crops.split(LARGEST_GRAPH)]
        return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _replay(self, crops: Tensor) -> dict[str, Tensor]:
        count = len(crops)
        size = -(-count // GRAPH_STEP) * GRAPH_STEP
        key = (size, crops.shape[1:], crops.dtype, crops.device, *_library_state())
        if key not in self._graphs:
            # A graph that was captured in inference mode could not be replayed outside of it.
            with torch.inference_mode(False), torch.no_grad():
                inputs = torch.zeros(size, *crops.shape[1:], dtype=crops.dtype, device=crops.device)
                self._graphs[key] = self._capture(inputs)
        graph, inputs, outputs = self._graphs[key]
        inputs[:count].copy_(crops)
        graph.replay()
        return {name: value[:count].clone() for name, value in outputs.items()}

    def _capture(self, inputs: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, dict[str, Tensor]]:
        self._stream = self._stream or torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(3):  # libraries choose their algorithms
                self.network(inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph, captured = torch.cuda.CUDAGraph(), list(self._graphs.values())
        pool = captured[0][0].pool() if captured else None
        # "thread_local": other threads, which pin batches or are NCCL's, go on using the device.
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = self.network(inputs)
        return graph, inputs, outputs


def _library_state() -> tuple[Any, ...]:
    """Settings of torch on which the captured kernels depend. (`allow_tf32` cannot be read where its newer form was set.)"""
    cudnn = torch.backends.cudnn
    autocast = (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
    convolution, product = cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision  # type: ignore[attr-defined]
    return (*autocast, cudnn.enabled, convolution, product, _deterministic())


def _deterministic() -> bool:
    return torch.backends.cudnn.deterministic or torch.are_deterministic_algorithms_enabled()


class ConvReLU(nn.Module):
    """ReLU of a convolution, or of a convolution plus a tensor, as one of cuDNN's calls where it has one."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        conv = self.conv
        by_layers = torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type) or not (x.is_cuda and _has_cudnn(x))
        if by_layers or (added is not None and added.shape != convolved_shape(conv, x)):
            y = conv(x)
            return F.relu_(y if added is None else y + added)
        options: tuple[Any, ...] = (conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        if added is None:
            return torch.cudnn_convolution_relu(x, conv.weight, *options)
        return torch.cudnn_convolution_add_relu(x, conv.weight, added, 1.0, *options)


def _has_cudnn(x: Tensor) -> bool:
    """Whether cuDNN's call serves. In bfloat16 it has no such kernel for Hopper, and its substitute is slower than the layers."""
    return x.dtype == torch.float32 and torch.backends.cudnn.is_acceptable(x) and not _deterministic()


def convolved_shape(conv: nn.Conv2d, x: Tensor) -> tuple[int, ...]:
    """Shape of ``conv(x)``."""
    assert isinstance(conv.padding, tuple)  # as _fuse_relu chooses them
    options = zip(x.shape[2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)
    sides = (
        (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for side, kernel, stride, padding, dilation in options
    )
    return (len(x), conv.out_channels, *sides)


class FrozenStem(nn.Module):
    """``frozen_stem`` with the weights of a convolution, in the dtype that autocast asks of a convolution."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        assert isinstance(conv.padding, tuple)  # see _is_stem
        self.stride, self.padding = conv.stride[0], conv.padding[0]
        self.register_buffer("weight", conv.weight.detach().contiguous())
        self.register_buffer("bias", conv.weight.new_zeros(len(conv.weight)) if conv.bias is None else conv.bias.detach())

    def forward(self, images: Tensor) -> Tensor:
        device = images.device.type
        if torch.is_autocast_enabled(device):
            images = images.to(torch.get_autocast_dtype(device))
        return frozen_stem(images, self.weight, self.bias, stride=self.stride, padding=self.padding)


def _fuse_stem(network: torch.fx.GraphModule, dtype: torch.dtype) -> None:
    """Convolution, ReLU and max-pool become one operator, where the network begins with these and nothing else reads the
    tensors between them; all other layers compute in ``dtype``."""
    modules = dict(network.named_modules())
    first = next(node for node in network.graph.nodes if node.op == "placeholder")
    for node in network.graph.nodes:
        chain = [node, *list(node.users)[:1]]
        chain += list(chain[-1].users)[:1]
        layers = [modules.get(part.target) if part.op == "call_module" else None for part in chain]
        if [type(layer) for layer in layers] != [nn.Conv2d, nn.ReLU, nn.MaxPool2d]:
            continue
        conv, _, pool = layers
        assert isinstance(conv, nn.Conv2d) and isinstance(pool, nn.MaxPool2d)
        if not _is_stem(conv, pool) or any(len(part.users) > 1 for part in chain[:2]):
            continue
        network.add_submodule("frozen_stem", FrozenStem(conv))
        with network.graph.inserting_before(node):
            first = network.graph.call_module("frozen_stem", node.args)
        chain[-1].replace_all_uses_with(first)
        for part in reversed(chain):
            network.graph.erase_node(part)
        network.delete_all_unused_submodules()
        break
    for name, module in network.named_children():
        if name != "frozen_stem":
            module.to(dtype)
    for value in (*network.parameters(recurse=False), *network.buffers(recurse=False)):  # a transformer's class token, say
        if value.is_floating_point():
            value.data = value.data.to(dtype)
    if dtype != torch.float32:
        with network.graph.inserting_after(first):
            cast = network.graph.call_method("to", (first, dtype))
        first.replace_all_uses_with(cast, lambda user: user is not cast and user.op != "output")


def _fuse_relu(network: torch.fx.GraphModule) -> None:
    """relu(conv(x)) and relu(conv(x) + y) become ``ConvReLU``, where nothing else reads the tensors between them."""
    modules = dict(network.named_modules())

    def is_layer(node: object, kind: type) -> TypeGuard[torch.fx.Node]:
        return isinstance(node, torch.fx.Node) and node.op == "call_module" and type(modules.get(node.target)) is kind

    def is_conv(node: object) -> TypeGuard[torch.fx.Node]:
        if not is_layer(node, nn.Conv2d) or len(node.users) != 1 or len(node.args) != 1:
            return False
        conv = modules[node.target]
        return isinstance(conv.padding, tuple) and conv.padding_mode == "zeros"

    for relu in list(network.graph.nodes):
        if not is_layer(relu, nn.ReLU) or len(relu.args) != 1:
            continue
        source, chain = relu.args[0], [relu]
        assert isinstance(source, torch.fx.Node)  # a layer reads a tensor
        added: tuple[torch.fx.Node, ...] = ()
        if source.op == "call_function" and source.target in (operator.add, operator.iadd) and len(source.users) == 1:
            left, right = source.args
            if is_conv(left) and isinstance(right, torch.fx.Node):
                chain, added, source = [relu, source], (right,), left
            elif is_conv(right) and isinstance(left, torch.fx.Node) and source.target is operator.add:  # iadd changes its left
                chain, added, source = [relu, source], (left,), right
        if not is_conv(source):
            continue
        name = f"{source.name}_relu"
        network.add_submodule(name, ConvReLU(modules[source.target]))
        with network.graph.inserting_before(relu):
            fused = network.graph.call_module(name, (*source.args, *added))
        relu.replace_all_uses_with(fused)
        for node in (*chain, source):
            network.graph.erase_node(node)
    network.delete_all_unused_submodules()


def _is_stem(conv: nn.Conv2d, pool: nn.MaxPool2d) -> bool:
    """Whether ``frozen_stem`` computes these."""
    if not isinstance(conv.padding, tuple):
        return False
    square = len({*conv.stride}) == len({*conv.padding}) == 1
    plain = (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros") and max(conv.kernel_size) <= 8
    pools = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode) == (3, 2, 1, 1, False)
    return square and plain and pools and conv.padding[0] < min(conv.kernel_size)
