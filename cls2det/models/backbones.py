"""Image classifiers: teachers, and the bodies that students start from.

    network = build_classifier("resnet50", classes=80, weights="auto")      # any of torchvision's, or "compact"
    network = build_classifier("resnet50", classes=1000, width=16)          # every width a quarter
    load_backbone(student, network)                                         # a detector starts from a trained classifier
    load_backbone(student, load_classifier("weights.pt"))                   # of ``cls2det teacher`` or ``pretrain``

Weights are chosen by a word: "none" (random), "imagenet" (torchvision's; an error if they cannot be had), or "auto"
(torchvision's where they can be fetched, random ones and a warning where they cannot). Anything else is the path of a file with
a state dict of the architecture.
"""

from __future__ import annotations

import http.client
import logging
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import MobileNetV2, ResNet, WeightsEnum
from torchvision.models.resnet import BasicBlock

from cls2det.models.last_layer import with_new_last_layer
from cls2det.models.starts import at_hand, from_file, source
from cls2det.models.weights import check_fit, read_weights, write_weights

# What networks without ImageNet weights take: (x - mean) / std of x in [0, 1]. KD-loc's weight is tied to this scale.
IMAGE_MEAN, IMAGE_STD = [0.45, 0.45, 0.45], [0.25, 0.25, 0.25]
POLICIES = ("none", "auto", "imagenet")
RANDOM = "random weights"


class CompactResNet(nn.Module):
    """One BasicBlock per stage, strides 4, 8, 16, 32. ``forward`` returns the last three maps, by name."""

    def __init__(self, width: int = 16):
        super().__init__()
        widths = (width, 2 * width, 4 * width, 8 * width)
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
        )
        self.stages = nn.ModuleList(
            BasicBlock(before, width, 2, nn.Sequential(nn.Conv2d(before, width, 1, 2, bias=False), nn.BatchNorm2d(width)))
            for before, width in zip((widths[0], *widths[:-1]), widths, strict=True)
        )
        self.out_channels = list(widths[1:])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x, maps = self.stem(images), OrderedDict()
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number > 0:
                maps[str(number - 1)] = x
        return maps


class CompactClassifier(nn.Module):
    """The compact students' body with a linear classifier: trained on crops, it gives them their start."""

    def __init__(self, classes: int, width: int = 16):
        super().__init__()
        self.backbone = CompactResNet(width)
        self.head = nn.Linear(8 * width, classes)

    def forward(self, crops: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(crops)["2"].mean((2, 3)))
        return logits


def classifier_names() -> list[str]:
    """Names that ``build_classifier`` takes."""
    return ["compact", *torchvision.models.list_models(module=torchvision.models)]


def build_classifier(name: str, classes: int, width: int = 64, weights: str | Path = "none") -> nn.Module:
    """A classifier of images (N, 3, H, W) with logits (N, classes); its ``started_from`` says which weights it has.

    Args:
        name: one of ``classifier_names()``
        classes: outputs of the last layer, which is new where ImageNet weights know another number
        width: channels of the first stage, for ResNets (64 as published) and "compact" (16 in the compact students)
        weights: "none", "auto", "imagenet" or a file; narrow networks have no ImageNet weights

    Raises:
        ValueError: no such name, a width for a network that has none, "imagenet" where there are no such weights
        ConnectionError: "imagenet" and the weights cannot be fetched
    """
    if name not in classifier_names():
        raise ValueError(f"no classifier {name!r}; there are {', '.join(classifier_names())}")
    if name == "compact" or width != 64:
        if name != "compact" and not _is_resnet(name):
            raise ValueError(f"width is for ResNets and compact; {name} has one width only, found width {width}")
        chosen = choose_weights(None, weights, f"{name} of width {width}")
        network = CompactClassifier(classes, width) if name == "compact" else narrow_resnet(name, width, classes)
    else:
        chosen = choose_weights(torchvision.models.get_model_weights(name).DEFAULT, weights, name)
        outputs = len(chosen.meta["categories"]) if chosen else classes
        network = torchvision.models.get_model(name, weights=chosen, num_classes=outputs, **_one_output(name, chosen))
        network = network if outputs == classes else with_new_last_layer(network, outputs, classes)
    network.started_from = source(chosen) if chosen else RANDOM
    return network


def save_backbone(path: str | Path, network: nn.Module, *, architecture: str, width: int, classes: Sequence[str]) -> None:
    """Write the weights of a classifier that ``build_classifier`` made with these arguments, for students to start from."""
    settings = {"classes": list(classes), "architecture": architecture, "width": width}
    write_weights(path, "backbone", settings, network.state_dict())


def load_classifier(path: str | Path) -> nn.Module:
    """The network of a weights.pt of ``cls2det pretrain`` or ``teacher``, in eval mode.

    Raises as ``models.weights.read_weights``, and ValueError for weights that do not fit.
    """
    saved = read_weights(path, "crop_classifier", "backbone")
    with check_fit(path):
        settings = saved.settings
        if "network" in settings:  # of timm or transformers
            raise ValueError(
                f"{path} holds {settings['architecture']}; a student starts from a compact, ResNet or MobileNetV2 classifier"
            )
        outputs = len(settings["classes"]) + has_background_column(
            settings.get("background", False), settings.get("loss", "ce")
        )
        network = build_classifier(settings["architecture"], outputs, settings["width"])
        network.load_state_dict(saved.weights)
    return network.eval()


def has_background_column(background: bool, loss: str) -> bool:
    """Whether a classifier of crops has an output, the last, for crops without an object; sigmoids need none."""
    return background and loss != "bce"


def choose_weights(weights: WeightsEnum | None, policy: str | Path, name: str) -> WeightsEnum | None:
    """``weights`` if the policy wants them and they can be had; they are then in torch's cache.

    Where another version of them is in the cache already, and they are not, that is taken.

    Args:
        weights: torchvision's entry; None where there are none for this network
        policy: "none"; "auto", which warns where they cannot be had; "imagenet", which raises; or the path of a file
        name: the network, for messages
    """
    policy = "imagenet" if policy == "pretrained" else policy  # the word that other libraries' networks have for it
    is_file = policy not in POLICIES
    if is_file and not Path(policy).suffix and not Path(policy).exists():  # a word
        raise ValueError(f"weights are {', '.join(POLICIES)}, or a file (.pth or .safetensors); found {str(policy)!r}")
    if policy == "none":
        return None
    if weights is None:
        if policy == "imagenet":
            raise ValueError(f"there are no ImageNet weights of {name}; take weights none, or auto")
        if is_file:
            raise ValueError(f"{name} takes no file of weights, as torchvision has no weights of it; found {policy}")
        warnings.warn(f"{name} starts from random weights: there are no ImageNet weights of it", stacklevel=3)
        return None
    if is_file:
        weights = from_file(weights, policy)
        logging.getLogger(__name__).info("%s starts from %s", name, policy)
        return weights
    wanted, weights = weights, at_hand(weights)
    try:
        load_into_cache(weights)
    except (OSError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
        if policy == "imagenet":
            raise ConnectionError(
                f"the ImageNet weights of {name} cannot be fetched from {weights.url}: {error}. Give the path of a file with them "
                "in place of imagenet, or put it into torch's cache"
            ) from error
        warnings.warn(f"{name} starts from random weights: {weights.url} cannot be fetched ({error})", stacklevel=3)
        return None
    reason = "" if weights is wanted else f", which are in torch's cache, where {wanted.name} is not"
    logging.getLogger(__name__).info("%s starts from ImageNet weights: %s%s", name, weights, reason)
    return weights


def load_into_cache(weights: WeightsEnum) -> None:
    """torchvision's weights into torch's cache. torchvision itself would read what is there with the whole of pickle.

    Raises:
        ValueError: the cached file is damaged, or something else than tensors
    """
    try:
        weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{weights.url} in torch's cache, {torch.hub.get_dir()}, is not weights alone: {error}") from None


def narrow_resnet(architecture: str, width: int, classes: int) -> ResNet:
    """torchvision's ResNet with every width scaled from 64 to ``width``; random weights, drawn as torchvision draws them."""
    if not _is_resnet(architecture):
        raise ValueError(f"a width is for torchvision's ResNets, found {architecture!r}")
    network = torchvision.models.get_model(architecture, num_classes=classes)
    if width == 64:
        return network
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                setattr(module, name, _narrow_layer(child, width, classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    network.inplanes = network.inplanes * width // 64  # channels of the last stage; torchvision's FPN reads it
    return network


def _narrow_layer(layer: nn.Conv2d | nn.BatchNorm2d | nn.Linear, width: int, classes: int) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features * width // 64, classes)
    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm2d(layer.num_features * width // 64)
    inputs = 3 if layer.in_channels == 3 else layer.in_channels * width // 64
    outputs = layer.out_channels * width // 64
    if inputs % layer.groups or outputs % layer.groups:
        raise ValueError(
            f"width {width} leaves {inputs} channels to {layer.groups} groups of a convolution; take a larger one"
        )
    size, padding = (layer.kernel_size, layer.stride), (layer.padding, layer.dilation)
    return nn.Conv2d(inputs, outputs, *size, *padding, layer.groups, bias=False)  # type: ignore[arg-type]


def _is_resnet(name: str) -> bool:
    return name.startswith(("resnet", "resnext", "wide_resnet"))


def _one_output(name: str, weights: WeightsEnum | None) -> dict[str, Any]:
    """GoogLeNet and Inception give auxiliary logits beside the logits, unless told otherwise."""
    if name not in ("googlenet", "inception_v3"):
        return {}
    return {"aux_logits": False} | ({} if weights else {"init_weights": True})


def load_backbone(student: nn.Module, classifier: nn.Module) -> None:
    """Start a student's body from that of a trained classifier: compact, a ResNet of the same width, or MobileNetV2.

    Batch norm statistics come along. Raises ValueError, and leaves the student as it was, if the two do not fit.
    """
    backbone = student.get_submodule("backbone")
    body: nn.Module = getattr(backbone, "body", backbone)
    if isinstance(classifier, CompactClassifier):
        weights = classifier.backbone.state_dict()
    elif isinstance(classifier, MobileNetV2):
        weights = classifier.features.state_dict()
    elif isinstance(classifier, ResNet):
        weights = {name: value for name, value in classifier.state_dict().items() if not name.startswith("fc.")}
    else:
        raise ValueError(f"a student starts from a compact, ResNet or MobileNetV2 classifier, not {type(classifier).__name__}")
    state, counters = body.state_dict(), "num_batches_tracked"  # which frozen batch norm does not have
    wrong = [
        name
        for name in sorted(state.keys() | weights.keys())
        if not name.endswith(counters)
        and getattr(state.get(name), "shape", "missing") != getattr(weights.get(name), "shape", "missing")
    ]
    if wrong:
        raise ValueError(
            f"the {type(classifier).__name__} does not fit the student's backbone: {len(wrong)} tensors differ, {wrong[0]} is "
            f"{_shape(weights.get(wrong[0]))} in the classifier and {_shape(state.get(wrong[0]))} in the student"
        )
    body.load_state_dict(weights)


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(tuple(tensor.shape))
