"""A teacher without classes: a frozen image encoder, and the embeddings that it gives of boxes.

    encoder = Encoder(network, crop_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

``network`` maps crops (N, 3, S, S) to one vector each (N, D): timm's with ``num_classes=0``, the image half of a CLIP, a
self-supervised network. ``distill.regions`` teaches with it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cls2det.models.backbones import RANDOM
from cls2det.models.last_layer import without_last_layer
from cls2det.models.networks import load_network
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.teachers.crops import PADDING, enlarged
from cls2det.teachers.normalisation import Renormalise
from cls2det.teachers.reader import as_logits, frozen_reader, probe
from cls2det_ops import roi_crop


class Encoder:
    """Unit embeddings of boxes.

    It is not an ``nn.Module``, so that what trains and has it as an attribute does not take the frozen network for a part of itself.

    Args:
        network: from crops (N, 3, S, S) to embeddings (N, D); a frozen copy is made
        crop_size: S, in pixels
        mean: of each channel of images in [0, 1], as the network takes its crops
        std: of each channel
        margins: a box is cropped once for each, larger by this share of its size on each side; the unit embeddings are added up.
            The default is ViLD's: the box, and one of 1.5 times its sides
        dtype: of the network's computation

    Attributes:
        size: D
    """

    def __init__(
        self,
        network: nn.Module,
        crop_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        margins: Sequence[float] = (0.0, 0.25),
        dtype: torch.dtype = torch.float32,
    ):
        if crop_size < 1 or not margins or min(margins) < 0:
            raise ValueError(f"an encoder needs a crop_size from 1 and margins from 0; found {crop_size} and {tuple(margins)}")
        self.reader = frozen_reader(network, (), True, crop_size, dtype)
        self.crop_size, self.margins, self.dtype = crop_size, tuple(margins), dtype
        self.mean, self.std = tuple(mean), tuple(std)
        device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
        with torch.no_grad():
            self.size = self._encode(probe(crop_size, 1).to(device)).shape[1]

    def __deepcopy__(self, _memo: dict[int, Any]) -> Encoder:
        """A copy of what trains shares the frozen network."""
        return self

    def to(self, device: torch.device | str) -> Encoder:
        self.reader.to(device)
        return self

    def _encode(self, crops: Tensor) -> Tensor:
        return as_logits(self.reader(crops)).float()

    @torch.no_grad()
    def embeddings(self, images: Tensor, boxes: Tensor, image_index: Tensor, renormalise: Renormalise) -> Tensor:
        """(N, D), of length 1, of ``boxes`` (N, 4) xyxy in pixels of ``images`` (B, 3, H, W); no gradient.

        Args:
            renormalise: from the images' normalisation to the network's
        """
        return self.encode(self.crops(images, boxes, image_index, renormalise))

    def crops(self, images: Tensor, boxes: Tensor, image_index: Tensor, renormalise: Renormalise) -> list[Tensor]:
        """What is encoded of the boxes: crops (N, 3, S, S) for each margin, as the network takes them."""
        size = self.crop_size
        return [
            renormalise(roi_crop(images, enlarged(boxes, margin), image_index, size, padding_mode=PADDING, clip=False))
            for margin in self.margins
        ]

    @torch.no_grad()
    def encode(self, crops: Sequence[Tensor]) -> Tensor:
        """(N, D), of length 1, of ``crops``."""
        total = torch.zeros(len(crops[0]), self.size, device=crops[0].device)
        if len(total):
            for of_margin in crops:
                total += F.normalize(self._encode(of_margin), dim=1)
        return F.normalize(total, dim=1)


def load_encoder(
    source: str, weights: str = "pretrained", *, crop_size: int | None = None, dtype: torch.dtype = torch.float32
) -> Encoder:
    """An encoder by name.

    Args:
        source: a name that ``models.networks.load_network`` takes, or weights.pt of ``cls2det teacher``, whose last layer is left out
        weights: of a network by name, see there
        crop_size: side of the crops; None is the network's own
        dtype: of the network's computation

    Raises:
        as ``load_network``, and as ``CropClassifier.load`` for a file
    """
    if Path(source).suffix == ".pt":
        classifier = CropClassifier.load(source)
        network = without_last_layer(classifier.network)
        size = crop_size or classifier.crop_size
        return Encoder(network, size, mean=classifier.mean, std=classifier.std, dtype=dtype)
    loaded = load_network(source, None, weights, size=crop_size)
    if loaded.started_from == RANDOM:
        logging.getLogger(__name__).warning("the encoder %s has random weights: it teaches nothing that is known", source)
    return Encoder(loaded.module, crop_size or loaded.size, mean=loaded.mean, std=loaded.std, dtype=dtype)
