"""The format of weights.pt: what a trained network is, and its weights.

    {"kind": "student", "settings": {"name": "ssd_compact", "classes": ["cat"], "image_size": None}, "weights": {...}}

``settings`` are plain values from which the network can be built again; ``weights`` is its state dict. A file is written under
another name and renamed, so what lies at a path is whole. It is read with ``weights_only=True``, so no file executes code.

=================  ====================================================================  =================================
kind               written by                                                            read by
=================  ====================================================================  =================================
student            ``cls2det train`` and ``distill`` (``models.students.save_student``)  ``models.students.load_student``
crop_classifier    ``cls2det teacher`` (``teachers.crop_classifier``)                    ``CropClassifier.load``
backbone           ``cls2det pretrain`` (``models.backbones.save_backbone``)             ``models.backbones.load_classifier``
=================  ====================================================================  =================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cls2det.errors import first_lines, some
from cls2det.files import is_first_process, load_torch, not_finite, write_torch

# What version 0.1 wrote in place of a kind, and before the name of each weight.
OLD_KINDS = {
    "DetectorTraining": ("student", "detector."),
    "CropClassifier": ("crop_classifier", "network."),
    "Pretraining": ("backbone", "network."),
}
OLD_NAMES = {"student": {"student": "name"}}  # of settings, by kind
OLD_TRAINING = ("optim", "cls_weight", "box_weight", "min_size", "jitter", "label_smoothing")  # no longer among the settings


@dataclasses.dataclass(frozen=True)
class SavedWeights:
    """Content of a weights.pt.

    Attributes:
        kind: "student", "crop_classifier" or "backbone"
        settings: plain values, from which the network is built
        weights: state dict of the network, on the CPU
    """

    kind: str
    settings: dict[str, Any]
    weights: dict[str, Tensor]


def write_weights(path: str | Path, kind: str, settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write a weights.pt, in the first process of a distributed run only. ``settings`` must be plain values.

    Raises:
        ValueError: a weight is NaN or infinite; nothing is written
        OSError: the file cannot be written
    """
    if is_first_process():
        if names := not_finite(weights):
            raise ValueError(f"{path} is not written: these weights are not finite: {some(names)}")
        write_torch(path, {"kind": kind, "settings": dict(settings), "weights": dict(weights)})


def read_weights(path: str | Path, *kinds: str) -> SavedWeights:
    """Read a weights.pt, also one of version 0.1.

    Args:
        path: the file
        kinds: that are expected; none for any

    Raises:
        FileNotFoundError: nothing at ``path``
        ValueError: something else at ``path``, a network of another kind, or weights that are NaN or infinite
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        content = load_torch(path)
    except Exception as error:  # torch has a different one for each way in which a file can be wrong
        raise ValueError(f"{path} does not load as weights alone: {first_lines(error)}") from None
    if not isinstance(content, dict) or set(content) != {"kind", "settings", "weights"}:
        raise ValueError(f"{path} was not written by cls2det")
    saved = SavedWeights(**content)
    if saved.kind in OLD_KINDS:
        saved = _translated(saved)
    if kinds and saved.kind not in kinds:
        raise ValueError(f"{path} holds a {saved.kind}, expected a {' or a '.join(kinds)}")
    if names := not_finite(saved.weights):
        raise ValueError(
            f"{path} holds weights that are not finite ({some(names)}): the training that wrote it failed; take those of another"
        )
    return saved


def weights_digest(path: str | Path) -> str:
    """A digest of what a weights.pt holds, whatever its name and place. Raises as ``read_weights``."""
    saved = read_weights(path)
    digest = blake2b(f"{saved.kind} {json.dumps(saved.settings, sort_keys=True, default=str)}".encode(), digest_size=8)
    for name, value in sorted(saved.weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def check_fit(path: str | Path) -> Iterator[None]:
    """ValueError where building the network, or loading its weights, fails inside: the file contradicts itself."""
    try:
        yield
    except (RuntimeError, TypeError, KeyError) as error:  # unknown settings; missing, unexpected or other weights
        raise ValueError(f"{path} does not fit its own settings: {first_lines(error)}") from None


def _translated(saved: SavedWeights) -> SavedWeights:
    """A file of version 0.1 as it would be written today."""
    kind, prefix = OLD_KINDS[saved.kind]
    names = OLD_NAMES.get(kind, {})
    settings = {names.get(name, name): value for name, value in saved.settings.items() if name not in OLD_TRAINING}
    if settings.get("image_size") == 0:
        settings["image_size"] = None
    return SavedWeights(kind, settings, {name.removeprefix(prefix): value for name, value in saved.weights.items()})
