"""What a family of detectors has to have, and how its positives are taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torchvision
from torch import nn

TORCHVISION = f"torchvision {torchvision.__version__} (0.29 is known to fit)"


@dataclasses.dataclass(frozen=True)
class Family:
    """
    Attributes:
        methods: by path from the model, the names of the arguments that each must take; None where any will do
        install: given an open tap, wraps what delivers the positives
        library: whose version they belong to
        check: raises LibraryChanged where the model is otherwise not as expected
        reads_transform: whether images and ground truths come from torchvision's ``model.transform``; else ``install`` keeps them
    """

    methods: dict[str, tuple[str, ...] | None]
    install: Callable[[Any], None]
    library: str = TORCHVISION
    check: Callable[[nn.Module], None] = lambda model: None
    reads_transform: bool = True
