"""The annotations of a split as flat arrays: in memory, or mapped from a file that all processes share (``cache.py``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cls2det.data.pictures import Listed

Arrays = dict[str, np.ndarray]
PART = 1 << 20  # rows that are worked on at a time


class Heading(NamedTuple):
    """What is not an array.

    Attributes:
        classes: names, in order of category id
        category_ids: of ``classes``
        notes: what is doubtful, by its occasion: that the file is "read", that the "split" is opened, or that "ids" of annotations
            are needed
        summary: what the split holds, in a line
        prints: digests of ``fingerprint.py`` for images and boxes, in this order of classes
    """

    classes: list[str]
    category_ids: list[int]
    notes: dict[str, list[str]]
    summary: str
    prints: dict[str, list[Any]]


class Columns:
    """Images in order of id, and annotations in order of their image, within it in the file's order.

    Mapped arrays cannot be written to, and others must not be. A copy for another process is the name of the file, not its content.

    Attributes:
        heading: all that is not an array
        file: that the arrays are mapped from; None in memory
        source: of a mapped one, by which bytes of the annotation file it was made
        image_ids: (n,) int64
        sizes: (n, 2) float64, width and height in pixels
        whole: (n, 2) bool, whether the file has these as integers
        names, name_ends: UTF-8 of all file names on end, and (n,) int64, where each ends
        ids: (m,) int64, of the annotations
        boxes: (m, 4) float64, as in the file: x, y, width, height
        areas: (m,) float64
        labels: (m,) int32, from 1 in order of category id
        crowds: (m,) bool
        ends: (n,) int64, where the annotations of each image end
        target_boxes: (k, 4) float32, of those to train on: the part in the image as x1, y1, x2, y2
        target_labels, target_ids: (k,) int32 and int64, labels and annotation ids of these
        target_ends: (n,) int64, where those of each image end
    """

    image_ids: np.ndarray
    sizes: np.ndarray
    whole: np.ndarray
    names: np.ndarray
    name_ends: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    labels: np.ndarray
    crowds: np.ndarray
    ends: np.ndarray
    target_boxes: np.ndarray
    target_labels: np.ndarray
    target_ids: np.ndarray
    target_ends: np.ndarray

    def __init__(self, heading: Heading, arrays: Arrays, file: Path | None = None, source: Mapping[str, Any] | None = None):
        self.heading, self.arrays, self.file, self.source = heading, arrays, file, dict(source or {})
        self.__dict__.update(arrays)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.file is None:
            return Columns, (self.heading, self.arrays)
        return reopen, (self.file, self.source["digest"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Columns:
        return self

    def name(self, place: int) -> str:
        """Of the image at a place in the order of ids."""
        start = self.name_ends[place - 1] if place else 0
        return self.names[start : self.name_ends[place]].tobytes().decode("utf-8", "surrogatepass")

    def size(self, place: int) -> tuple[int, int]:
        """Width and height of an image, integers where they are in the file."""
        sides = zip(self.sizes[place].tolist(), self.whole[place].tolist(), strict=True)
        width, height = (int(side) if whole else side for side, whole in sides)
        return width, height

    def owners(self, start: int, stop: int) -> np.ndarray:
        """The places of the images that the annotations from ``start`` to ``stop`` belong to, int64."""
        return np.searchsorted(self.ends, np.arange(start, stop), side="right")


class Files(Mapping[int, Listed]):
    """The images by id, made when they are asked for.

    Args:
        columns: of the split
        renamed: names that are written otherwise in the file
    """

    def __init__(self, columns: Columns, renamed: Mapping[str, str] | None = None):
        self.columns, self.renamed = columns, dict(renamed or {})

    def __len__(self) -> int:
        return len(self.columns)

    def __iter__(self) -> Iterator[int]:
        return iter(self.columns.image_ids.tolist())

    def __getitem__(self, image_id: int) -> Listed:
        place = int(np.searchsorted(self.columns.image_ids, image_id))
        if place == len(self) or self.columns.image_ids[place] != image_id:
            raise KeyError(image_id)
        return self.at(place)

    def at(self, place: int) -> Listed:
        name = self.columns.name(place)
        return Listed(int(self.columns.image_ids[place]), self.renamed.get(name, name), *self.columns.size(place))


def reopen(file: Path, digest: str) -> Columns:
    """The arrays of another process; ValueError where the file is not the one that it has open."""
    from cls2det.data.cache import load

    columns = load(file)
    if columns is None or columns.source["digest"] != digest:
        raise ValueError(f"{file} has changed since this command began: the annotations did; start it again")
    return columns
