"""One XML file of Pascal VOC.

Of an ``object``, ``name``, ``bndbox`` and ``difficult`` are read; parts of objects and segmentations are not.
"""

from __future__ import annotations

import math
from typing import NamedTuple
from xml.etree import ElementTree

DIFFICULT = {"": 0, "0": 0, "1": 1, "false": 0, "true": 1}


class Item(NamedTuple):
    """An object as its XML file has it; ``corners`` is None where these are not four finite numbers."""

    name: str
    corners: tuple[float, ...] | None
    difficult: int


class Page(NamedTuple):
    """What is read of an XML file; 0 for a width or height that it lacks."""

    file_name: str
    width: int
    height: int
    items: list[Item]


def read_page(path: str) -> Page | str:
    """What an XML file says, or what is wrong with it."""
    try:
        top = ElementTree.parse(path).getroot()
    except OSError as error:
        return f"{path} ({error.strerror})"
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: an encoding that is none
        return f"{path} (no whole XML: {error})"
    if top.tag != "annotation":
        return f"{path} (it holds <{top.tag}>, expected VOC's <annotation>)"
    items = []
    for number, item in enumerate(top.iterfind("object"), start=1):
        name, difficult = _text(item, "name"), _text(item, "difficult").lower()
        if not name:
            return f"{path} (object {number} has no name)"
        if difficult not in DIFFICULT:
            return f"{path} (object {number} has difficult {difficult!r}, expected 0 or 1)"
        corners = tuple(_number(_text(item, f"bndbox/{end}")) for end in ("xmin", "ymin", "xmax", "ymax"))
        items.append(Item(name, corners if all(map(math.isfinite, corners)) else None, DIFFICULT[difficult]))
    sides = [_number(_text(top, f"size/{side}")) for side in ("width", "height")]
    width, height = (int(side) if math.isfinite(side) and side >= 1 else 0 for side in sides)
    return Page(_text(top, "filename"), width, height, items)


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
