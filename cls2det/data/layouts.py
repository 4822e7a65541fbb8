"""Opens a split in whichever layout its folder has: COCO's, Pascal VOC's or YOLO's. All become ``Columns``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from cls2det.data.arrange import arrange, listing_of
from cls2det.data.cache import read_columns
from cls2det.data.columns import Columns
from cls2det.data.faults import tell_all
from cls2det.data.parts import Part, parse_part, take_part
from cls2det.data.truth import as_coco
from cls2det.data.voc import find_voc, read_voc, voc_splits
from cls2det.data.yolo import read_yolo
from cls2det.data.yolo_place import find_yolo, yolo_splits

if TYPE_CHECKING:
    from pycocotools.coco import COCO

ARCHIVED = "_annotations.coco.json"  # of exported archives, in the folder of each split
CONFIG_SUFFIXES = (".yaml", ".yml")  # of YOLO's data.yaml, which may stand in place of its folder


class Split(NamedTuple):
    """A split as it was read.

    Attributes:
        columns: the annotations, whatever the layout
        file: the annotation file, list or folder that messages name
        folder: that the file names are relative to
        unreadable: why a picture cannot be read, by image id, where that is known already
    """

    columns: Columns
    file: Path
    folder: Path
    unreadable: Mapping[int, str] = MappingProxyType({})


def read_split(root: str | Path, split: str) -> Split:
    """The annotations of a split, or of a part of one as ``parts.py`` has it.

    ``root/annotations/instances_<split>.json`` and ``root/<split>/_annotations.coco.json`` are COCO's; see ``voc`` and ``yolo`` for
    the others.

    Raises:
        FileNotFoundError: there is no such folder, or no such split in it; the message names those that there are
        NotADirectoryError: ``root`` is a file, or the folder of one split
        ValueError: the annotations cannot be read, or the split is there in two layouts
    """
    part = parse_part(split)
    whole = _read_whole(root, part.split)
    return whole if part == Part(part.split) else whole._replace(columns=take_part(whole.columns, part))


def _read_whole(root: str | Path, split: str) -> Split:
    root, config = Path(root), None
    if root.suffix in CONFIG_SUFFIXES and root.is_file():
        root, config = root.parent, root
    beside = root / split / ARCHIVED
    for file in (root / "annotations" / f"instances_{split}.json", beside):
        if file.is_file() and not config:
            return Split(read_columns(file), file, root / split)
    voc = None if config else find_voc(root, split)
    yolo = find_yolo(root, split, config)
    if voc and yolo:
        raise ValueError(
            f"{root}: {split} is there twice, with XML files as of VOC and with labels as of YOLO; put one of them away"
        )
    if voc:
        return _split(read_voc(root, voc), voc.file, voc.pictures)
    if yolo:
        return _split(read_yolo(root, yolo), yolo.file, root)
    _check_folder(root)
    file, splits = root / "annotations" / f"instances_{split}.json", list_splits(root, config)
    there_are = f"there are {', '.join(splits)}" if splits else "VOC's and YOLO's folders are understood too"
    if nested := _nested(root, split):
        there_are = f"{nested} has a split {split}: is that the folder of the data?"
    elif len(splits) == 1:
        there_are = f"there is {splits[0]} alone, which can be taken in parts: '{splits[0]}[:80%]' and '{splits[0]}[80%:]'"
    try:
        return Split(read_columns(file), file, root / split)
    except FileNotFoundError as error:
        text = f"no split {split} in {config or root}" if splits and not file.parent.is_dir() else error
        raise FileNotFoundError(f"{text}; {there_are}") from None


def _split(content: dict[str, Any], file: Path, folder: Path) -> Split:
    return Split(arrange(listing_of(content), file, []), file, folder, content.get("unreadable", {}))


def _check_folder(root: Path) -> None:
    """FileNotFoundError or NotADirectoryError if ``root`` is no folder, or one split's, and not that of the data."""
    if not root.exists():
        raise FileNotFoundError(f"no folder of data at {root}")
    place = root if root.is_dir() else root.parent
    if (place / ARCHIVED).is_file():
        place, what = place.resolve().parent, f"{place.resolve().name} is one split"
    elif root.is_file() and place.name == "annotations":
        place, what = place.resolve().parent, f"{root} is a file"
    elif root.is_file():
        what = f"{root} is a file"
    else:
        return
    raise NotADirectoryError(f"{what}; expected the folder of the data, perhaps {place}")


def _nested(root: Path, split: str) -> Path | None:
    """A folder in ``root`` that holds the split, as VOCdevkit holds VOC2012."""
    with contextlib.suppress(OSError, ValueError):  # for a hint; what cannot be read gives none
        return next((folder for folder in sorted(root.iterdir()) if folder.is_dir() and split in list_splits(folder)), None)
    return None


def list_splits(root: Path, config: Path | None = None) -> list[str]:
    """Names of the splits in a folder, or in what a data.yaml describes."""
    if config is None and root.suffix in CONFIG_SUFFIXES and root.is_file():
        root, config = root.parent, root
    names = [file.stem.removeprefix("instances_") for file in sorted((root / "annotations").glob("instances_*.json"))]
    names += [file.parent.name for file in sorted(root.glob(f"*/{ARCHIVED}"))]
    return list(dict.fromkeys([*names, *voc_splits(root), *yolo_splits(root, config)]))


def read_classes(root: str | Path, split: str) -> tuple[list[str], Path]:
    """Names of a split's classes in order of label, and the file or folder that names them."""
    columns, file, *_ = read_split(root, split)
    return columns.heading.classes, file


def load_truth(root: str | Path, split: str) -> COCO:
    """``pycocotools.coco.COCO`` of a split, checked. See ``DetectionData``."""
    columns, file, *_ = read_split(root, split)
    tell_all(file, columns.heading.notes["ids"])
    return as_coco(columns)
