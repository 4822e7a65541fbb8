"""Any image file as uint8 RGB, as its pixels are stored or turned by its EXIF orientation.

Pillow decodes to the same bits as ``torchvision.io.decode_image``, which is deprecated, and knows more kinds of files.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cls2det.settings import MAX_PIXELS

ORIENTATION = 0x0112  # EXIF's tag: 1 is upright
INVERSE = {6: 8, 8: 6}  # the other turns are their own inverse
SIDES_SWAPPED = (5, 6, 7, 8)  # orientations that make a wide picture high


def read_image(path: str | Path, *, turned: bool = False, max_pixels: int | None = MAX_PIXELS) -> Tensor:
    """uint8 (3, H, W), RGB.

    Grey images get three equal channels, palettes and CMYK become RGB, an alpha channel is dropped, of 16 bits the upper
    8 are kept, of an animation the first frame.

    Args:
        path: of the file
        turned: apply the orientation in the image's EXIF data, as viewers do. COCO's boxes refer to the pixels as stored
        max_pixels: an image of more is not decoded, as a small file can fill the memory; None is no limit

    Raises:
        ValueError: the file cannot be decoded: missing, truncated, not an image, too large, or 32-bit numbers of unknown range
    """
    image, orientation = read_with_orientation(path, max_pixels)
    return turn(image, orientation) if turned else image


def read_with_orientation(path: str | Path, max_pixels: int | None = MAX_PIXELS) -> tuple[Tensor, int]:
    """The image as stored, and the orientation (1 to 8) in its EXIF data; 1 where there is none. As ``read_image``."""
    with _opened(path, max_pixels) as image:
        orientation = _orientation(image)
        pixels = torch.from_numpy(_pixels(image)).permute(2, 0, 1)
        if image.format == "TIFF" and orientation != _orientation(image):  # Pillow turns TIFF, and removes the tag
            pixels = turn(pixels, INVERSE.get(orientation, orientation))
        return pixels, _orientation(image) if image.format == "PNG" else orientation  # PNG may have it after the pixels


def read_header(path: str | Path, max_pixels: int | None = MAX_PIXELS) -> tuple[int, int, int]:
    """Width and height as stored, and the orientation, without decoding a pixel. Raises as ``read_image``."""
    with _opened(path, max_pixels) as image:
        width, height = image.size
        if image.format == "TIFF":  # its size may be the turned one
            width, height = (int(image.tag_v2[tag]) for tag in (256, 257))  # type: ignore[attr-defined]
        return width, height, _orientation(image)


def turn(image: Tensor, orientation: int) -> Tensor:
    """An image (3, H, W) as stored with an EXIF orientation, upright."""
    if orientation in SIDES_SWAPPED:
        image = image.transpose(1, 2)
    flipped = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation, [])
    return image.flip(flipped).contiguous()


def to_float(images: Iterable[Tensor]) -> list[Tensor]:
    """uint8 images as float32 in [0, 1], as torchvision's detectors take them."""
    return [image.float() / 255 for image in images]


@contextlib.contextmanager
def _opened(path: str | Path, max_pixels: int | None) -> Iterator[Image.Image]:
    try:
        with _without_pillows_limit(), Image.open(path) as image:
            pixels = image.size[0] * image.size[1]
            if max_pixels is not None and pixels > max_pixels:
                raise ValueError(
                    f"it has {image.size[0]} x {image.size[1]} = {pixels} pixels, more than the limit of {max_pixels}. "
                    "If you trust it, raise max_pixels (--max-pixels, in a training --run.max-pixels; null is no limit)"
                )
            yield image
    except Exception as error:  # what Pillow's decoders raise for broken files has no common type
        raise ValueError(f"cannot read {path}: {str(error) or type(error).__name__}") from None


_lock, _limit, _readers = threading.Lock(), Image.MAX_IMAGE_PIXELS, 0


@contextlib.contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Pillow's limit is a global. The first of all threads that read lifts it, the last one puts it back."""
    global _limit, _readers
    with _lock:
        if not _readers:
            _limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if not _readers:
                Image.MAX_IMAGE_PIXELS = _limit


def _orientation(image: Image.Image) -> int:
    # others than TIFF not by getexif, which decodes a PNG, and warns of blocks that are damaged elsewhere
    orientation = image.getexif().get(ORIENTATION) if image.format == "TIFF" else _in_exif(image.info.get("exif") or b"")
    return int(orientation) if orientation in range(1, 9) else 1  # type: ignore[arg-type]


def _in_exif(block: bytes) -> int | None:
    """The orientation in a block of EXIF data: a header, then tags of 12 bytes each."""
    block = block.removeprefix(b"Exif\0\0")
    order = "<" if block[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        tags = (struct.unpack_from(f"{order}HHIH", block, start + 2 + 12 * number) for number in range(count))
        return next((value for tag, _, _, value in tags if tag == ORIENTATION), None)
    except struct.error:  # cut off
        return None


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # the latter: Pillow before 11
        return np.repeat((np.array(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)  # convert cuts off at 255
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (Pillow's mode {image.mode}); expected 8 or 16 bits")
    return np.array(image.convert("RGB"))
