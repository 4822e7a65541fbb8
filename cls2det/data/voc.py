"""Reading Pascal VOC: an XML file per picture, as the VOC challenge and many tools write it.

    root/Annotations/*.xml, root/JPEGImages/*, root/ImageSets/Main/<split>.txt       the challenge's own layout
    root/<split>/*.xml beside the pictures                                           as many tools export it
    root/*.xml beside the pictures, or root/Annotations/*.xml without lists          not split: its split is "all"

In the second, a split's folder may also hold ``Annotations`` and ``JPEGImages`` (or ``annotations`` and ``images``).

Corners are pixels, counted from 1, and both lie in the box: 1 to 10 is ten pixels wide and begins at 0 in COCO's count. Tools that
count from 0 give themselves away by corners of 0. An object that is ``difficult`` becomes a crowd: it is not trained on, and in
evaluation neither finding nor missing it counts, as in VOC's own ("The PASCAL Visual Object Classes Challenge 2007", development
kit)."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from cls2det.data.coco import check_content
from cls2det.data.faults import count, warn_of
from cls2det.data.many import read_once
from cls2det.data.parts import WHOLE
from cls2det.data.pictures import picture_size
from cls2det.data.suffixes import is_readable
from cls2det.data.voc_page import Page, read_page
from cls2det.errors import some
from cls2det.files import is_first_process

LISTS = ("ImageSets/Main", "ImageSets")
XML_FOLDERS = ("Annotations", "annotations", "annotations/xmls", "xmls", "labels", ".")
PICTURE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", ".")
CLASS_FILES = ("classes.txt", "labels.txt", "labelmap.txt")
FROM_0 = 0.001  # share of boxes with a corner at 0 above which pixels are counted from 0, and not a slip in some file

_told: set[Path] = set()  # roots whose way of counting was logged


class Place(NamedTuple):
    """Where a split is.

    Attributes:
        file: what messages name: the list of its pictures, or the folder of its XML files
        xmls: folder of the XML files
        pictures: folder of the pictures
    """

    file: Path
    xmls: Path
    pictures: Path


def find_voc(root: Path, split: str) -> Place | None:
    """Where the split is, if ``root`` holds it as VOC."""
    lists = [root / folder / f"{split}.txt" for folder in LISTS]
    file = next((file for file in lists if file.is_file()), None)
    base = root if file or (split == WHOLE and is_unsplit(root)) else root / split
    xmls = _xml_folder(base)
    if xmls is None or not (file or base == root or _is_split(base)):
        return None
    pictures = next(folder for name in PICTURE_FOLDERS if (folder := base / name).is_dir())
    return Place(file or xmls, xmls, pictures)


def voc_splits(root: Path) -> list[str]:
    """Names of the splits that are there."""
    lists = [file.stem for folder in LISTS for file in sorted((root / folder).glob("*.txt"))]
    folders = [] if _xml_folder(root) and lists else [folder.name for folder in _folders(root) if _is_split(folder)]
    # ImageSets/Main also has a list for each class and split, as cat_train.txt
    splits = [name for name in lists if not any(name.endswith(f"_{other}") for other in lists)] or folders
    return splits or ([WHOLE] if is_unsplit(root) else [])


def is_unsplit(root: Path) -> bool:
    """Whether there are XML files, and neither lists nor folders of splits."""
    lists = any(file for folder in LISTS for file in (root / folder).glob("*.txt"))
    return _xml_folder(root) is not None and not lists and not any(_is_split(folder) for folder in _folders(root))


def read_voc(root: Path, place: Place) -> dict[str, Any]:
    """The split's content in COCO's form, checked by ``check_content``.

    Images and annotations are numbered from 1 in order of file names. Classes are the lines of ``classes.txt``, ``labels.txt`` or
    ``labelmap.txt`` in the root or, without such a file, all names in the XML files of all splits in alphabetical order.

    Raises:
        ValueError: XML that cannot be read; an object without a name; a class that is not listed; a ``difficult`` that is neither
            0 nor 1
        FileNotFoundError: a listed picture has no XML file
    """
    stems = _listed_stems(place) if place.file.is_file() else _stems_of(place)
    paths = [os.path.join(place.xmls, f"{stem}.xml") for stem in stems]
    pages = read_once(read_page, paths)
    if faults := [page for page in pages if isinstance(page, str)]:
        raise ValueError(
            f"{place.file}: {count(faults, 'annotation file')} that cannot be used: {some(faults)}. Mend them, or take them and "
            "their pictures out of the split"
        )
    every = [page for page in read_once(read_page, _all_xmls(root, place)) if not isinstance(page, str)]
    classes = _classes(root, every)
    labels = {name: number for number, name in reversed(list(enumerate(classes, start=1)))}
    first = 0 if _counts_from_0(every) else 1
    if first == 0 and root not in _told and is_first_process():
        _told.add(root)
        logging.getLogger(__name__).info(
            f"{root}: some boxes begin at 0, so pixels are counted from 0 and not from 1 as in VOC"
        )
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    malformed, unlisted = [], []
    by_stem = _pictures(place.pictures)
    for number, (stem, path, page) in enumerate(zip(stems, paths, pages, strict=True), start=1):
        assert isinstance(page, Page)
        images.append({"id": number, "file_name": _picture(place.pictures, stem, page, by_stem)})
        images[-1] |= {"width": page.width, "height": page.height}
        for position, item in enumerate(page.items, start=1):
            where = f"{os.path.basename(path)}, object {position}"
            if item.name not in labels:
                unlisted.append(f"{where} ({item.name!r})")
                continue
            if item.corners is None or not (item.corners[0] <= item.corners[2] and item.corners[1] <= item.corners[3]):
                malformed.append(f"{where} ({item.corners or 'no bndbox of numbers'})")
                continue
            x, y, right, bottom = item.corners
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": labels[item.name],
                    "bbox": [x - first, y - first, right - x + first, bottom - y + first],
                    "iscrowd": item.difficult,
                    "place": where,
                }
            )
    if unlisted:
        file = next(root / name for name in CLASS_FILES if (root / name).is_file())
        raise ValueError(f"{place.file}: {count(unlisted, 'object')} of a class that {file} does not list: {some(unlisted)}")
    fate = "left out, of the evaluation too, with a bndbox that is not four finite numbers xmin ≤ xmax, ymin ≤ ymax"
    warn_of(place.file, malformed, fate, "object")
    _measure(place, images)
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories, "ignored": "difficult objects"}
    return check_content(content, place.file)


def _xml_folder(base: Path) -> Path | None:
    """The first folder that holds XML files."""
    for name in XML_FOLDERS:
        if (base / name).is_dir() and any(name.endswith(".xml") for name in os.listdir(base / name)):
            return base / name
    return None


def has_xmls(folder: Path) -> bool:
    """Whether XML files are in the folder, or in one below that is named for them."""
    return _xml_folder(folder) is not None


def _is_split(folder: Path) -> bool:
    """A folder with lists of its own is a whole data set."""
    return has_xmls(folder) and folder.name not in XML_FOLDERS and not (folder / "ImageSets").is_dir()


def _folders(root: Path) -> list[Path]:
    return sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []


def _listed_stems(place: Place) -> list[str]:
    """Of a split's list, in alphabetical order; every one has an XML file."""
    lines = place.file.read_text(encoding="utf-8-sig").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    present = set(os.listdir(place.xmls))  # some lists name the pictures, with suffix; and a.jpg.jpg has the stem a.jpg
    stems = [os.path.splitext(name)[0] if is_readable(name) and f"{name}.xml" not in present else name for name in names]
    if missing := [stem for stem in stems if f"{stem}.xml" not in present]:
        raise FileNotFoundError(
            f"{place.file} lists {len(missing)} of {len(stems)} pictures without an annotation file: "
            f"{some([str(place.xmls / f'{stem}.xml') for stem in missing])}"
        )
    if not stems:
        raise ValueError(f"{place.file} lists no picture; expected a name per line, without suffix")
    if twice := len(stems) - len(set(stems)):
        warnings.warn(f"{place.file} lists {count([''] * twice, 'picture')} twice; each is taken once", stacklevel=2)
    return sorted(set(stems))


def _stems_of(place: Place) -> list[str]:
    """Of the XML files in a split's folder. Pictures without one are left out: nobody looked at them."""
    stems = sorted(name.removesuffix(".xml") for name in os.listdir(place.xmls) if name.endswith(".xml"))
    without = sorted(_pictures(place.pictures).keys() - set(stems))
    warn_of(
        place.file, without, "left out, without an annotation file; one without objects has a file without <object>", "picture"
    )
    return stems


def _pictures(folder: Path) -> dict[str, list[str]]:
    """Names of the pictures in a folder, by stem."""
    by_stem: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        if is_readable(name):
            by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
    return by_stem


def _picture(folder: Path, stem: str, page: Page, by_stem: dict[str, list[str]]) -> str:
    """The picture with the XML file's own name; else that which it names, as files are often renamed after they were annotated."""
    names = by_stem.get(stem, [])
    if names:
        return page.file_name if page.file_name in names else names[0]
    return page.file_name if page.file_name and (folder / page.file_name).is_file() else f"{stem}.jpg"


def _all_xmls(root: Path, place: Place) -> list[str]:
    """Of all splits."""
    folders: Iterable[Path] = [place.xmls]
    if not place.file.is_file():
        folders = [folder for base in _folders(root) if (folder := _xml_folder(base))] or folders
    return [str(folder / name) for folder in folders for name in sorted(os.listdir(folder)) if name.endswith(".xml")]


def _classes(root: Path, pages: Iterable[Page]) -> list[str]:
    file = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
    if file is None:
        return sorted({item.name for page in pages for item in page.items})
    lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    names = [line.removesuffix(":::") if line.endswith("::") else line for line in lines if line and not line.startswith("#")]
    # CVAT writes a line "name:colour:parts:actions" for each class, and one for the background
    names = [name.split(":")[0] if name.count(":") == 3 or file.name == "labelmap.txt" else name for name in names]
    return [name for name in names if (name, file.name) != ("background", "labelmap.txt")]


def _counts_from_0(pages: Iterable[Page]) -> bool:
    corners = [item.corners for page in pages for item in page.items if item.corners]
    return sum(min(corner[:2]) < 1 for corner in corners) > FROM_0 * len(corners)


def _measure(place: Place, images: list[dict[str, Any]]) -> None:
    """Take the size of a picture from itself where its XML file has none."""
    unknown = [image for image in images if not (image["width"] and image["height"])]
    headers = read_once(picture_size, [str(place.pictures / image["file_name"]) for image in unknown])
    for image, header in zip(unknown, headers, strict=True):
        # one that cannot be read stops the command later, with its reason
        image["width"], image["height"] = (1, 1) if isinstance(header, str) else header[:2]
    names = [image["file_name"] for image in unknown]
    warn_of(place.file, names, "without <size> in its annotation file; the size of the picture as stored is taken", "picture")
