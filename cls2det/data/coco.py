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
from typing import TYPE_CHECKING, Any, TypeGuard

from cls2det.data.faults import count, describe, warn_of
from cls2det.errors import some

if TYPE_CHECKING:
    from pycocotools.coco import COCO

CROWD = {0: 0, 1: 1, "0": 0, "1": 1, "false": 0, "true": 1, None: 0}  # what iscrowd may be; False is 0 and True is 1


def read_annotations(file: str | Path) -> dict[str, Any]:
    """The file's json, checked by ``check_content``."""
    file = Path(file)
    if not file.is_file():
        packed = file.with_name(f"{file.name}.gz")
        hint = f"; {packed.name} is there: unpack it" if packed.is_file() else ""
        raise FileNotFoundError(
            f"no annotation file {file}; expected <root>/annotations/instances_<split>.json in COCO format{hint}"
        )
    try:
        content = json.loads(file.read_bytes())  # of bytes, it also knows a byte order mark, UTF-16 and UTF-32
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not COCO-format json in UTF-8: {error}; save it as UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{file} is not COCO-format json: {error}") from None
    lists = ("annotations", "categories", "images")
    missing = [name for name in lists if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(f"{file} is not COCO detection data: it lacks {', '.join(missing)}")
    for name in lists:
        if not isinstance(content[name], list) or not all(isinstance(entry, dict) for entry in content[name]):
            raise ValueError(f"{file} is not COCO detection data: {name} is not a list of objects")
    return check_content(content, file)


def check_content(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """COCO's three lists, checked: every annotation is a box in a listed image with a listed category, ``area`` and ``iscrowd``.

    ``strays`` is added: how many annotations were left out because their image is not listed.

    Args:
        content: it is changed
        file: for messages
    """
    _check_categories(content["categories"], file)
    _check_images(content["images"], file)
    usable, strays = _usable(content, file)
    return {**content, "annotations": usable, "strays": strays}


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


def _usable(content: dict[str, Any], file: Path) -> tuple[list[dict[str, Any]], int]:
    """Annotations with four finite numbers as box, in a listed image, with the fields that ``COCOeval`` reads filled in.

    Also the number of annotations of images that are not listed.
    """
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    usable, strays, malformed, crowds, areas = [], [], [], [], []
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
            malformed.append(describe(annotation))
            continue
        _, _, width, height = annotation["bbox"]
        area, crowd = annotation.get("area"), annotation.get("iscrowd")
        if not _is_area(area, width, height):
            if area is not None and (area != 0 or width * height):
                areas.append(f"annotation {annotation.get('id')!r} (area {area!r}, bbox {annotation['bbox']})")
            annotation["area"] = width * height
        crowd = crowd.lower() if isinstance(crowd, str) else crowd
        if isinstance(crowd, (list, dict)) or crowd not in CROWD:
            crowds.append(f"annotation {annotation.get('id')!r} (iscrowd {annotation['iscrowd']!r})")
            continue
        annotation["iscrowd"] = CROWD[crowd]
        usable.append(annotation)
    if crowds:
        raise ValueError(
            f"{file}: {count(crowds)} with an iscrowd that is neither 0 nor 1 (true, false and these as text are understood "
            f"too): {some(crowds)}. A crowd is not trained on: write 1 for a group of objects in one box, else 0"
        )
    warn_of(file, strays, "left out, of an image that is not listed")
    warn_of(
        file,
        malformed,
        "left out, of the evaluation too, with a bbox that is not four finite numbers [x, y, width ≥ 0, height ≥ 0]",
    )
    warn_of(
        file,
        areas,
        "with an area that no object in its box can have; width x height is taken, as where there is none",
    )
    return usable, len(strays)


def _is_area(area: object, width: float, height: float) -> bool:
    """Whether an object in a box of this size can have the area.

    A mask may cover the pixels that the box only touches, and parts of a mask that overlap may have been counted twice.
    """
    return _is_number(area) and 0 < area <= 2 * (width + 2) * (height + 2)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_box(bbox: object) -> bool:
    return isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox)) and bbox[2] >= 0 and bbox[3] >= 0


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
    warn_of(Path(file), faults, "with an id that is not an integer of its own; all get new ids, in the file's order")
    if faults or 0 in ids:
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
