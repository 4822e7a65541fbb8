"""Image networks of other libraries, by name: classifiers with as many outputs as are asked for, or encoders without any.

    network = load_network("timm:convnext_tiny", 80, weights="pretrained")
    network = load_network("hf:google/vit-base-patch16-224", 80, weights="pretrained", size=112)
    encoder = load_network("hf:clip-folder", None, weights="pretrained")      # images to embeddings (N, D)

=================  ===========================================
name               library
=================  ===========================================
``timm:NAME``      timm, any name of ``timm.list_models``
``hf:NAME``        transformers, a name of the hub
``hf:FOLDER``      transformers, a folder with config.json
``NAME``           torchvision, any of its classifiers
=================  ===========================================

timm and transformers come with ``pip install 'cls2det[teachers]'``.

Weights are chosen by a word or a path. "none" is random. "pretrained" is the library's own; an error if they cannot be had.
"auto" is the library's own where they can be had, random ones and a warning where they cannot. Anything else is a file of
safetensors, or a folder with model.safetensors. Of torchvision's networks it may be a .pth, read as weights alone.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cls2det.errors import first_lines
from cls2det.models.backbones import build_classifier, classifier_names
from cls2det.models.last_layer import last_layer, with_new_last_layer, without_last_layer
from cls2det.models.starts import read_state_dict

WORDS = ("none", "auto", "pretrained", "imagenet")  # of weights; "imagenet" is torchvision's word for "pretrained"
PREFIXES = ("timm:", "hf:")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class ImageNetwork:
    """A network of images, and what it wants.

    Attributes:
        module: from images (N, 3, H, W) to logits (N, classes), or to something with ``logits``; an encoder to embeddings (N, D)
        mean: of each channel of images in [0, 1], which it wants subtracted
        std: of each channel, by which it wants images divided
        size: side of the images that it was made for, in pixels
        started_from: which weights it has, in words; "random weights" where they are random
        config: plain values, from which ``rebuild_network`` builds it again without a network and without a folder
    """

    module: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    started_from: str
    config: dict[str, Any]


def is_foreign(name: str) -> bool:
    """Whether a name is one of timm's or transformers'."""
    return name.startswith(PREFIXES)


def load_network(
    name: str, classes: int | None, weights: str | Path = "pretrained", *, size: int | None = None
) -> ImageNetwork:
    """A network by name, in training mode, on the CPU.

    Args:
        name: see above
        classes: outputs of the last layer, which is new where the weights know another number; None gives an encoder: what it
            pools, or the image embedding of a CLIP or SigLIP
        weights: a word or a path, see above
        size: side of the images that it will get; None is its own. The network is tried on one such image

    Raises:
        ValueError: no such name, a path that holds other weights, a size that it does not take
        FileNotFoundError: nothing at the path
        ConnectionError: weights or a config that cannot be fetched
        ImportError: the library is not installed
    """
    weights = _checked(weights, name)
    if name.startswith("timm:"):
        from cls2det.models.timm_networks import load_timm

        network = load_timm(name.removeprefix("timm:"), classes, weights, size)
    elif name.startswith("hf:"):
        from cls2det.models.hf_networks import load_hf

        network = load_hf(name.removeprefix("hf:"), classes, weights, size)
    elif name in classifier_names() and name != "compact":
        network = _load_torchvision(name, classes, weights)
    else:
        raise ValueError(
            f"no network {name!r}: names are timm:NAME, hf:NAME or hf:FOLDER, or torchvision's {', '.join(classifier_names()[1:])}"
        )
    if size is not None:
        try_on(network.module, size, name, network.size)
    return network


def rebuild_network(name: str, classes: int | None, config: dict[str, Any]) -> nn.Module:
    """The module of an ``ImageNetwork`` again, with random weights. Raises ImportError where its library is not installed."""
    if name.startswith("timm:"):
        from cls2det.models.timm_networks import rebuild_timm

        return rebuild_timm(name.removeprefix("timm:"), classes, config)
    if name.startswith("hf:"):
        from cls2det.models.hf_networks import rebuild_hf

        return rebuild_hf(classes, config)
    network = build_classifier(name, classes or 1)
    return network if classes else without_last_layer(network)


@torch.no_grad()
def try_on(module: nn.Module, size: int, name: str, own_size: int) -> None:
    """One image of that size, in eval mode. Raises ValueError where the network does not take it."""
    training = module.training
    try:
        module.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise ValueError(
            f"{name} takes no images of {size} pixels ({first_lines(error, 1)}); it was made for {own_size} (--crop-size)"
        ) from None
    finally:
        module.train(training)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, or of the model.safetensors of a folder.

    Raises:
        FileNotFoundError: nothing there
        ValueError: it is something else
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no weights at {file}")
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{file} is read by safetensors ({error}): pip install 'cls2det[teachers]'") from error
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} holds no safetensors ({first_lines(error, 1)}); pickles are not read") from None
    return tensors


def not_fetched(name: str, error: Exception) -> ConnectionError:
    """The error where a library could not download something."""
    return ConnectionError(
        f"{name} cannot be fetched: {first_lines(error, 1).removesuffix('.')}. Give a local file or folder of safetensors as weights "
        "(--backbone-weights PATH)"
    )


def _checked(weights: str | Path, name: str) -> str | Path:
    """A word as it is, "pretrained" for "imagenet", and a path that exists."""
    if weights in WORDS:
        return "pretrained" if weights == "imagenet" else weights
    path = Path(weights).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"weights of {name} are {', '.join(WORDS)}, or the path of a file or folder of safetensors; nothing is at {weights}"
        )
    return path


def _load_torchvision(name: str, classes: int | None, weights: str | Path) -> ImageNetwork:
    if isinstance(weights, Path):
        module = _with_weights(name, weights, classes or 1)
        started_from = str(weights)
    else:
        try:
            module = build_classifier(name, classes or 1, weights="imagenet" if weights == "pretrained" else weights)
        except ConnectionError as error:
            raise not_fetched(name, error) from None
        started_from = str(module.started_from)
    size = 299 if name == "inception_v3" else 224
    module = module if classes else without_last_layer(module)
    return ImageNetwork(module, IMAGENET_MEAN, IMAGENET_STD, size, started_from, {})


def _with_weights(name: str, path: Path, classes: int) -> nn.Module:
    """torchvision's network with weights of any number of classes, and a new last layer where that is another."""
    tensors = read_safetensors(path) if path.is_dir() else read_state_dict(path)
    last = f"{last_layer(build_classifier(name, 1))[0]}.weight"
    outputs = len(tensors[last]) if last in tensors else classes
    network = build_classifier(name, outputs)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold the weights of {name}: {first_lines(error)}") from None
    return network if outputs == classes else with_new_last_layer(network, outputs, classes)
