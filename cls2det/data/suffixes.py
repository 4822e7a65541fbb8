"""Which files of a folder are pictures, by the ends of their names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from PIL import Image

ALSO = (".mpo", ".qoi")  # that Pillow opens too, without saying that they are pictures
# Of pictures too: phones' and cameras' own formats, and what a Pillow may lack.
OTHER = {".avif", ".avifs", ".exr", ".heic", ".heics", ".heif", ".hif", ".jp2", ".jxl", ".svg", ".webp"} | {
    *(".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".kdc", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw")
}


@cache
def readable_suffixes() -> frozenset[str]:
    """In small letters, with the dot: of the formats that Pillow opens and calls pictures; not of PDF, video and the like."""
    formats = Image.registered_extensions()
    pictures = {
        suffix for suffix, name in formats.items() if name in Image.OPEN and Image.MIME.get(name, "").startswith("image/")
    }
    return frozenset(pictures.union(ALSO))


def is_readable(file: str | Path) -> bool:
    """Whether the name is that of a picture that can be read."""
    return _suffix(file) in readable_suffixes()


def is_unreadable(file: str | Path) -> bool:
    """Whether the name is that of a picture in a format that cannot be read here."""
    suffix = _suffix(file)
    return suffix in OTHER and suffix not in readable_suffixes()


def _suffix(file: str | Path) -> str:
    return os.path.splitext(file)[1].lower()  # without a Path: there may be millions of files


def describe_unreadable(files: Iterable[str | Path]) -> str:
    """A sentence about files for which ``is_unreadable`` holds; "" for none."""
    counts = Counter(_suffix(file) for file in files)
    if not counts:
        return ""
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
    noun = "picture" if counts.total() == 1 else "pictures"
    return f"{counts.total()} {noun} of kinds that cannot be read here ({kinds}): convert to JPEG or PNG"
