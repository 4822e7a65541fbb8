"""The image files of a split, looked at before anything is trained: which are not there, cannot be images, or lie otherwise."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from cls2det.data.images import SIDES_SWAPPED, read_header
from cls2det.data.many import side_by_side

EXAMINED = 1000  # headers that are read, spread over the split: all of a small one
TINY = 1024  # bytes; a smaller file may be a pointer of Git LFS, whose content is read
POINTER = b"version https://git-lfs.github.com/spec/"


class Listed(NamedTuple):
    """An image in the annotations."""

    image_id: int
    name: str
    width: int
    height: int


class Headers(NamedTuple):
    """What the headers of some images say.

    Attributes:
        examined: how many were read
        faults: what is wrong with an image, so that it cannot be used
        turned: names of those whose annotations mean the picture as its EXIF orientation turns it
        undecided: names of those with an orientation that the size in the annotations does not settle
    """

    examined: int
    faults: list[str]
    turned: list[str]
    undecided: list[str]


def find_missing(folder: Path, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of no file, and those of what cannot be an image, with the reason: a folder, a broken link, an empty file."""
    answers = list(side_by_side(lambda name: _fault(os.path.join(folder, name)), names))
    missing = [name for name, fault in zip(names, answers, strict=True) if fault == MISSING]
    unusable = [
        f"{folder / name} ({fault})" for name, fault in zip(names, answers, strict=True) if fault not in (None, MISSING)
    ]
    return missing, unusable


MISSING = "not there"


def _fault(path: str) -> str | None:
    try:
        state = os.stat(path)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the system's encoding of file names, {error.encoding}, has no {path[error.start : error.end]!r}, as in {path!r}; "
            "set PYTHONUTF8=1 or a UTF-8 locale (LC_ALL=C.UTF-8)"
        ) from None
    except (OSError, ValueError):  # ValueError: a name with a null character
        return f"a broken link to {os.readlink(path)}" if os.path.islink(path) else MISSING
    if stat.S_ISDIR(state.st_mode):
        return "a folder"
    if not state.st_size and stat.S_ISREG(state.st_mode):
        return "an empty file"
    if state.st_size < TINY and stat.S_ISREG(state.st_mode):
        try:
            with open(path, "rb") as file:
                return "a pointer of Git LFS: run git lfs pull" if file.read(len(POINTER)) == POINTER else None
        except OSError as error:
            return error.strerror or str(error)
    return None if os.access(path, os.R_OK) else "no permission to read it"


def read_headers(folder: Path, listed: Callable[[int], Listed], count: int, max_pixels: int | None) -> Headers:
    """Compare some images' headers, spread evenly over all, with the sizes in the annotations.

    Args:
        folder: of the files
        listed: an image by its number
        count: of images
        max_pixels: as of ``read_image``
    """
    some = [listed(number) for number in range(0, count, max(1, -(-count // EXAMINED)))]
    result = Headers(len(some), [], [], [])
    for image, header in zip(some, side_by_side(lambda image: _header(folder / image.name, max_pixels), some), strict=True):
        if isinstance(header, str):
            result.faults.append(f"image {image.image_id}: {header}")
            continue
        width, height, orientation = header
        if orientation in SIDES_SWAPPED and (image.width, image.height) == (height, width) != (width, height):
            result.turned.append(image.name)
        elif (image.width, image.height) != (width, height):
            result.faults.append(other_size(image, folder, width, height))
        elif orientation != 1 and (orientation not in SIDES_SWAPPED or width == height):
            result.undecided.append(image.name)
    return result


def _header(path: Path, max_pixels: int | None) -> tuple[int, int, int] | str:
    try:
        return read_header(path, max_pixels)
    except ValueError as error:
        return str(error)


def other_size(image: Listed, folder: Path, width: int, height: int) -> str:
    """Of an image that has another size than the annotations say."""
    hint = "; are width and height swapped there?" if (image.width, image.height) == (height, width) else ""
    return (
        f"image {image.image_id} is {image.width} x {image.height} pixels there, "
        f"but {folder / image.name} is {width} x {height}{hint}"
    )


def hint(folder: Path, name: str) -> str:
    """Why a file may not be found, and what is there instead; "" where nothing is known."""
    forms: list[tuple[str, Callable[[str], str]]] = [
        ("in other Unicode form", lambda text: unicodedata.normalize("NFC", text)),
        ("in other letter case", lambda text: unicodedata.normalize("NFC", text).casefold()),
        ("with another suffix", lambda text: os.path.splitext(text)[0]),
        ("with another suffix", lambda text: os.path.splitext(unicodedata.normalize("NFC", text).casefold())[0]),
    ]
    if "://" in name:
        return "file_name is an address; load the file down and write its name"
    for text, changed in (
        ("the name is written as in an address", unquote(name)),
        ("there are blanks around the name", name.strip()),
    ):
        if changed != name and (folder / changed).is_file():
            return f"{text}; {changed} is there"
    plain = name.replace("\\", "/")
    for start in range(1, plain.count("/") + 1):
        rest = "/".join(plain.split("/")[start:])
        if rest and (folder / rest).is_file():
            return f"file_name is relative to {folder}, and {rest} is there: leave out {plain.removesuffix(rest)}"
    for text, form in forms:
        if other := _alike(folder, plain, form):
            return f"{other} is there, {text}"
    return ""


def _alike(folder: Path, name: str, form: Callable[[str], str]) -> str | None:
    """A file whose folders and name equal ``name`` in a form."""
    spelling = Path()
    for part in name.split("/"):
        place = folder / spelling
        if not (place / part).exists():
            entries = os.listdir(place) if place.is_dir() else []
            part = next((entry for entry in sorted(entries) if form(entry) == form(part)), "")
            if not part:
                return None
        spelling /= part
    return spelling.as_posix() if (folder / spelling).is_file() else None


def with_slashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Of names with backslashes, as Windows writes them, those that are there with slashes."""
    changed = {name: name.replace("\\", "/") for name in names if "\\" in name}
    return {name: slashed for name, slashed in changed.items() if (folder / slashed).is_file()}


def picture_size(path: str) -> tuple[int, int, int] | str:
    """Width, height and EXIF orientation of a picture, or why it cannot be read."""
    return _header(Path(path), None)
