"""What the annotations of a split are, in a few words of JSON: by it a run notices that its data have changed.

The pictures are no part of it, but for their names and sizes in the annotations: to read them all would take longer than many a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from cls2det.data.dataset import DetectionData

Fingerprint = dict[str, list[Any]]  # count and digest by part


def fingerprint(data: DetectionData) -> Fingerprint:
    """Of the whole split, whatever part of its images is used.

    ``classes``: names in order of label. ``images``: ids, file names and sizes. ``boxes``: image, class, place and crowd of each,
    those that are not trained on among them. The order of images does not count, nor do the ids of categories and annotations.
    """
    assert data.coco is not None, "copies of loader workers have no annotations"
    content = data.coco.dataset
    images = sorted((image["id"], image["file_name"], image["width"], image["height"]) for image in content["images"])
    label_of = {category_id: label for label, category_id in enumerate(data.category_ids)}
    annotations = content["annotations"]
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
    others = np.array(
        [(entry["image_id"], label_of[entry["category_id"]], entry["iscrowd"]) for entry in annotations], dtype=np.int64
    ).reshape(-1, 3)
    order = np.argsort(others[:, 0], kind="stable")  # within an image their order counts: it changes the sums of a step
    return {
        "classes": _of_words(data.classes),
        "images": _of_words(map(str, images)),
        "boxes": [len(boxes), _digest(boxes[order].tobytes(), others[order].tobytes())],
    }


def with_annotation_ids(data: DetectionData) -> Fingerprint:
    """``fingerprint`` with one part more, ``annotation ids``: which id is which box. What is kept by annotation id needs it."""
    assert data.coco is not None, "copies of loader workers have no annotations"
    annotations = sorted(data.coco.dataset["annotations"], key=lambda annotation: annotation["id"])
    ids = np.array([(entry["id"], entry["image_id"], entry["category_id"]) for entry in annotations], dtype=np.int64)
    boxes = np.array([entry["bbox"] for entry in annotations], dtype=np.float64)
    return {**fingerprint(data), "annotation ids": [len(annotations), _digest(ids.tobytes(), boxes.tobytes())]}


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
    return [len(words), _digest("\n".join(words).encode("utf-8", "surrogatepass"))]


def _digest(*parts: bytes) -> str:
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
