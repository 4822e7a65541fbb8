"""ImageNet weights of torchvision's networks: which of their files are at hand, and weights from a file of one's own.

torchvision's builders take an entry of an enumeration, such as ``ResNet50_Weights.IMAGENET1K_V2``, and read more from it than
weights: that batch norm is to be frozen, say. So weights from a file come as such an entry, with another state dict behind it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum

from cls2det.errors import first_lines, some
from cls2det.files import load_torch, not_finite

Entry = TypeVar("Entry", bound=WeightsEnum)
# a file need not have these, or may have them with other classes
LAST_LAYERS = ("fc.", "classifier.", "head.", "heads.", "AuxLogits.", "aux1.", "aux2.")
COUNTERS = "num_batches_tracked"  # of batch norm; files of old versions of torch lack them


def is_at_hand(weights: WeightsEnum) -> bool:
    """Whether the file is in torch's cache (``$TORCH_HOME/hub/checkpoints``)."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name).is_file()


def at_hand(weights: Entry) -> Entry:
    """The entry itself, or, where its file is not in torch's cache, another one whose file is: V1 of ImageNet for V2.

    Others are taken for images of the same size and normalisation only.
    """
    if is_at_hand(weights):
        return weights
    members: dict[str, Entry] = dict(type(weights).__members__)
    others = [other for name, other in reversed(members.items()) if name.startswith("IMAGENET1K")]
    return next((other for other in others if _input_of(other) == _input_of(weights) and is_at_hand(other)), weights)


def _input_of(weights: WeightsEnum) -> tuple[Any, ...]:
    keywords = getattr(weights.transforms, "keywords", {})
    return weights.meta.get("min_size"), keywords.get("mean"), keywords.get("std")


def from_file(weights: Entry, path: str | Path) -> Entry:
    """An entry like ``weights`` whose state dict is that of a file; its name is the file's.

    Args:
        weights: of the architecture
        path: a state dict of that architecture as torchvision names its weights, as .pth of ``torch.save`` (read with
            ``weights_only=True``) or .safetensors. The last layer may be missing, or have other classes

    Raises:
        FileNotFoundError: nothing at ``path``
        ValueError: no state dict, weights of another architecture, or weights that are not finite
    """
    state = _fitting(read_state_dict(path), _architecture(weights), Path(path))
    entry = object.__new__(type(weights))  # like a member, and none of those that the enumeration lists
    vars(entry).update(vars(weights), _name_=str(path), get_state_dict=lambda *_, **__: state)
    return entry


def source(weights: WeightsEnum) -> str:
    """Torchvision's name of an entry, or the path of the file."""
    return weights.name if weights.name not in type(weights).__members__ else str(weights)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, by name. Raises as ``from_file``."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        from cls2det.models.networks import read_safetensors

        return read_safetensors(path)
    try:
        content = load_torch(path)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not load as weights alone: {first_lines(error, 1)}") from None
    for name in ("state_dict", "model", "weights"):  # where training scripts keep it
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not content or not all(map(torch.is_tensor, content.values())):
        raise ValueError(
            f"{path} holds no state dict: expected tensors by name, as torch.save(network.state_dict(), …) writes"
        )
    return {name.removeprefix("module."): value for name, value in content.items()}


def _architecture(weights: WeightsEnum) -> str:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return next(name for name in names if torchvision.models.get_model_weights(name) is type(weights))


def _fitting(state: dict[str, Tensor], architecture: str, path: Path) -> dict[str, Tensor]:
    """The weights of the architecture, those of its last layer 0 where the file has none that fit."""
    with torch.device("meta"):
        expected = torchvision.models.get_model(architecture, weights=None).state_dict()
    result, wrong = {}, []
    for name, value in expected.items():
        weight = state.get(name)
        if weight is not None and weight.shape == value.shape:
            result[name] = weight
        elif name.startswith(LAST_LAYERS) or (weight is None and name.endswith(COUNTERS)):
            result[name] = torch.zeros(value.shape, dtype=value.dtype)
        else:
            shape = "missing" if weight is None else str(tuple(weight.shape))
            wrong.append(f"{name} is {shape}, expected {tuple(value.shape)}")
    wrong += [f"{name} is unknown" for name in state if name not in expected and not name.startswith(LAST_LAYERS)]
    if wrong:
        raise ValueError(f"{path} does not hold the weights of a {architecture}: {some(wrong)}")
    body = {name: value for name, value in result.items() if not name.startswith(LAST_LAYERS)}
    if names := not_finite(body):
        raise ValueError(f"{path} holds weights that are not finite: {some(names)}")
    return result
