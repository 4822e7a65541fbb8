"""Boxes that miss the objects: a teacher with too few classes to tell apart learns the background as well."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST_COVERED = 0.2  # share of a background box that objects may cover; so its IoU with each is lower than that
TRIES = 10  # places that are tried for each object


def background_boxes(
    boxes: Tensor, image_index: Tensor, image_sizes: Sequence[tuple[int, int]], generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Boxes (M, 4) of the objects' own sizes at random places without an object, and their image_index (M,).

    At most one for each object and in its image, so M <= N; none where the image has no room for it. Nothing is drawn twice from
    one state of the generator, and the device does not matter to the draws.

    Args:
        boxes: (N, 4) xyxy in pixels, of all objects of the images
        image_index: (N,), the image of each
        image_sizes: (height, width) of each image, without its padding
        generator: on the CPU; None is torch's own
    """
    size = boxes[:, 2:] - boxes[:, :2]
    limits = boxes.new_tensor(image_sizes).flip(1)[image_index]
    shares = torch.rand(len(boxes), TRIES, 2, generator=generator).to(boxes)
    corners = shares * (limits - size).clamp(min=0)[:, None]
    tried = torch.cat([corners, corners + size[:, None]], 2)  # (N, TRIES, 4)
    is_free = _covered(tried, boxes, image_index) <= MOST_COVERED
    first = is_free.int().argmax(1)
    has_place = is_free.any(1)
    rows = torch.arange(len(boxes), device=boxes.device)
    return tried[rows, first][has_place], image_index[has_place]


def _covered(tried: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
    """Share (N, TRIES) of each box that the objects of its image cover; where they overlap each other, they count twice.

    A share of the box and not an IoU: a part of a large object is no background, and its IoU with the object is small.
    """
    overlap = torch.minimum(tried[:, :, None, 2:], boxes[:, 2:]) - torch.maximum(tried[:, :, None, :2], boxes[:, :2])
    same_image = image_index[:, None, None] == image_index
    area = (tried[..., 2:] - tried[..., :2]).prod(2)
    return (overlap.clamp(min=0).prod(3) * same_image).sum(2) / area
