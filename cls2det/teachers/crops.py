"""What all teachers of crops share: how a box is cropped, and how their frozen network is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cls2det.teachers.class_map import Mapped, shared_copy
from cls2det.teachers.reader import as_logits, frozen_reader
from cls2det_ops import roi_crop

PADDING = "border"  # of crops in a teacher's training, KD-cls and KD-loc alike


class CropTeacher(nn.Module):
    """A classifier of crops. Subclasses set ``network``.

    Args:
        classes: names of the classes, in order of the logits' columns
        crop_size: side of the crops
        margin: crops are larger than the box by this share of its size, on each side

    Attributes:
        network: from crops (N, 3, S, S) in its own normalisation to logits, or to something with ``logits``
        mapping: from the network's classes to ``classes``; None where they are the same
        name: of the network, for messages; None is its class
    """

    network: nn.Module
    mapping: nn.Module | None
    name: str | None = None

    def __init__(self, classes: Sequence[str], crop_size: int, margin: float):
        super().__init__()
        if crop_size < 1 or margin < 0:
            raise ValueError(f"a teacher needs a crop_size from 1 and a margin from 0; got {crop_size} and {margin}")
        self.classes, self.crop_size, self.margin, self.mapping = list(classes), crop_size, margin, None

    def forward(self, crops: Tensor) -> Tensor:
        """Logits (N, C) of crops (N, 3, S, S) in the network's normalisation; (N, C + 1) with a column for the background."""
        logits = as_logits(self.network(crops))
        return logits if self.mapping is None else self.mapping(logits)

    def crop(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        """Crops (N, 3, S, S) of ``boxes``, in the images' normalisation; gradient flows to the boxes."""
        return roi_crop(images, self.with_margin(boxes), image_index, self.crop_size, padding_mode=PADDING, clip=False)

    def with_margin(self, boxes: Tensor) -> Tensor:
        """The boxes that are cropped for ``boxes`` (N, 4)."""
        return enlarged(boxes, self.margin)

    def reader(self, layers: Sequence[str], logits: bool, dtype: torch.dtype = torch.float32) -> nn.Module:
        """See ``reader.frozen_reader``; "maxpool" and "layer1" are the paper's l0 and l1 of a ResNet."""
        reader = frozen_reader(self.network, layers, logits, self.crop_size, dtype, self.name)
        return reader if self.mapping is None or not logits else Mapped(reader, self.mapping)

    def _mapped(self, classes: Sequence[str], mapping: nn.Module) -> Any:
        """A teacher of ``classes`` that shares the network."""
        teacher = shared_copy(self)
        teacher.classes = list(classes)
        teacher.mapping = mapping if self.mapping is None else nn.Sequential(self.mapping, mapping)
        return teacher


def enlarged(boxes: Tensor, margin: float) -> Tensor:
    """Boxes (N, 4) that are larger by the share ``margin`` of their size, on each side."""
    return boxes + margin * sides(boxes) * boxes.new_tensor([-1, -1, 1, 1]) if margin else boxes


def sides(boxes: Tensor) -> Tensor:
    """(N, 4) of boxes (N, 4): width, height, width, height."""
    return (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
