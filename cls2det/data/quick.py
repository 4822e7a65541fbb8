"""Large annotation files by msgspec, a part at a time: what is not needed, outlines above all, becomes no Python object.

Whatever is not as it should be goes through the checks of ``coco.py``: an annotation, a part, or the whole file.
"""

from __future__ import annotations

import codecs
import json
import mmap
from collections.abc import Container, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cls2det.data.arrange import Listing, image_arrays, image_arrays_of, shared, split_ids
from cls2det.data.coco import Faults, areas_fit, check_categories, check_images, is_usable, tell_of_faults
from cls2det.data.columns import Arrays
from cls2det.data.faults import describe
from cls2det.data.json_parts import PART, Strange, parts_of
from cls2det.data.targets import CLASSES_FROM, Table, clipped, has_area


def read_quickly(file: Path) -> Listing | None:
    """None without msgspec, and where the file is not plain JSON in UTF-8 with three lists of objects.

    Raises:
        ValueError: as ``check_content``
    """
    try:
        import msgspec
    except ImportError:
        return None
    try:
        return _read(file)
    except (Strange, OverflowError, RecursionError, UnicodeDecodeError, msgspec.MsgspecError):
        return None


def _read(file: Path) -> Listing:
    import msgspec

    try:
        with file.open("rb") as handle:
            content = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # of an empty file, or a disk that cannot map
        raise Strange from None
    _check_text(content)
    names = ("images", "annotations", "categories")
    lists: Any = msgspec.json.decode(content, type=msgspec.defstruct("Lists", [(name, msgspec.Raw) for name in names]))
    categories = json.loads(bytes(lists.categories))
    if not isinstance(categories, list) or not all(isinstance(category, dict) for category in categories):
        raise Strange
    check_categories(categories, file)
    images, shared_names = _images(memoryview(lists.images), file)
    pairs = sorted((category["id"], category["name"]) for category in categories)
    return _annotations(memoryview(lists.annotations), file, pairs, images, shared_names)


def _check_text(content: mmap.mmap) -> None:
    """UnicodeDecodeError where it is not UTF-8: msgspec does not look into what it skips."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")  # as json
    for start in range(0, len(content), PART):
        decoder.decode(content[start : start + PART])
    decoder.decode(b"", final=True)


def _images(raw: memoryview, file: Path) -> tuple[Arrays, list[str]]:
    """Arrays in order of id, and the names that stand there twice."""
    number = int | float
    ids: list[int] = []
    names: list[str] = []
    sides: list[float] = []
    whole: list[bool] = []
    for part in parts_of(raw, {"id": int, "file_name": str, "width": number, "height": number}):
        if isinstance(part[0], dict):
            break
        ids += [image.id for image in part]
        names += [image.file_name for image in part]
        pairs = list(chain.from_iterable((image.width, image.height) for image in part))
        sides += pairs
        whole += [type(side) is int for side in pairs]
    else:
        table, sizes = np.array(ids, dtype=np.int64), np.array(sides, dtype=np.float64).reshape(-1, 2)
        is_plain = all(names) and (sizes >= 1).all() and np.isfinite(sizes).all() and (table > -(2**63)).all()
        if is_plain and len(np.unique(table)) == len(table):
            return image_arrays(table, names, sizes, np.array(whole, dtype=bool).reshape(-1, 2)), shared(names)
    images = json.loads(bytes(raw))
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise Strange
    check_images(images, file)
    return image_arrays_of(images), shared([image["file_name"] for image in images])


class _Rows(NamedTuple):
    """Usable annotations of a part, or of all; see ``Listing``."""

    table: Table
    areas: np.ndarray
    ids: np.ndarray
    odd_ids: dict[int, Any]
    described: dict[int, str]


class _Ids(Container[int]):
    """Ids in ascending order."""

    def __init__(self, ordered: np.ndarray):
        self.ordered = ordered

    def __contains__(self, value: object) -> bool:
        return value in self._values

    @cached_property
    def _values(self) -> set[int]:
        return set(self.ordered.tolist())

    def places(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where they stand, and whether they do."""
        places = np.searchsorted(self.ordered, values)
        inside = places < len(self.ordered)
        places[~inside] = 0
        return places, inside & (self.ordered[places] == values if len(self.ordered) else False)


class _Listed(NamedTuple):
    """What an annotation may refer to."""

    images: _Ids
    sizes: np.ndarray
    categories: _Ids
    file: Path


def _annotations(
    raw: memoryview, file: Path, categories: list[tuple[int, str]], images: Arrays, shared_names: list[str]
) -> Listing:
    faults = Faults([], [], [], [])
    category_ids = _Ids(np.array([number for number, _ in categories], dtype=np.int64))
    listed = _Listed(_Ids(images["image_ids"]), images["sizes"], category_ids, file)
    number = int | float
    fields = {"image_id": int, "category_id": int, "bbox": tuple[number, number, number, number]}
    optional = {"id": int, "area": number, "iscrowd": int}
    rows = [
        _rows_of_dicts(part, listed, faults) if isinstance(part[0], dict) else _rows(part, listed, faults)
        for part in parts_of(raw, fields, optional)
    ]
    tell_of_faults(faults, file)
    whole = _joined([_rows_of_dicts([], listed, faults), *rows])
    describe_row = whole.described.__getitem__
    return Listing(categories, images, *whole[:4], describe_row, shared_names, len(faults.strays), None)


def _joined(parts: list[_Rows]) -> _Rows:
    starts = np.cumsum([0, *(len(part.ids) for part in parts)]).tolist()
    odd = {start + row: value for start, part in zip(starts, parts, strict=False) for row, value in part.odd_ids.items()}
    described = {start + row: text for start, part in zip(starts, parts, strict=False) for row, text in part.described.items()}
    table = Table(*(np.concatenate(columns) for columns in zip(*(part.table for part in parts), strict=True)))
    areas, ids = (np.concatenate([getattr(part, name) for part in parts]) for name in ("areas", "ids"))
    return _Rows(table, areas, ids, odd, described)


def _rows(part: Sequence[Any], listed: _Listed, faults: Faults) -> _Rows:
    """Of parsed annotations. Those that are not plain are judged one by one."""
    count = len(part)
    image_ids = np.array([one.image_id for one in part], dtype=np.int64)
    categories = np.array([one.category_id for one in part], dtype=np.int64)
    boxes = np.fromiter(chain.from_iterable(one.bbox for one in part), np.float64, 4 * count).reshape(count, 4)
    areas = np.array([one.area for one in part], dtype=np.float64)  # None becomes NaN
    crowds = np.array([0 if one.iscrowd is None else one.iscrowd for one in part], dtype=np.int64)
    owners, has_image = listed.images.places(image_ids)
    places, has_category = listed.categories.places(categories)
    product = boxes[:, 2] * boxes[:, 3]
    without = np.array([one.area is None for one in part], dtype=bool)
    areas[without] = product[without]
    plain = has_image & has_category & np.isfinite(boxes).all(1) & (boxes[:, 2:] >= 0).all(1) & ((crowds == 0) | (crowds == 1))
    plain &= without | areas_fit(areas, boxes[:, 2], boxes[:, 3])
    usable = plain.copy()
    for row in np.flatnonzero(~plain).tolist():
        annotation = _as_dict(part[row])
        if is_usable(annotation, listed.images, listed.categories, listed.file, faults):
            usable[row] = True
            areas[row], crowds[row] = annotation["area"], annotation["iscrowd"]
    kept = np.flatnonzero(usable)
    labels = (places[kept] + CLASSES_FROM).astype(np.int32)
    table = _table(boxes[kept], labels, owners[kept], crowds[kept].astype(bool), listed)
    ids, odd_ids = split_ids([part[row].id for row in kept.tolist()])
    described = {row: describe(_as_dict(part[kept[row]])) for row in _outside(table)}
    return _Rows(table, areas[kept], ids, odd_ids, described)


def _rows_of_dicts(part: Sequence[dict[str, Any]], listed: _Listed, faults: Faults) -> _Rows:
    """The same of annotations among which one could not be parsed as it should be."""
    usable = [one for one in part if is_usable(one, listed.images, listed.categories, listed.file, faults)]
    ids, odd_ids = split_ids([one.get("id") for one in usable])
    labels, _ = listed.categories.places(np.array([int(one["category_id"]) for one in usable], dtype=np.int64))
    owners, _ = listed.images.places(np.array([int(one["image_id"]) for one in usable], dtype=np.int64))
    table = _table(
        np.array([one["bbox"] for one in usable], dtype=np.float64).reshape(-1, 4),
        (labels + CLASSES_FROM).astype(np.int32),
        owners,
        np.array([one["iscrowd"] for one in usable], dtype=bool),
        listed,
    )
    areas = np.array([one["area"] for one in usable], dtype=np.float64)
    return _Rows(table, areas, ids, odd_ids, {row: describe(usable[row]) for row in _outside(table)})


def _table(boxes: np.ndarray, labels: np.ndarray, owners: np.ndarray, crowds: np.ndarray, listed: _Listed) -> Table:
    sizes = listed.sizes[owners]
    return Table(boxes, labels, owners, sizes, crowds, clipped(boxes, sizes))


def _as_dict(annotation: Any) -> dict[str, Any]:
    names = ("id", "image_id", "category_id", "area", "iscrowd")
    return {name: getattr(annotation, name) for name in names} | {"bbox": list(annotation.bbox)}


def _outside(table: Table) -> list[int]:
    """The objects that have no area in their image."""
    return np.flatnonzero(~has_area(table.inside) & ~table.crowds).tolist()
