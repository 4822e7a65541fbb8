"""How every student's images are brought to its size: by torchvision's transform, but never to a side of no pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torchvision
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.models.detection.transform import _get_shape_onnx as traced_shape

from cls2det.data.targets import reduced_sizes


class Transform(GeneralizedRCNNTransform):  # type: ignore[misc] # torchvision has no types
    """Torchvision's transform for pictures of any shape.

    Torchvision rounds the sides of a resized picture down: the shorter side of a strip, such as a scan of 1 : 160, becomes 0.
    Here it becomes 1. All other pictures come out as torchvision makes them, to the bit, unless ``max_image_side`` is set.

    Attributes:
        max_image_side: of a student whose training reduced larger pictures as it read them, else None. In eval mode larger pictures
            are reduced so here: torchvision's resizing skips pixels of a far larger picture, and shows it sharper than that
            training did
    """

    max_image_side: int | None = None

    @classmethod
    def of(cls, transform: GeneralizedRCNNTransform) -> Transform:
        """One that does as ``transform`` does. Neither has parameters."""
        return cls(
            transform.min_size,
            transform.max_size,
            transform.image_mean,
            transform.image_std,
            transform.size_divisible,
            transform.fixed_size,
        )

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """The image (3, H, W), resized, and ``target`` with its boxes in the resized image."""
        if self.max_image_side is not None and not self.training:
            image, target = self._reduced(image, target, self.max_image_side)
        if self.fixed_size is not None:
            resized: tuple[Tensor, dict[str, Tensor] | None] = super().resize(image, target)
            return resized
        shorter = self.torch_choice(self.min_size) if self.training else self.min_size[-1]
        size: Any = self._traced_size(image, shorter) if torchvision._is_tracing() else self._size(image, shorter)
        return _with_size(image, target, size)

    def _reduced(self, image: Tensor, target: dict[str, Tensor] | None, side: int) -> tuple[Tensor, dict[str, Tensor] | None]:
        """As ``DetectionData`` reduces pictures that it reads."""
        height, width = image.shape[-2:]
        width, height = reduced_sizes(np.array([[width, height]]), side)[0].astype(int).tolist()
        if image.shape[-2:] == (height, width):
            return image, target
        return _with_size(image, target, (height, width), antialias=True)

    def _size(self, image: Tensor, shorter: int) -> tuple[int, int]:
        height, width = image.shape[-2:]
        scale = min(shorter / min(height, width), self.max_size / max(height, width))
        return max(1, int(height * scale)), max(1, int(width * scale))

    def _traced_size(self, image: Tensor, shorter: int) -> tuple[Tensor, Tensor]:
        """As ``_size`` in tensors, for a graph that takes images of any size. It computes in float32, as torchvision's does."""
        sides = traced_shape(image).float()
        scale = (shorter / sides.min()).minimum(self.max_size / sides.max())
        height, width = (sides * scale).floor().clamp(min=1).long().unbind()
        return height, width


def _with_size(
    image: Tensor, target: dict[str, Tensor] | None, size: Any, antialias: bool = False
) -> tuple[Tensor, dict[str, Tensor] | None]:
    before = image.shape[-2:]
    image = interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=antialias)[0]
    if target is not None:
        target["boxes"] = resize_boxes(target["boxes"], before, image.shape[-2:])
    return image, target


def settings_of(transform: GeneralizedRCNNTransform) -> dict[str, Any]:
    """Plain values from which ``Transform(**settings)`` makes it again."""
    return {
        "min_size": list(transform.min_size),
        "max_size": transform.max_size,
        "image_mean": list(transform.image_mean),
        "image_std": list(transform.image_std),
        "size_divisible": transform.size_divisible,
        "fixed_size": None if transform.fixed_size is None else list(transform.fixed_size),
    }
