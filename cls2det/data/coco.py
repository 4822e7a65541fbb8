"""Reading COCO-format annotations as people write them.

Faults whose meaning is clear are mended, or left out with a warning. Others are errors, which name the file, the annotation or
image, and the reason.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pycocotools.coco import COCO

CLASSES_FROM = 1  # label of the first class; 0 is background
SMALLEST_SIDE = 0.01  # pixels; still a positive width after the rounding of float32 at thousands of pixels
LISTED = 3  # faults of one kind that a message lists


def load_coco(annotation_file: str | Path) -> COCO:
    """``pycocotools.coco.COCO`` of a file, checked, without prints and with clear errors. See ``DetectionData``."""
    return index_coco(read_annotations(annotation_file), annotation_file)


def read_annotations(file: str | Path) -> dict[str, Any]:
    """The file's json, checked: every annotation is a box in a listed image with a listed category, ``area`` and ``iscrowd``."""
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(
            f"no annotation file {file}; expected <root>/annotations/instances_<split>.json in COCO format"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file} is not COCO-format json: {error}") from None
    lists = ("annotations", "categories", "images")
    missing = [name for name in lists if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(f"{file} is not COCO detection data: it lacks {', '.join(missing)}")
    for name in lists:
        if not isinstance(content[name], list) or not all(isinstance(entry, dict) for entry in content[name]):
            raise ValueError(f"{file} is not COCO detection data: {name} is not a list of objects")
    _check_categories(content["categories"], file)
    _check_images(content["images"], file)
    return {**content, "annotations": _usable(content, file)}


def _check_categories(categories: list[dict[str, Any]], file: Path) -> None:
    if not categories:
        raise ValueError(f"{file} lists no category")
    _check_ids(categories, "category", file)
    names: dict[str, int] = {}
    for category in sorted(categories, key=lambda category: category["id"]):
        name = category.get("name")
        if not isinstance(name, str):
            raise ValueError(f"{file}: category {category['id']} has no name")
        if name in names:
            category["name"] = f"{name} ({category['id']})"
            warnings.warn(
                f"{file}: categories {names[name]} and {category['id']} are both named {name!r}; "
                f"the second is called {category['name']!r} here",
                stacklevel=2,
            )
        names.setdefault(name, category["id"])


def _check_images(images: list[dict[str, Any]], file: Path) -> None:
    _check_ids(images, "image", file)
    for image in images:
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            raise ValueError(f"{file}: image {image['id']} has no file_name")
        for side in ("width", "height"):
            if not _is_number(image.get(side)) or image[side] < 1:
                raise ValueError(
                    f"{file}: image {image['id']} ({image['file_name']}) has {side} {image.get(side)!r}; "
                    "expected a number of pixels"
                )


def _check_ids(entries: list[dict[str, Any]], kind: str, file: Path) -> None:
    by_id: dict[int, dict[str, Any]] = {}
    for number, entry in enumerate(entries, start=1):
        if type(entry.get("id")) is not int or abs(entry["id"]) >= 2**63:
            raise ValueError(
                f"{file}: {kind} {number} of the list has id {entry.get('id')!r}; expected an integer of at most 64 bits"
            )
        if entry["id"] in by_id:
            names = [str(twin.get("file_name", twin.get("name"))) for twin in (by_id[entry["id"]], entry)]
            raise ValueError(f"{file}: {kind} id {entry['id']} stands for both {' and '.join(names)}")
        by_id[entry["id"]] = entry


def _usable(content: dict[str, Any], file: Path) -> list[dict[str, Any]]:
    """Annotations with four finite numbers as box, in a listed image, with the fields that ``COCOeval`` reads filled in."""
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    usable, strays, malformed = [], [], []
    for annotation in content["annotations"]:
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        if not _is_number(image_id) or image_id not in images:
            strays.append(f"annotation {annotation.get('id')!r} (image {image_id!r})")
            continue
        if not _is_number(category_id) or category_id not in categories:
            raise ValueError(
                f"{file}: annotation {annotation.get('id')!r} of image {image_id} has category {category_id!r}, "
                "which is not listed"
            )
        if not _is_box(annotation.get("bbox")):
            malformed.append(_describe(annotation))
            continue
        if not _is_number(annotation.get("area")):
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        annotation["iscrowd"] = int(bool(annotation.get("iscrowd")))
        usable.append(annotation)
    _warn(file, strays, "left out, of an image that is not listed")
    _warn(
        file,
        malformed,
        "left out, of the evaluation too, with a bbox that is not four finite numbers [x, y, width ≥ 0, height ≥ 0]",
    )
    return usable


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_box(bbox: object) -> bool:
    return isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox)) and bbox[2] >= 0 and bbox[3] >= 0


def _describe(annotation: dict[str, Any]) -> str:
    bbox = "no bbox" if "bbox" not in annotation else f"bbox {annotation['bbox']}"
    return f"annotation {annotation.get('id')!r} of image {annotation['image_id']} ({bbox})"


def _warn(file: Path, faults: list[str], fate: str) -> None:
    if faults:
        more = f" and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
        noun = "annotation" if len(faults) == 1 else "annotations"
        warnings.warn(f"{file}: {len(faults)} {noun} {fate}: {', '.join(faults[:LISTED])}{more}", stacklevel=2)


def make_targets(content: dict[str, Any], file: Path) -> list[dict[str, Tensor]]:
    """Of each image, in order of its id: ``boxes`` clipped to the image, ``labels`` and ``image_id``."""
    images = sorted(content["images"], key=lambda image: image["id"])
    place = {image["id"]: number for number, image in enumerate(images)}
    label_of = {
        category_id: label
        for label, category_id in enumerate(sorted(category["id"] for category in content["categories"]), start=CLASSES_FROM)
    }
    annotations = [annotation for annotation in content["annotations"] if not annotation["iscrowd"]]
    labels = np.array([label_of[annotation["category_id"]] for annotation in annotations], dtype=np.int64)
    owner = np.array([place[annotation["image_id"]] for annotation in annotations], dtype=np.int64)
    sizes = np.array([(image["width"], image["height"]) for image in images], dtype=np.float64).reshape(-1, 2)
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes = boxes.clip(0, np.tile(sizes[owner], 2)).astype(np.float32)

    usable = (boxes[:, 2:] - boxes[:, :2] >= SMALLEST_SIDE).all(1)
    _warn(
        file,
        [_describe(annotations[number]) for number in np.flatnonzero(~usable)],
        "not trained on (but evaluated, as pycocotools does), with no area inside of the image",
    )
    order = np.flatnonzero(usable)[np.argsort(owner[usable], kind="stable")]
    counts = np.bincount(owner[usable], minlength=len(images)).tolist()
    # clones: a view would drag all boxes along wherever it is saved or sent
    return [
        {"boxes": box.clone(), "labels": label.clone(), "image_id": torch.tensor(image["id"])}
        for image, box, label in zip(
            images,
            torch.from_numpy(boxes[order]).split(counts),
            torch.from_numpy(labels[order]).split(counts),
            strict=True,
        )
    ]


def index_coco(content: dict[str, Any], file: str | Path) -> COCO:
    """``pycocotools.coco.COCO`` of the content that ``read_annotations`` returned."""
    from pycocotools.coco import COCO

    _number_annotations(content["annotations"], file)
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _number_annotations(annotations: list[dict[str, Any]], file: str | Path) -> None:
    """New ids where the file's do not serve: of two equal ids pycocotools would evaluate one object twice, and a detection
    that matches an object of id 0 would count as false.
    """
    ids = [annotation.get("id") for annotation in annotations]
    faults = [repr(number) for number in ids if type(number) is not int]
    if not faults:
        counts = Counter(ids)
        faults = [str(number) for number in ids if counts[number] > 1]
    # unique ids that begin at 0 are well-formed: no warning for them
    _warn(Path(file), faults, "with an id that is not an integer of its own; all get new ids, in the file's order")
    if faults or 0 in ids:
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
