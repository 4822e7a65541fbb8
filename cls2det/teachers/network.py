"""Any classifier or image encoder as a teacher, and what a teacher must answer.

    teacher = teacher_from(network, classes, crop_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

``network`` maps crops (N, 3, S, S), normalised with ``mean`` and ``std``, to logits (N, C) in the order of ``classes``: a
classifier of torchvision or timm, one of transformers, a zero-shot model, anything that is an ``nn.Module``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cls2det.teachers.class_map import ClassTable, class_map
from cls2det.teachers.crops import CropTeacher
from cls2det.teachers.reader import as_logits, probe


@runtime_checkable
class BoxTeacher(Protocol):
    """What the distiller asks of a teacher. ``CropClassifier`` and ``NetworkTeacher`` answer it; so may a class of yours.

    Attributes:
        classes: names of the classes, in order of the logits' columns
        crop_size: side S of the crops
        mean, std: of each channel, as the crops are normalised: (x - mean) / std with x in [0, 1]
    """

    classes: list[str]
    crop_size: int

    @property
    def mean(self) -> Sequence[float]: ...

    @property
    def std(self) -> Sequence[float]: ...

    def for_classes(self, classes: Sequence[str]) -> BoxTeacher:
        """A teacher whose logits have the columns of these classes; ValueError for a class that only one side has."""
        ...

    def with_margin(self, boxes: Tensor) -> Tensor:
        """The boxes (N, 4) that are cropped for ``boxes`` (N, 4); gradient flows."""
        ...

    def crop(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        """Crops (N, 3, S, S) of ``boxes`` in ``images`` (B, 3, H, W), normalised as these are; gradient flows to the boxes."""
        ...

    def reader(self, layers: Sequence[str], logits: bool, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Frozen module from crops to a dictionary: each layer's map (N, c, h, w) by name, and "logits" (N, C) if asked."""
        ...


class NetworkTeacher(CropTeacher):
    """A teacher of a trained network; see ``teacher_from``."""

    def __init__(
        self,
        network: nn.Module,
        classes: Sequence[str],
        crop_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        margin: float = 0.0,
    ):
        super().__init__(classes, crop_size, margin)
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or (name == "std" and min(values) <= 0):
                raise ValueError(f"{name} must be three numbers, those of std above 0; found {tuple(values)}")
        self.network = network.eval().requires_grad_(False)
        self.mean, self.std = tuple(mean), tuple(std)
        with torch.no_grad():
            device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
            columns = as_logits(self.network(probe(crop_size, 1).to(device))).shape[1]
        if columns != len(self.classes):
            raise ValueError(f"the network gives {columns} logits for {len(self.classes)} classes")

    def for_classes(
        self, classes: Sequence[str], mapping: ClassTable | None = None, *, head: str = "softmax"
    ) -> NetworkTeacher:
        """A teacher of these classes that shares the network, or itself where they are its own.

        Args:
            classes: names of the data's classes, in order of label
            mapping: which of the teacher's classes stand for which of these; see ``teachers.class_map``. None takes the same
                names in any order
            head: of the detector, "softmax" or "sigmoid": how probabilities that the mapping joins or shares are read

        Raises:
            ValueError: as ``class_map``
        """
        ours = class_map(classes, self.classes, mapping, head=head)
        return self if ours is None else self._mapped(classes, ours)


def teacher_from(
    network: nn.Module,
    classes: Sequence[str],
    crop_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    margin: float = 0.0,
) -> NetworkTeacher:
    """A teacher of a network that classifies crops.

    Args:
        network: from crops (N, 3, S, S) to logits (N, C), or to something with ``logits``; it is frozen
        classes: names of the C classes, in order of the logits' columns
        crop_size: S, in pixels
        mean: of each channel, of images in [0, 1]
        std: of each channel
        margin: crops are larger than the box by this share of its size, on each side

    Raises:
        ValueError: the network gives another number of logits
    """
    return NetworkTeacher(network, classes, crop_size, mean=mean, std=std, margin=margin)
