"""What the annotations of a split are, in a few words of JSON: by it a run notices that its data have changed.

The pictures are no part of it, but for their names and sizes in the annotations: to read them all would take longer than many a run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from cls2det.data.columns import PART, Columns
from cls2det.data.targets import CLASSES_FROM

if TYPE_CHECKING:
    from cls2det.data.dataset import DetectionData

Fingerprint = dict[str, list[Any]]  # count and digest by part


def fingerprint(data: DetectionData) -> Fingerprint:
    """Of the whole split, whatever part of its images is used.

    ``classes``: names in order of label. ``images``: ids, file names and sizes. ``boxes``: image, class, place and crowd of each,
    those that are not trained on among them. The order of images does not count, nor do the ids of categories and annotations.
    """
    columns, label_of = data.columns, data.targets.label_of
    boxes = columns.heading.prints["boxes"] if label_of is None else of_boxes(columns, label_of)
    return {"classes": _of_words(data.classes), "images": columns.heading.prints["images"], "boxes": boxes}


def of_images(columns: Columns) -> list[Any]:
    """Of ids, names and sizes, in order of id."""
    ids = columns.image_ids.tolist()
    words = (
        ("\n" if place else "") + str((image_id, columns.name(place), *columns.size(place)))
        for place, image_id in enumerate(ids)
    )
    return [len(ids), _digest(word.encode("utf-8", "surrogatepass") for word in words)]


def of_boxes(columns: Columns, label_of: np.ndarray | None = None) -> list[Any]:
    """Of places, images, classes and crowds; within an image their order counts: it changes the sums of a step.

    Args:
        columns: of the split
        label_of: label in use by label in order of category id; None is the same. Labels count from 0 in the digest
    """

    def others(start: int, stop: int) -> bytes:
        labels = columns.labels[start:stop]
        table = np.empty((stop - start, 3), dtype=np.int64)
        table[:, 0] = columns.image_ids[columns.owners(start, stop)]
        table[:, 1] = (labels if label_of is None else label_of[labels]) - CLASSES_FROM
        table[:, 2] = columns.crowds[start:stop]
        return table.tobytes()

    count = len(columns.boxes)
    parts = [(start, min(start + PART, count)) for start in range(0, count, PART)]
    boxes = (columns.boxes[start:stop].tobytes() for start, stop in parts)
    return [count, _digest(itertools.chain(boxes, (others(start, stop) for start, stop in parts)))]


def with_annotation_ids(data: DetectionData) -> Fingerprint:
    """``fingerprint`` with one part more, ``annotation ids``: which id is which box. What is kept by annotation id needs it."""
    columns, order = data.columns, np.argsort(data.columns.ids, kind="stable")
    owners = columns.image_ids[columns.owners(0, len(order))]
    categories = np.array(columns.heading.category_ids, dtype=np.int64)[columns.labels - CLASSES_FROM]
    rows = np.stack([columns.ids, owners, categories], 1)[order]
    return {**fingerprint(data), "annotation ids": [len(order), _digest([rows.tobytes(), columns.boxes[order].tobytes()])]}


def folder_fingerprint(classes: Sequence[str], files: Sequence[tuple[str, int]]) -> Fingerprint:
    """Of a folder of images by class: ``files`` are paths relative to it, with their labels."""
    return {"classes": _of_words(classes), "images": _of_words(f"{path} {label}" for path, label in sorted(files))}


def changes(then: Mapping[str, Sequence[Any]], now: Mapping[str, Sequence[Any]]) -> list[str]:
    """The parts that differ, in words with counts; none for the same data."""
    texts = []
    for part, (count, digest) in now.items():
        old_count, old_digest = then.get(part, (count, digest))
        if old_count != count:
            texts.append(f"{part} ({old_count} then, {count} now)")
        elif old_digest != digest:
            texts.append(f"{part} ({count} as then, but others)")
    return texts


def _of_words(words: Iterable[str]) -> list[Any]:
    words = list(words)
    return [len(words), _digest(["\n".join(words).encode("utf-8", "surrogatepass")])]


def _digest(parts: Iterable[bytes]) -> str:
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
