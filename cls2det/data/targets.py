"""From the annotations of a split to arrays, and to the targets that a detector trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cls2det.data.faults import describe, warn_of

CLASSES_FROM = 1  # label of the first class; 0 is background
SMALLEST_SIDE = 0.01  # pixels; still a positive width after the rounding of float32 at thousands of pixels


class Table(NamedTuple):
    """The annotations of a split, a row each, in their order.

    Attributes:
        boxes: (n, 4) float64, as in the file: x, y, width, height
        labels: (n,) int64, from 1 in order of category id
        owners: (n,) int64, positions in the list of images in order of their id
        sizes: (n, 2) float64, width and height of the image
        crowds: (n,) bool
    """

    boxes: np.ndarray
    labels: np.ndarray
    owners: np.ndarray
    sizes: np.ndarray
    crowds: np.ndarray


def tabulate(content: dict[str, Any]) -> Table:
    """The annotations that ``read_annotations`` returned, as arrays."""
    images, annotations = sorted(content["images"], key=lambda image: image["id"]), content["annotations"]
    place = {image["id"]: number for number, image in enumerate(images)}
    label_of = {
        category_id: label
        for label, category_id in enumerate(sorted(category["id"] for category in content["categories"]), start=CLASSES_FROM)
    }
    owners = np.array([place[annotation["image_id"]] for annotation in annotations], dtype=np.int64)
    sizes = np.array([(image["width"], image["height"]) for image in images], dtype=np.float64).reshape(-1, 2)
    return Table(
        np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4),
        np.array([label_of[annotation["category_id"]] for annotation in annotations], dtype=np.int64),
        owners,
        sizes[owners],
        np.array([annotation["iscrowd"] for annotation in annotations], dtype=bool),
    )


def clipped(table: Table) -> np.ndarray:
    """The part of each box that lies in its image, float32 (n, 4) as x1, y1, x2, y2."""
    corners = np.concatenate([table.boxes[:, :2], table.boxes[:, :2] + table.boxes[:, 2:]], 1)
    return corners.clip(0, np.tile(table.sizes, 2)).astype(np.float32)


def make_targets(content: dict[str, Any], table: Table, file: Path, *, with_rows: bool = False) -> list[dict[str, Tensor]]:
    """Of each image, in order of its id: ``boxes`` clipped to the image, ``labels`` and ``image_id``.

    ``with_rows`` adds the place of each box in the list of annotations, for ``name_annotations``.
    """
    images = sorted(content["images"], key=lambda image: image["id"])
    rows = np.flatnonzero(~table.crowds)
    boxes, labels, owner = clipped(table)[rows], table.labels[rows], table.owners[rows]
    usable = (boxes[:, 2:] - boxes[:, :2] >= SMALLEST_SIDE).all(1)
    warn_of(
        file,
        [describe(content["annotations"][row]) for row in rows[~usable]],
        "not trained on (but evaluated, as pycocotools does), with no area inside of the image",
    )
    order = np.flatnonzero(usable)[np.argsort(owner[usable], kind="stable")]
    counts = np.bincount(owner[usable], minlength=len(images)).tolist()
    # clones: a view would drag all boxes along wherever it is saved or sent
    targets = [
        {"boxes": box.clone(), "labels": label.clone(), "image_id": torch.tensor(image["id"])}
        for image, box, label in zip(
            images,
            torch.from_numpy(boxes[order]).split(counts),
            torch.from_numpy(labels[order]).split(counts),
            strict=True,
        )
    ]
    if with_rows:
        for target, places in zip(targets, torch.from_numpy(rows[order]).split(counts), strict=True):
            target["annotation_ids"] = places.clone()
    return targets


def name_annotations(targets: list[dict[str, Tensor]], annotations: list[dict[str, Any]]) -> None:
    """Put the ids of annotations, once they are sure to be integers of their own, in the place of the rows in ``targets``."""
    ids = torch.tensor([annotation["id"] for annotation in annotations], dtype=torch.int64)
    for target in targets:
        target["annotation_ids"] = ids[target["annotation_ids"]]
