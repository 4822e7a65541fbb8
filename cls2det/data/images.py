"""Any image file as uint8 RGB, as its pixels are stored or as it is shown.

Pillow decodes to the same bits as ``torchvision.io.decode_image``, which is deprecated, and knows more kinds of files.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def read_image(path: str | Path, turned: bool = False) -> Tensor:
    """uint8 (3, H, W), RGB.

    Grey images get three equal channels, palettes and CMYK become RGB, an alpha channel is dropped, of 16 bits the upper
    8 are kept, of an animation the first frame. The orientation in an image's EXIF data is applied only if ``turned``: COCO's
    boxes refer to the pixels as stored.

    Args:
        path: of the file
        turned: give the picture as viewers show it, upright by its EXIF orientation

    Raises:
        ValueError: the file cannot be decoded: missing, truncated, not an image, or 32-bit numbers of unknown range
    """
    try:
        with Image.open(path) as image:
            return torch.from_numpy(_pixels(_upright(image) if turned else image)).permute(2, 0, 1)
    except Exception as error:  # what Pillow's decoders raise for broken files has no common type
        raise ValueError(f"cannot read {path}: {str(error) or type(error).__name__}") from None


def to_float(images: Iterable[Tensor]) -> list[Tensor]:
    """uint8 images as float32 in [0, 1], as torchvision's detectors take them."""
    return [image.float() / 255 for image in images]


def _upright(image: Image.Image) -> Image.Image:
    """As its EXIF orientation says; as it is stored where that cannot be read."""
    try:
        turned = ImageOps.exif_transpose(image)
    except Exception:  # of pixels that cannot be decoded, the caller hears soon enough
        return image
    turned.format = image.format  # which ``_pixels`` reads
    return turned


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # the latter: Pillow before 11
        return np.repeat((np.array(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)  # convert cuts off at 255
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (Pillow's mode {image.mode}); expected 8 or 16 bits")
    return np.array(image.convert("RGB"))
