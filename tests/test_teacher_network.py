"""Any network as a teacher: frozen, folded or hooked, it gives the plain network's values; a crop's gradient reaches its box."""

import logging

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision")

import torchvision

from cls2det.teachers import reader
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.teachers.network import BoxTeacher, teacher_from
from cls2det.teachers.reader import Hooked, as_logits, as_map, frozen_reader, largest_difference, probe

SIZE, CLASSES = 64, 10
SCALE = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def of_torchvision(name):
    return torchvision.models.get_model(name, weights=None, num_classes=CLASSES)


def of_timm(name, **options):
    return pytest.importorskip("timm").create_model(name, num_classes=CLASSES, **options)


def of_transformers(kind, **options):
    hf = pytest.importorskip("transformers")
    config = getattr(hf, f"{kind}Config")(num_labels=CLASSES, **options)
    return getattr(hf, f"{kind}ForImageClassification")(config)


VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE}
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
# Network, layer, shape of its map, and whether it can be traced.
NETWORKS = {
    "resnet18": (lambda: of_torchvision("resnet18"), "layer1", (64, 16, 16), True),
    "mobilenet_v2": (lambda: of_torchvision("mobilenet_v2"), "features.2", (24, 16, 16), True),
    "ViT": (
        lambda: torchvision.models.VisionTransformer(SIZE, 16, 2, 2, 32, 64, num_classes=CLASSES),
        "encoder.layers.encoder_layer_0",
        (32, 4, 4),
        True,
    ),
    "timm ResNet": (lambda: of_timm("resnet18"), "layer1", (64, 16, 16), True),
    "timm MobileNetV3": (lambda: of_timm("mobilenetv3_small_050"), "blocks.1", (16, 8, 8), True),
    "timm ConvNeXt": (lambda: of_timm("convnext_atto"), "stages.0", (40, 16, 16), True),
    "timm ViT": (lambda: of_timm("vit_tiny_patch16_224", img_size=SIZE, depth=2), "blocks.0", (192, 4, 4), True),
    "transformers ResNet": (
        lambda: of_transformers("ResNet", **STAGES, embedding_size=8, layer_type="basic"),
        "resnet.encoder.stages.0",
        (8, 16, 16),
        False,
    ),
    "transformers ConvNeXt": (
        lambda: of_transformers("ConvNext", **STAGES),
        "convnext.encoder.stages.0",
        (8, 16, 16),
        False,
    ),
    "transformers ViT": (lambda: of_transformers("ViT", **VIT, intermediate_size=64), "vit.layers.0", (32, 4, 4), False),
    "transformers DINOv2": (
        lambda: of_transformers("Dinov2", **VIT | {"patch_size": 16}),
        "dinov2.layernorm",
        (32, 4, 4),
        False,
    ),
}


@pytest.fixture(params=NETWORKS, ids=lambda name: name.replace(" ", "-"))
def trained(request):
    """A network with batch norms and a head that do something, a layer, its map's shape, and whether it can be traced."""
    torch.manual_seed(0)
    build, layer, shape, traced = NETWORKS[request.param]
    network = build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.eval(), layer, shape, traced


def test_a_reader_gives_the_networks_own_values(trained):
    network, layer, shape, traced = trained
    teacher = teacher_from(network, [str(number) for number in range(CLASSES)], SIZE, **SCALE)
    crops = torch.randn(3, 3, SIZE, SIZE)
    plain = Hooked(network, [layer], True)
    both, alone = teacher.reader([layer], True), teacher.reader([layer], False)
    assert isinstance(both, Hooked) != traced
    outputs, expected = both(crops), plain(crops)
    assert outputs[layer].shape == (3, *shape) and outputs["logits"].shape == (3, CLASSES)
    assert largest_difference(both, plain, crops) < 1e-5
    assert set(alone(crops)) == {layer}
    torch.testing.assert_close(alone(crops)[layer], expected[layer], rtol=1e-4, atol=1e-4 * float(expected[layer].abs().max()))
    torch.testing.assert_close(expected["logits"], as_logits(network(crops)))
    rough = teacher.reader([layer], True, torch.bfloat16)(crops)
    assert rough["logits"].dtype == torch.bfloat16
    assert (rough["logits"].float() - expected["logits"]).abs().max() < 0.1 * expected["logits"].abs().max()


def test_the_gradient_of_a_layer_reaches_the_box(trained):
    network, layer, _, _ = trained
    teacher = teacher_from(network, [str(number) for number in range(CLASSES)], SIZE, margin=0.1, **SCALE)
    assert isinstance(teacher, BoxTeacher)
    images = probe(96, 2)
    boxes = torch.tensor([[10.0, 12, 60, 70], [5, 30, 90, 80]], requires_grad=True)
    crops = teacher.crop(images, boxes, torch.tensor([0, 1]))
    value = teacher.reader([layer], False)(crops)[layer].square().mean()
    (gradient,) = torch.autograd.grad(value, boxes)
    assert gradient.isfinite().all() and (gradient != 0).all()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.network.parameters())


def test_a_way_that_changes_the_values_is_not_taken(monkeypatch, caplog):
    """A folding that is wrong by little is noticed, and hooks read the network."""
    network = of_torchvision("resnet18").eval()

    def wrong(model):
        folded = fuse(model)
        with torch.no_grad():
            next(folded.parameters()).mul_(1.01)
        return folded

    def spoilt(*arguments):
        extracted = extract(*arguments)
        with torch.no_grad():
            next(extracted.parameters()).mul_(1.01)
        return extracted

    fuse, extract = reader.fuse, reader._extract
    monkeypatch.setattr(reader, "fuse", wrong)
    monkeypatch.setattr(reader, "_extract", spoilt)
    with caplog.at_level(logging.INFO, "cls2det"):
        frozen = frozen_reader(network, ["layer1"], True, SIZE)
    assert isinstance(frozen, Hooked) and "ResNet is read by hooks: traced, its values differ by" in caplog.text
    assert largest_difference(frozen, Hooked(network, ["layer1"], True), probe(SIZE)) == 0


def test_the_network_is_left_as_it_was(trained):
    network, layer, _, _ = trained
    before = {name: value.clone() for name, value in network.state_dict().items()}
    frozen_reader(network, [layer], True, SIZE, torch.bfloat16)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.training and not any(module._forward_hooks for module in network.modules())


def test_what_does_not_fit_is_named():
    network = of_torchvision("resnet18")
    with pytest.raises(ValueError, match="the network gives 10 logits for 3 classes"):
        teacher_from(network, ["a", "b", "c"], SIZE, **SCALE)
    names = [str(number) for number in range(CLASSES)]
    with pytest.raises(ValueError, match=r"std must be three numbers, those of std above 0; found \(1, 0, 1\)"):
        teacher_from(network, names, SIZE, mean=(0, 0, 0), std=(1, 0, 1))
    with pytest.raises(ValueError, match="crop_size from 1"):
        teacher_from(network, names, 0, **SCALE)
    with pytest.raises(ValueError, match=r"no layer layre1 in ResNet; there are .*layer1"):
        teacher_from(network, names, SIZE, **SCALE).reader(["layre1"], True)
    with pytest.raises(ValueError, match=r"a teacher must give logits \(N, classes\), found \(4, 64, 16, 16\)"):
        as_logits(torch.zeros(4, 64, 16, 16))
    with pytest.raises(ValueError, match=r"found \(4, 7\)"):
        as_map(torch.zeros(4, 7))


def test_tokens_become_a_map_without_the_extra_ones():
    tokens = torch.arange(5 + 9.0)[None, :, None].expand(2, 14, 3)  # a class token and four registers, then 3 x 3 patches
    assert as_map((tokens,))[1, 2].tolist() == [[5, 6, 7], [8, 9, 10], [11, 12, 13]]


@pytest.mark.parametrize("traced", [True, False])
def test_maps_with_channels_last_are_turned(monkeypatch, traced):
    """A Swin's; hooks and the graph alike, and in a picture that is not square too."""
    torch.manual_seed(0)
    network = torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=CLASSES).eval()
    if not traced:
        monkeypatch.setattr(reader, "_extract", lambda *_: 1 / 0)
    frozen = frozen_reader(network, ["features.1"], False, SIZE)
    assert isinstance(frozen, Hooked) != traced
    for size in ((SIZE, SIZE), (SIZE, 96)):
        crops = torch.randn(2, 3, *size)
        expected = network.features[1](network.features[0](crops)).permute(0, 3, 1, 2)
        assert expected.shape == (2, 24, size[0] // 4, size[1] // 4)
        torch.testing.assert_close(frozen(crops)["features.1"], expected, rtol=1e-4, atol=1e-5)


def test_our_own_classifier_is_such_a_teacher():
    assert isinstance(CropClassifier(["a", "b"], architecture="compact"), BoxTeacher)
