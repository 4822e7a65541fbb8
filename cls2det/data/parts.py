"""A part of a split, for data that nobody has split: ``all[:80%]`` is four fifths of the pictures, ``all[80%:]`` the others.

Which pictures they are follows from their file names alone: a picture stays in its part when others are added or taken away.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from cls2det.data.columns import Arrays, Columns, Heading
from cls2det.data.fingerprint import of_boxes, of_images

WHOLE = "all"  # the split of a folder that has none


class Part(NamedTuple):
    """A split, or a part of it: ``start`` and ``stop`` are percent."""

    split: str
    start: float = 0.0
    stop: float = 100.0

    def __str__(self) -> str:
        limits = (f"{self.start:g}%" if self.start > 0 else "", f"{self.stop:g}%" if self.stop < 100 else "")
        return self.split if limits == ("", "") else f"{self.split}[{limits[0]}:{limits[1]}]"

    def overlaps(self, other: Part) -> bool:
        return self.split == other.split and max(self.start, other.start) < min(self.stop, other.stop)


def parse_part(text: str) -> Part:
    """Of ``NAME``, ``NAME[:80%]``, ``NAME[80%:]`` or ``NAME[70%:85%]``.

    Raises:
        ValueError: brackets with something else in them
    """
    name, bracket, limits = text.partition("[")
    if not bracket:
        return Part(text)
    number = r"(?:(\d+(?:\.\d+)?)%)?"
    match = re.fullmatch(f"{number}:{number}\\]", limits)
    start, stop = (float(match[1] or 0), float(match[2] or 100)) if match else (0, 0)
    if not name or not start < stop <= 100:
        raise ValueError(f"split {text!r}: a part of a split is written as 'all[:80%]', 'all[80%:]' or 'all[70%:85%]'")
    return Part(name, start, stop)


def take_part(columns: Columns, part: Part) -> Columns:
    """The images whose names fall between ``part.start`` and ``part.stop``, with their annotations."""
    percent = np.array([_percent(columns.name(place)) for place in range(len(columns))])
    arrays = _of_images(columns, np.flatnonzero((part.start <= percent) & (percent < part.stop)))
    heading = columns.heading
    summary = f"{part.start:g} to {part.stop:g} % of them by file name: {len(arrays['image_ids'])} images, {len(arrays['ids'])} boxes"
    taken = Columns(Heading(heading.classes, heading.category_ids, heading.notes, f"{heading.summary}; {summary}", {}), arrays)
    taken.heading.prints.update(images=of_images(taken), boxes=of_boxes(taken))
    return taken


def _percent(name: str) -> float:
    """Where a file name falls, from 0 to below 100, evenly."""
    digest = blake2b(name.replace("\\", "/").encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return 100 * int.from_bytes(digest, "big") / 2**48


def _of_images(columns: Columns, places: np.ndarray) -> Arrays:
    names = [columns.name(place).encode("utf-8", "surrogatepass") for place in places.tolist()]
    rows, ends = _rows(columns.ends, places)
    target_rows, target_ends = _rows(columns.target_ends, places)
    return {
        **{name: columns.arrays[name][places] for name in ("image_ids", "sizes", "whole")},
        "names": np.frombuffer(b"".join(names), np.uint8),
        "name_ends": np.cumsum([len(name) for name in names], dtype=np.int64),
        **{name: columns.arrays[name][rows] for name in ("ids", "boxes", "areas", "labels", "crowds")},
        "ends": ends,
        **{name: columns.arrays[name][target_rows] for name in ("target_boxes", "target_labels", "target_ids")},
        "target_ends": target_ends,
    }


def _rows(ends: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of these images, and where those of each end among them."""
    starts = np.concatenate([ends[:1] * 0, ends])[places]
    counts = ends[places] - starts
    new_ends = np.cumsum(counts)
    return np.repeat(starts - (new_ends - counts), counts) + np.arange(counts.sum()), new_ends
