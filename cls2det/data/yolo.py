"""Reading YOLO's layout: a text file of labels per picture, and a list of classes.

    root/data.yaml                                     ``names``, and the folder or list of pictures of each split
    root/train/images/*, root/train/labels/*.txt       or images/train/* and labels/train/*.txt

Without a data.yaml, ``classes.txt`` has a class per line, and a split is ``<split>/images``, ``images/<split>``, or a folder
``<split>`` with pictures and labels side by side.

A line of labels is ``class x y width height``, with x and y of the box's centre, as shares of the picture's size; or ``class x1 y1
x2 y2 x3 y3 ...``, a polygon, of which the bounding box is taken. A picture without a label file has no objects. Shares need the
sizes of all pictures: their headers are read, once per process. As the trainers of this layout turn pictures by their EXIF
orientation, shares are those of the turned picture.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cls2det.data.coco import check_content
from cls2det.data.faults import count, warn_of
from cls2det.data.images import SIDES_SWAPPED
from cls2det.data.many import read_once
from cls2det.data.pictures import picture_size
from cls2det.data.yolo_place import Place, label_folder, list_pictures
from cls2det.errors import some

ROUNDING = 1e-3  # of shares
SURELY = 2.0  # a number this far from the shares 0 to 1 is a number of pixels
UNKNOWN = 1000  # side in pixels of a picture that cannot be read; no box of it is ever used

Row = tuple[int, tuple[float, ...]]  # number of the line, and its numbers


def read_yolo(root: Path, place: Place) -> dict[str, Any]:
    """The split's content in COCO's form, checked by ``check_content``.

    File names are relative to ``root``. Images and annotations are numbered from 1 in order of file names; a category's id is
    YOLO's number of the class. ``unreadable`` has, by image id, why a picture's size is not known.

    Raises:
        ValueError: no picture, or no label file at all; a line that is neither a box nor a polygon; a class that is not listed;
            numbers that are no shares
    """
    pictures = sorted(set(list_pictures(place)))
    if not pictures:
        raise ValueError(f"{place.file}: no picture in {', '.join(map(str, place.sources))}")
    folders = {folder: label_folder(Path(folder)) for folder in {os.path.dirname(picture) for picture in pictures}}
    labels = [
        os.path.join(folders[os.path.dirname(picture)], f"{os.path.splitext(os.path.basename(picture))[0]}.txt")
        for picture in pictures
    ]
    _check_label_files(place, pictures, labels, {str(folder) for folder in folders.values()})
    sizes, pages = read_once(picture_size, pictures), read_once(read_rows, labels)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    unreadable, problems = {}, _Problems([], [], [], [], [])
    for number, (picture, path, rows, size) in enumerate(zip(pictures, labels, pages, sizes, strict=True), start=1):
        if isinstance(size, str):
            unreadable[number] = size
            size = (UNKNOWN, UNKNOWN, 1)
        width, height = size[1::-1] if size[2] in SIDES_SWAPPED else size[:2]
        name = Path(os.path.relpath(picture, root)).as_posix()
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        if isinstance(rows, str):
            problems.lines.append(rows)
            continue
        for line, numbers in rows:
            where = f"{os.path.relpath(path, root)}, line {line}"
            if (box := _box(numbers, where, place, problems)) is not None:
                left, top, right, bottom = box[0] * width, box[1] * height, box[2] * width, box[3] * height
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": int(numbers[0]),
                        "bbox": [left, top, right - left, bottom - top],
                        "place": where,
                    }
                )
    _tell(place, problems)
    categories = [{"id": number, "name": name} for number, name in place.classes.items()]
    content = {"images": images, "annotations": annotations, "categories": categories, "unreadable": unreadable}
    return check_content(content, place.file)


def read_rows(path: str) -> list[Row] | str:
    """The lines of a label file, none if there is no file; or what is wrong with it."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return []
    except OSError as error:
        return f"{path} ({error.strerror})"
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        return f"{path} (no text)"
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if words := line.split():
            try:
                rows.append((number, tuple(map(float, words))))
            except ValueError:
                return f"{path}, line {number} ({line.strip()[:60]!r}: not all are numbers)"
    return rows


class _Problems(NamedTuple):
    lines: list[str]  # no box and no polygon
    unlisted: list[str]
    pixels: list[str]
    malformed: list[str]
    outside: list[str]


def _box(numbers: Sequence[float], where: str, place: Place, problems: _Problems) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom as shares; None where it is one of ``problems`` that leaves no box."""
    label, values = numbers[0], numbers[1:5] if place.keypoints else numbers[1:]
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        problems.lines.append(f"{where} ({len(numbers)} numbers)")
    elif not (math.isfinite(label) and int(label) == label and int(label) in place.classes):
        problems.unlisted.append(f"{where} (class {label:g})")
    elif not all(map(math.isfinite, values)) or (len(values) == 4 and min(values[2:]) < 0):
        problems.malformed.append(f"{where} ({' '.join(f'{value:g}' for value in values[:6])})")
    elif max(values) >= SURELY or min(values) <= 1 - SURELY:
        problems.pixels.append(f"{where} ({' '.join(f'{value:g}' for value in values[:6])})")
    else:
        if len(values) == 4:
            x, y, width, height = values
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        else:
            box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
        if max(values) > 1 + ROUNDING or min(values) < -ROUNDING:
            problems.outside.append(f"{where} ({' '.join(f'{value:g}' for value in values[:6])})")
            left, top, right, bottom = (min(max(value, 0.0), 1.0) for value in box)
            return left, top, right, bottom
        return box
    return None


def _tell(place: Place, problems: _Problems) -> None:
    if problems.lines:
        raise ValueError(
            f"{place.file}: {count(problems.lines, 'label line')} that cannot be read: {some(problems.lines)}. Expected class, x, y, "
            "width, height as five numbers, or a class and three or more points"
        )
    if problems.unlisted:
        listed = ", ".join(f"{number} {name}" for number, name in list(place.classes.items())[:3])
        raise ValueError(
            f"{place.file}: {count(problems.unlisted, 'label line')} of a class that is not listed: {some(problems.unlisted)}; "
            f"there are {len(place.classes)} ({listed}{', …' if len(place.classes) > 3 else ''})"
        )
    if problems.pixels:
        raise ValueError(
            f"{place.file}: {count(problems.pixels, 'label line')} with numbers that are no shares of the picture's size (0 to 1): "
            f"{some(problems.pixels)}. If they are pixels, divide x and width by the picture's width, y and height by its height"
        )
    fate = "left out, of the evaluation too, with numbers that are not finite, or a negative size"
    warn_of(place.file, problems.malformed, fate, "label line")
    fate = "with shares outside of 0 to 1; the part of the box that lies in the picture is taken"
    warn_of(place.file, problems.outside, fate, "label line")


def _check_label_files(place: Place, pictures: list[str], labels: list[str], folders: set[str]) -> None:
    """A picture without a label file has no objects. None with one, or label files without a picture, is a fault."""
    present = {
        os.path.join(folder, name)
        for folder in folders
        if os.path.isdir(folder)
        for name in os.listdir(folder)
        if name.endswith(".txt") and name not in ("classes.txt", "notes.txt")
    }
    without = [picture for picture, label in zip(pictures, labels, strict=True) if label not in present]
    if len(without) == len(pictures):
        raise ValueError(
            f"{place.file}: none of {len(pictures)} pictures has a label file; expected {labels[0]} for {pictures[0]}, and so on"
        )
    if 2 * len(without) > len(pictures):
        fate = "without a label file; they count as pictures without objects"
        warn_of(place.file, without, fate, "picture")
    if all(source.is_dir() for source in place.sources):  # of a list, the other label files belong to other splits
        strays = sorted(present - set(labels))
        warn_of(place.file, strays, "left out, without a picture", "label file")
