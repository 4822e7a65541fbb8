"""The targets that a detector trains on, out of the arrays of a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from cls2det.data.columns import Columns

CLASSES_FROM = 1  # label of the first class; 0 is background
SMALLEST_SIDE = 0.01  # pixels; still a positive width after the rounding of float32 at thousands of pixels


class Table(NamedTuple):
    """The annotations of a split, a row each, in their order.

    Attributes:
        boxes: (n, 4) float64, as in the file: x, y, width, height
        labels: (n,) int32, from 1 in order of category id
        owners: (n,) int64, positions in the list of images in order of their id
        sizes: (n, 2) float64, width and height of the image
        crowds: (n,) bool
        inside: (n, 4) float32, ``clipped``
    """

    boxes: np.ndarray
    labels: np.ndarray
    owners: np.ndarray
    sizes: np.ndarray
    crowds: np.ndarray
    inside: np.ndarray


def clipped(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The part of each box that lies in its image, float32 (n, 4) as x1, y1, x2, y2; boxes and sizes as in ``Table``."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    return corners.clip(0, np.tile(sizes, 2)).astype(np.float32)


def has_area(inside: np.ndarray) -> np.ndarray:
    """(n,) bool: whether something of the box lies in its image; of ``clipped``."""
    return np.asarray((inside[:, 2:] - inside[:, :2] >= SMALLEST_SIDE).all(1))


def reduced_sizes(sizes: np.ndarray, max_image_side: int) -> np.ndarray:
    """(n, 2) float64: ``sizes``, but with the longer side brought to ``max_image_side`` where it is larger."""
    longer = sizes.max(1, keepdims=True)
    return np.where(longer > max_image_side, np.rint(sizes * max_image_side / longer).clip(1), sizes)


class Targets(Sequence[dict[str, Tensor]]):
    """Of each image that is used: ``boxes`` (n, 4) float32 xyxy in pixels, clipped to it, ``labels`` (n,) int64 and ``image_id``.

    A target is made when it is asked for: what is changed in one stays there.

    Args:
        columns: of the split
        places: of the images that are used, in the order of ids
        label_of: label in use by label in order of category id (0 is none); None is the same
        with_ids: targets have ``annotation_ids`` (n,) int64, too
        max_image_side: as of ``DetectionData``: boxes and sizes are those of the reduced images
    """

    def __init__(
        self,
        columns: Columns,
        places: np.ndarray | range,
        label_of: np.ndarray | None = None,
        with_ids: bool = False,
        max_image_side: int | None = None,
    ):
        self.columns, self.places, self.label_of, self.with_ids = columns, places, label_of, with_ids
        self.max_image_side = max_image_side

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> dict[str, Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Tensor]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        columns, place = self.columns, int(self.places[index])
        start, stop = int(columns.target_ends[place - 1]) if place else 0, int(columns.target_ends[place])
        target = {
            "boxes": self._boxes(slice(start, stop), slice(place, place + 1), stop - start),
            "labels": self._labels(columns.target_labels[start:stop]),
            "image_id": torch.tensor(int(columns.image_ids[place])),
        }
        if self.with_ids:
            target["annotation_ids"] = torch.from_numpy(columns.target_ids[start:stop].copy())
        return target

    def counts(self) -> Tensor:
        """(n,) int64, boxes of each image."""
        return torch.from_numpy(np.diff(self.columns.target_ends, prepend=0)[_index(self.places)])

    def boxes(self) -> Tensor:
        """(k, 4) float32, those of all images on end."""
        return self._boxes(self._rows(), _index(self.places), self.counts().numpy())

    def labels(self) -> Tensor:
        """(k,) int64, of ``boxes()``."""
        return self._labels(self.columns.target_labels[self._rows()])

    def sizes(self) -> Tensor:
        """(n, 2) float64, width and height of each image."""
        return torch.from_numpy(self._sizes(_index(self.places)).copy())

    def size(self, index: int) -> tuple[float, float]:
        """Width and height of an image, integers where they are in the file or the image is reduced."""
        place = int(self.places[index])
        as_listed, (width, height) = self.columns.size(place), self._sizes(slice(place, place + 1))[0].tolist()
        return as_listed if (width, height) == as_listed else (int(width), int(height))

    def chosen(self, which: np.ndarray) -> Targets:
        """Of some images, by their positions here, int64."""
        return Targets(self.columns, np.asarray(self.places)[which], self.label_of, self.with_ids, self.max_image_side)

    def relabelled(self, label_of: np.ndarray) -> Targets:
        """The same images with labels in another order than that of category ids."""
        return Targets(self.columns, self.places, label_of, self.with_ids, self.max_image_side)

    def _sizes(self, places: np.ndarray | slice) -> np.ndarray:
        sizes = self.columns.sizes[places]
        return sizes if self.max_image_side is None else reduced_sizes(sizes, self.max_image_side)

    def _boxes(self, rows: np.ndarray | slice, places: np.ndarray | slice, counts: np.ndarray | int) -> Tensor:
        """A copy of these rows, in pixels of the images as they are read; ``counts`` are those of the images at ``places``."""
        boxes = self.columns.target_boxes[rows]
        if self.max_image_side is None:
            return torch.from_numpy(boxes.copy())
        scales = self._sizes(places) / self.columns.sizes[places]
        return torch.from_numpy((boxes * np.tile(scales, 2).repeat(counts, 0)).astype(np.float32))

    def _labels(self, labels: np.ndarray) -> Tensor:
        return torch.from_numpy(labels.astype(np.int64) if self.label_of is None else self.label_of[labels])

    def _rows(self) -> np.ndarray | slice:
        if isinstance(self.places, range):
            return slice(None)
        counts, ends = self.counts().numpy(), self.columns.target_ends[self.places]
        return np.repeat(ends - counts.cumsum(), counts) + np.arange(counts.sum())


def _index(places: np.ndarray | range) -> np.ndarray | slice:
    return slice(None) if isinstance(places, range) else places
