"""From annotations in a file's order to ``Columns``: what is doubtful in all of them, what is trained on, and their order."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cls2det.data.checks import doubts
from cls2det.data.columns import Arrays, Columns, Heading
from cls2det.data.faults import describe, kept_notes, warn_of
from cls2det.data.fingerprint import of_boxes, of_images
from cls2det.data.targets import CLASSES_FROM, Table, clipped, has_area


class Listing(NamedTuple):
    """A checked split, annotations in the file's order.

    Attributes:
        categories: id and name, in order of id
        images: ``image_ids``, ``sizes``, ``whole``, ``names`` and ``name_ends`` of ``Columns``
        table, areas, ids: a row per annotation
        odd_ids: by row, what stands in the file where ``ids`` cannot hold it: text, say
        describe: an annotation by its row, for a message; of those that have no area in their image
        shared_names: file names of more than one image
        strays: how many annotations were left out because their image is not listed
        ignored: what crowds are called, where they are no crowds
    """

    categories: list[tuple[int, str]]
    images: Arrays
    table: Table
    areas: np.ndarray
    ids: np.ndarray
    odd_ids: dict[int, Any]
    describe: Callable[[int], str]
    shared_names: list[str]
    strays: int
    ignored: str | None


def image_arrays(ids: np.ndarray, names: list[str], sizes: np.ndarray, whole: np.ndarray) -> Arrays:
    """The images in order of id."""
    order = np.argsort(ids, kind="stable")
    words = [names[place].encode("utf-8", "surrogatepass") for place in order.tolist()]
    return {
        "image_ids": ids[order],
        "sizes": sizes[order],
        "whole": whole[order],
        "names": np.frombuffer(b"".join(words), np.uint8),
        "name_ends": np.cumsum([len(word) for word in words], dtype=np.int64),
    }


def image_arrays_of(images: list[dict[str, Any]]) -> Arrays:
    """Of COCO's list, which ``check_images`` has passed."""
    sides = [(image["width"], image["height"]) for image in images]
    return image_arrays(
        np.array([image["id"] for image in images], dtype=np.int64),
        [image["file_name"] for image in images],
        np.array(sides, dtype=np.float64).reshape(-1, 2),
        np.array([[type(side) is int for side in pair] for pair in sides], dtype=bool).reshape(-1, 2),
    )


def listing_of(content: dict[str, Any]) -> Listing:
    """Of the lists that ``check_content`` returned."""
    images, annotations = content["images"], content["annotations"]
    categories = sorted((category["id"], category["name"]) for category in content["categories"])
    arrays = image_arrays_of(images)
    place = {image_id: number for number, image_id in enumerate(arrays["image_ids"].tolist())}
    label_of = {category_id: label for label, (category_id, _) in enumerate(categories, start=CLASSES_FROM)}
    ids, odd_ids = split_ids([annotation.get("id") for annotation in annotations])
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
    owners = np.array([place[annotation["image_id"]] for annotation in annotations], dtype=np.int64)
    sizes = arrays["sizes"][owners]
    table = Table(
        boxes,
        np.array([label_of[annotation["category_id"]] for annotation in annotations], dtype=np.int32),
        owners,
        sizes,
        np.array([annotation["iscrowd"] for annotation in annotations], dtype=bool),
        clipped(boxes, sizes),
    )
    return Listing(
        categories,
        arrays,
        table,
        np.array([annotation["area"] for annotation in annotations], dtype=np.float64),
        ids,
        odd_ids,
        lambda row: describe(annotations[row]),
        shared([image["file_name"] for image in images]),
        content["strays"],
        content.get("ignored"),
    )


def shared(names: list[str]) -> list[str]:
    """Those that stand there more than once."""
    return [name for name, times in Counter(names).items() if times > 1] if len(set(names)) < len(names) else []


def split_ids(values: list[Any]) -> tuple[np.ndarray, dict[int, Any]]:
    """Ids as int64, and those that are none by row; there the array has 0."""
    with contextlib.suppress(OverflowError):
        if set(map(type, values)) <= {int}:
            return np.array(values, dtype=np.int64), {}
    odd = {row: value for row, value in enumerate(values) if type(value) is not int or abs(value) >= 2**63}
    return np.array([0 if row in odd else value for row, value in enumerate(values)], dtype=np.int64), odd


def arrange(listing: Listing, file: Path, read_notes: list[str]) -> Columns:
    """``read_notes``: what was told as the file was read."""
    images, table, count = listing.images, listing.table, len(listing.images["image_ids"])
    with kept_notes(file) as split_notes:
        summary = doubts(listing, file)
        usable = has_area(table.inside)
        outside = np.flatnonzero(~table.crowds & ~usable).tolist()
        fate = "not trained on (but evaluated, as pycocotools does), with no area inside of the image"
        warn_of(file, [listing.describe(row) for row in outside], fate)
    with kept_notes(file) as id_notes:
        ids = _numbered(listing, file)
    order = np.argsort(table.owners, kind="stable")
    of_target = order[(usable & ~table.crowds)[order]]
    arrays = images | {
        "ids": ids[order],
        "boxes": table.boxes[order],
        "areas": listing.areas[order],
        "labels": table.labels[order],
        "crowds": table.crowds[order],
        "ends": np.cumsum(np.bincount(table.owners, minlength=count)),
        "target_boxes": table.inside[of_target],
        "target_labels": table.labels[of_target],
        "target_ids": ids[of_target],
        "target_ends": np.cumsum(np.bincount(table.owners[of_target], minlength=count)),
    }
    category_ids, classes = [number for number, _ in listing.categories], [name for _, name in listing.categories]
    notes = {"read": read_notes, "split": split_notes, "ids": id_notes}
    columns = Columns(Heading(classes, category_ids, notes, summary, {}), arrays)
    columns.heading.prints.update(images=of_images(columns), boxes=of_boxes(columns))
    return columns


def _numbered(listing: Listing, file: Path) -> np.ndarray:
    """The ids, or new ones where the file's do not serve: of two equal ids pycocotools would evaluate one object twice, and a
    detection that matches an object of id 0 would count as false.
    """
    ids, odd = listing.ids, listing.odd_ids
    faults = [repr(value) for value in odd.values() if type(value) is not int]
    if not faults and (odd or len(np.unique(ids)) < len(ids)):
        values = [odd.get(row, value) for row, value in enumerate(ids.tolist())]
        counts = Counter(values)
        faults = [str(value) for value in values if counts[value] > 1]
    # unique ids that begin at 0 are well-formed: no warning for them
    warn_of(file, faults, "with an id that is not an integer of its own; all get new ids, in the file's order")
    return np.arange(1, len(ids) + 1) if faults or odd or 0 in ids else ids
