"""How a frozen teacher is run: layers in one call, and on a GPU captured graphs, change nothing but the time."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

pytest.importorskip("torchvision")
from torchvision.models import resnet18, resnet50
from torchvision.models.feature_extraction import create_feature_extractor

from cls2det.teachers import frozen
from cls2det.teachers.frozen import ConvReLU, Replayed, convolved_shape, freeze

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
NODES = {"maxpool": "maxpool", "layer1": "layer1", "layer2.0.relu": "inner", "fc": "logits"}


def lively(network: nn.Module) -> nn.Module:
    """With batch norms that do something."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.normal_(module.bias, std=0.1)
    return network.eval().requires_grad_(False)


def pair(build=resnet18, dtype=torch.float32) -> tuple[nn.Module, nn.Module]:
    """The network as torchvision runs it, and frozen."""
    network = lively(build(weights=None))
    return create_feature_extractor(network, NODES), freeze(create_feature_extractor(fuse(network), NODES), dtype)


def on_gpu() -> tuple[Replayed, torch.Tensor]:
    return Replayed(pair()[1]).cuda(), torch.randn(4, 3, 64, 64, device="cuda")


def assert_alike(outputs: dict, expected: dict, tolerance: float = 1e-4) -> None:
    assert outputs.keys() == expected.keys()
    for name, value in outputs.items():
        difference = (value.float() - expected[name].float()).abs().max() / expected[name].abs().max()
        assert difference <= tolerance, f"{name} is off by {difference:.2g}"  # so does NaN


@pytest.mark.parametrize("build", [resnet18, resnet50])
def test_equals_the_network(build):
    plain, network = pair(build)
    with torch.no_grad():
        assert_alike(network(crops := torch.randn(3, 3, 64, 64)), plain(crops))
    calls = [node for node in network.graph.nodes if node.op == "call_module"]
    fused = [node for node in calls if isinstance(network.get_submodule(node.target), ConvReLU)]
    blocks = {resnet18: 2, resnet50: 3}[build]
    assert len(fused) == blocks * sum({resnet18: (2, 2, 2, 2), resnet50: (3, 4, 6, 3)}[build])


class Layers(nn.Module):
    """What ``run(conv, relu, x)`` gives, of one convolution."""

    def __init__(self, run, padding_mode: str = "zeros", channels: int = 3):
        super().__init__()
        self.conv, self.relu, self.run = nn.Conv2d(3, channels, 3, padding=1, padding_mode=padding_mode), nn.ReLU(), run

    def forward(self, x):
        return {"out": self.run(self.conv, self.relu, x)}


def twice(conv, relu, x):
    y = conv(x)
    return relu(y) + y


NOT_FUSED = {
    "read twice": Layers(twice),
    "a number added": Layers(lambda conv, relu, x: relu(conv(x) + 1)),
    "by keyword": Layers(lambda conv, relu, x: relu(input=conv(x))),
    "its input by keyword": Layers(lambda conv, relu, x: relu(conv(input=x))),
    "padded by reflection": Layers(lambda conv, relu, x: relu(conv(x)), "reflect"),
    "a ReLU of the input": Layers(lambda conv, relu, x: conv(relu(x))),
}
FUSED = {
    "a sum": Layers(lambda conv, relu, x: relu(conv(x) + x)),
    "a sum with it on the right": Layers(lambda conv, relu, x: relu(x + conv(x))),
    "what is added is broadcast": Layers(lambda conv, relu, x: relu(conv(x) + x.mean((2, 3), keepdim=True))),
    "it is broadcast": Layers(lambda conv, relu, x: relu(conv(x) + x), channels=1),
}


@pytest.mark.parametrize("name", [*NOT_FUSED, *FUSED])
def test_what_is_fused(name):
    layers = (NOT_FUSED | FUSED)[name].eval().requires_grad_(False)
    expected = layers(crops := torch.randn(2, 3, 8, 8))
    outputs = freeze(torch.fx.symbolic_trace(layers), torch.float32)
    assert any(isinstance(module, ConvReLU) for module in outputs.modules()) == (name in FUSED)
    assert_alike(outputs(crops), expected)
    with torch.no_grad():
        assert_alike(outputs(crops), expected)


def test_a_sum_in_place_of_what_is_read_again():
    """y += conv(x) changes y, for others too."""
    layers = Layers(lambda conv, relu, x: relu(x + conv(x)) + x).eval().requires_grad_(False)
    network = torch.fx.symbolic_trace(layers)
    next(node for node in network.graph.nodes if node.target is operator.add).target = operator.iadd
    network.recompile()
    crops = torch.randn(2, 3, 8, 8)
    expected = network(crops.clone())
    outputs = freeze(network, torch.float32)
    assert not any(isinstance(module, ConvReLU) for module in outputs.modules())
    assert_alike(outputs(crops.clone()), expected)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"), [(3, 1, 1, 1), (3, 2, 1, 2), ((1, 4), (3, 1), (0, 2), 1)]
)
def test_shape_of_a_convolution(kernel, stride, padding, dilation):
    conv, x = nn.Conv2d(3, 5, kernel, stride, padding, dilation), torch.randn(2, 3, 11, 14)
    assert convolved_shape(conv, x) == conv(x).shape


def test_crops_are_differentiated():
    plain, network = pair()
    gradients = []
    for module in (plain.double(), network.double()):  # in float32 rounding decides on a few ReLUs
        crops = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
        gradients += torch.autograd.grad(module(crops)["layer1"].square().sum(), crops)
    assert_alike({"crops": gradients[0]}, {"crops": gradients[1]})


def test_without_a_gpu_nothing_is_captured():
    _, network = pair()
    replayed = Replayed(network)
    with torch.no_grad():
        assert_alike(replayed(crops := torch.randn(3, 3, 64, 64)), network(crops), tolerance=0)
    assert not replayed.captured_sizes


@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build", [resnet18, resnet50])
def test_on_a_gpu_one_call_is_what_its_layers_are(build, dtype):
    _, network = pair(build, dtype)
    network.cuda()
    crops = torch.randn(5, 3, 64, 64, device="cuda")
    with torch.no_grad():
        outputs = network(crops)
    expected = network(crops)  # recorded, so layer by layer
    assert_alike(outputs, expected, {torch.float32: 1e-4, torch.bfloat16: 0.03}[dtype])


@GPU
def test_on_a_gpu_graphs_are_replayed():
    _, network = pair()
    replayed = Replayed(network).cuda()
    results = []
    with torch.no_grad():
        for count in (5, frozen.GRAPH_STEP, 3, frozen.GRAPH_STEP + 1, frozen.LARGEST_GRAPH + 1, 0):
            crops = torch.randn(count, 3, 64, 64, device="cuda")
            results.append((replayed(crops), network(crops)))
    for outputs, expected in results[:-1]:  # what is given stays as it is while others are computed
        assert_alike(outputs, expected)
    assert all(len(value) == 0 for value in results[-1][0].values())
    assert replayed.captured_sizes == [frozen.GRAPH_STEP, 2 * frozen.GRAPH_STEP, frozen.LARGEST_GRAPH]


@GPU
def test_on_a_gpu_all_modes_replay_what_one_captured():
    replayed, crops = on_gpu()
    with torch.inference_mode():
        first = replayed(crops)
    with torch.no_grad():
        assert_alike(replayed(crops), first, tolerance=0)
    assert len(replayed.captured_sizes) == 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU or none")
def test_on_a_second_gpu_while_the_first_is_current():
    _, network = pair()
    replayed = Replayed(network).to("cuda:1")
    crops = torch.randn(4, 3, 64, 64, device="cuda:1")
    with torch.no_grad():
        assert_alike(replayed(crops), network(crops))


@GPU
def test_on_a_gpu_moved_weights_are_captured_anew():
    replayed, crops = on_gpu()
    with torch.no_grad():
        before = replayed(crops)
        replayed.cpu().cuda()
        assert not replayed.captured_sizes
        assert_alike(replayed(crops), before)


@GPU
def test_on_a_gpu_autocast_is_not_that_of_the_capture():
    replayed, crops = on_gpu()
    with torch.no_grad():
        exact = replayed(crops)
        with torch.autocast("cuda", torch.bfloat16):
            assert replayed(crops)["logits"].dtype == torch.bfloat16
        assert_alike(replayed(crops), exact, tolerance=0)
