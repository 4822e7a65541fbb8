"""timm's networks; see ``models.networks``. timm is imported when one is loaded, not before."""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from cls2det.errors import first_lines
from cls2det.models.backbones import RANDOM
from cls2det.models.networks import ImageNetwork, not_fetched, read_safetensors


def load_timm(name: str, classes: int | None, weights: str | Path, size: int | None) -> ImageNetwork:
    """See ``networks.load_network``. A network of a fixed size is made for ``size``, its position embeddings are resampled."""
    timm = _timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), 3)
        hint = f"; near are {', '.join(near)}" if near else ""
        raise ValueError(f"timm {timm.__version__} has no network {name!r}{hint} (timm.list_models() lists all)")
    own = timm.get_pretrained_cfg(name)
    own_size = own.input_size[1]
    config: dict[str, Any] = {"img_size": size} if own.fixed_input_size and size not in (None, own_size) else {}
    try:
        if isinstance(weights, Path):
            module, started_from = _from_file(name, classes, weights, own.classifier, config), str(weights)
        else:
            module, started_from = _from_library(name, classes, weights, config, own)
    except RuntimeError as error:
        raise ValueError(f"timm has no weights {name!r}: {first_lines(error, 1)}") from None
    except (TypeError, AssertionError) as error:  # it has no such option, or its windows do not divide the size
        raise ValueError(
            f"timm:{name} takes no images of {size} pixels ({first_lines(error, 1)}); it was made for {own_size} (--crop-size)"
        ) from None
    return ImageNetwork(module, tuple(own.mean), tuple(own.std), own_size, started_from, config)


def rebuild_timm(name: str, classes: int | None, config: dict[str, Any]) -> nn.Module:
    """The same network with random weights."""
    module: nn.Module = _timm().create_model(name, num_classes=classes or 0, **config)
    return module


def _from_file(name: str, classes: int | None, path: Path, layers: str | tuple[str, ...], config: dict[str, Any]) -> Any:
    """With all weights of the file; a last layer of another number of classes is new.

    The file's own last layer is read at first: timm takes a file that lacks weights without a word, where the number differs.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    tensors = read_safetensors(file)
    last = layers if isinstance(layers, str) else layers[0]
    outputs = len(tensors[f"{last}.weight"]) if f"{last}.weight" in tensors else 0
    overlay = {"file": str(file), "num_classes": outputs}
    try:
        module = _timm().create_model(name, pretrained=True, num_classes=outputs, pretrained_cfg_overlay=overlay, **config)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{file} does not hold the weights of timm:{name}: {first_lines(error)}") from None
    if outputs != (classes or 0):
        module.reset_classifier(classes or 0)
    return module


def _from_library(name: str, classes: int | None, word: str, config: dict[str, Any], own: Any) -> tuple[Any, str]:
    timm, options = _timm(), {"num_classes": classes or 0, **config}
    if word == "none":
        return timm.create_model(name, **options), RANDOM
    reason = "there are no weights of it"
    if own.has_weights:
        try:
            return timm.create_model(name, pretrained=True, **options), f"timm:{name.split('.')[0]}.{own.tag or 'default'}"
        except OSError as error:  # of the hub or of urllib
            if word == "pretrained":
                raise not_fetched(f"timm:{name}", error) from None
            reason = f"its weights cannot be fetched ({first_lines(error, 1)})"
    if word == "pretrained":
        raise ValueError(f"timm has no weights of {name}; take weights none, or a file")
    warnings.warn(f"timm:{name} starts from random weights: {reason}", stacklevel=4)
    return timm.create_model(name, **options), RANDOM


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"a network timm:NAME needs timm ({error}): pip install 'cls2det[teachers]'") from error
    return timm
