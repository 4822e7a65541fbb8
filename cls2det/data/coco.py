"""Reading COCO-format annotations as people write them.

Faults whose meaning is clear are mended, or left out with a warning. Others are errors, which name the file, the annotation or
image, and the reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from cls2det.data.faults import count, describe, tell, warn_of
from cls2det.errors import some

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
    check_categories(content["categories"], file)
    check_images(content["images"], file)
    usable, strays = _usable(content, file)
    return {**content, "annotations": usable, "strays": strays}


def check_categories(categories: list[dict[str, Any]], file: Path) -> None:
    """ValueError where one cannot be used; of two of one name the second gets another."""
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
            tell(
                file,
                f"categories {names[name]} and {category['id']} are both named {name!r}; "
                f"the second is called {category['name']!r} here",
            )
        names.setdefault(name, category["id"])


def check_images(images: list[dict[str, Any]], file: Path) -> None:
    """ValueError where one has no id of its own, no name or no size."""
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


class Faults(NamedTuple):
    """Of annotations, by kind, in the file's order."""

    strays: list[str]
    malformed: list[str]
    crowds: list[str]
    areas: list[str]


def _usable(content: dict[str, Any], file: Path) -> tuple[list[dict[str, Any]], int]:
    """The annotations for which ``is_usable`` holds, and the number of those of images that are not listed."""
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    faults = Faults([], [], [], [])
    usable = [one for one in content["annotations"] if is_usable(one, images, categories, file, faults)]
    tell_of_faults(faults, file)
    return usable, len(faults.strays)


def is_usable(
    annotation: dict[str, Any], images: Container[int], categories: Container[int], file: Path, faults: Faults
) -> bool:
    """Whether it is four finite numbers as box, in a listed image; the fields that ``COCOeval`` reads are filled in.

    Args:
        annotation: it is changed
        images: ids of those that are listed
        categories: the same
        file: for messages
        faults: what is wrong is added to it, also what is mended

    Raises:
        ValueError: a category that is not listed
    """
    image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
    if not _is_number(image_id) or image_id not in images:
        faults.strays.append(f"annotation {annotation.get('id')!r} (image {image_id!r})")
        return False
    if not _is_number(category_id) or category_id not in categories:
        raise ValueError(
            f"{file}: annotation {annotation.get('id')!r} of image {image_id} has category {category_id!r}, which is not listed"
        )
    if not _is_box(annotation.get("bbox")):
        faults.malformed.append(describe(annotation))
        return False
    _, _, width, height = annotation["bbox"]
    area, crowd = annotation.get("area"), annotation.get("iscrowd")
    if not _is_area(area, width, height):
        if area is not None and (area != 0 or width * height):
            faults.areas.append(f"annotation {annotation.get('id')!r} (area {area!r}, bbox {annotation['bbox']})")
        annotation["area"] = width * height
    crowd = crowd.lower() if isinstance(crowd, str) else crowd
    if isinstance(crowd, (list, dict)) or crowd not in CROWD:
        faults.crowds.append(f"annotation {annotation.get('id')!r} (iscrowd {annotation['iscrowd']!r})")
        return False
    annotation["iscrowd"] = CROWD[crowd]
    return True


def tell_of_faults(faults: Faults, file: Path) -> None:
    """Warnings, a kind each; ValueError where a crowd is neither one nor none."""
    if faults.crowds:
        raise ValueError(
            f"{file}: {count(faults.crowds)} with an iscrowd that is neither 0 nor 1 (true, false and these as text are "
            f"understood too): {some(faults.crowds)}. A crowd is not trained on: write 1 for a group of objects in one box, else 0"
        )
    warn_of(file, faults.strays, "left out, of an image that is not listed")
    warn_of(
        file,
        faults.malformed,
        "left out, of the evaluation too, with a bbox that is not four finite numbers [x, y, width ≥ 0, height ≥ 0]",
    )
    warn_of(
        file,
        faults.areas,
        "with an area that no object in its box can have; width x height is taken, as where there is none",
    )


def _is_area(area: object, width: float, height: float) -> bool:
    """Whether an object in a box of this size can have the area.

    A mask may cover the pixels that the box only touches, and parts of a mask that overlap may have been counted twice.
    """
    return _is_number(area) and bool(areas_fit(area, width, height))


def areas_fit(area: Any, width: Any, height: Any) -> Any:
    """``_is_area`` of numbers, or of arrays."""
    return (area > 0) & (area <= 2 * (width + 2) * (height + 2))


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_box(bbox: object) -> bool:
    return isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox)) and bbox[2] >= 0 and bbox[3] >= 0
