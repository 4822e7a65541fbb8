"""Pictures for TensorBoard and for files: boxes with class and score, rows of pictures, and the teacher's crops.

All functions return uint8 RGB tensors (3, H, W) on the CPU; their arguments may lie on any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import ImageDraw, ImageFont
from torch import Tensor
from torchvision.io import write_jpeg, write_png
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes

from cls2det.evaluation.fonts import font_for

SMALL = 320  # a picture with a longer side below this is enlarged before it is written on
GREY = 160  # of padding
COLOURS = ("#ffd400", "#00d5ff", "#ff6d5e", "#7dff5e", "#ff8df0", "#ffa126", "#9db4ff", "#2effc0", "#d9ff3b", "#e0b48a")


def draw_boxes(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    scores: Tensor | None = None,
    colour: str | Sequence[str] | None = None,
) -> Tensor:
    """The image with its boxes, each with the name of its class and, where given, its score.

    Args:
        image: uint8 (3, H, W); a small one is enlarged by a whole factor, so that the text is readable
        boxes: (n, 4) xyxy in pixels of ``image``
        labels: (n,) from 1, in order of ``classes``
        classes: names of the classes
        scores: (n,) in [0, 1], or None
        colour: one for all boxes, or one per box, as Pillow names it; None is by class

    Returns:
        uint8 (3, k·H, k·W), k = 1 unless the image is small
    """
    image, factor = _enlarged(image.cpu(), SMALL)
    drawable = boxes.isfinite().all(1)
    boxes, numbers = boxes[drawable].cpu() * factor, labels[drawable].tolist()
    if not numbers:
        return image
    texts = [classes[label - 1] for label in numbers]
    if colour is not None and not isinstance(colour, str):
        colour = [name for name, is_drawable in zip(colour, drawable.tolist(), strict=True) if is_drawable]
    if scores is not None:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores[drawable].tolist(), strict=True)]
    height, width = image.shape[-2:]
    boxes = boxes.clamp(min=torch.zeros(4), max=torch.tensor([width - 1.0, height - 1.0] * 2))  # so that the name shows
    unit = min(max(height, width), 8 * min(height, width)) / SMALL  # of a strip, the longer side would make letters beyond it
    return draw_bounding_boxes(
        image,
        boxes,
        texts,
        colors=colour or [COLOURS[label % len(COLOURS)] for label in numbers],
        width=max(1, round(1.5 * unit)),
        font=font_for(classes),
        font_size=max(11, round(9 * unit)),
        fill_labels=True,
    )


def contact_sheet(rows: Sequence[Sequence[Tensor]], side: int = 640, gap: int = 4) -> Tensor:
    """Rows of pictures on one sheet, each padded with grey to the size of the largest; those above ``side`` pixels are shrunk."""
    if not any(len(row) for row in rows):
        raise ValueError("contact_sheet: expected at least one picture, found none")
    rows = [[_shrunk(picture.cpu(), side) for picture in row] for row in rows]
    height = max(picture.shape[1] for row in rows for picture in row) + gap
    width = max(picture.shape[2] for row in rows for picture in row) + gap
    sheet = torch.full((3, height * len(rows) + gap, width * max(map(len, rows)) + gap), GREY, dtype=torch.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = gap + i * height, gap + j * width
            sheet[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return sheet


def crops_sheet(
    crops: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    captions: Sequence[str] | None = None,
    columns: int = 8,
    limit: int = 64,
) -> Tensor:
    """The first ``limit`` of a teacher's crops, with a caption below each.

    Args:
        crops: float (N, 3, S, S), N > 0, normalised: (x - mean) / std with x in [0, 1]
        mean: of the normalisation, one value per channel
        std: of the normalisation
        captions: N texts, or None
        columns: crops per row
        limit: crops beyond these are left out
    """
    if captions is not None and len(captions) != len(crops):
        raise ValueError(f"crops_sheet: expected a caption per crop, found {len(captions)} for {len(crops)} crops")
    pixels = crops[:limit].detach().float().cpu() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    tiles = [_enlarged(tile, 96)[0] for tile in (pixels.clamp(0, 1) * 255).round().to(torch.uint8)]
    if captions is not None:
        font_file = font_for(captions)
        tiles = [_captioned(tile, text, font_file) for tile, text in zip(tiles, captions, strict=False)]
    return contact_sheet([tiles[first : first + columns] for first in range(0, len(tiles), columns)])


def write_picture(picture: Tensor, path: Path) -> None:
    """Write a uint8 (3, H, W) picture as .jpg, .jpeg or .png; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".png":
        write_png(picture, str(path))
    elif path.suffix.lower() in (".jpg", ".jpeg"):
        write_jpeg(picture, str(path), quality=92)
    else:
        raise ValueError(f"write_picture: expected a name that ends in .jpg, .jpeg or .png, found {path}")


def _enlarged(image: Tensor, small: int) -> tuple[Tensor, int]:
    """The image with each pixel repeated k times both ways, and k: the least that brings the longer side to ``small``."""
    factor = math.ceil(small / max(image.shape[-2:]))
    return image.repeat_interleave(factor, -2).repeat_interleave(factor, -1), factor


def _shrunk(image: Tensor, side: int) -> Tensor:
    longer = max(image.shape[-2:])
    if longer <= side:
        return image
    size = [max(1, round(length * side / longer)) for length in image.shape[-2:]]
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def _captioned(tile: Tensor, text: str, font_file: str, strip: int = 15) -> Tensor:
    picture = to_pil_image(F.pad(tile, (0, 0, 0, strip), value=255))
    font = ImageFont.truetype(font_file, 11)
    ImageDraw.Draw(picture).text((2, tile.shape[1] + 1), text, fill="black", font=font)
    return pil_to_tensor(picture)
