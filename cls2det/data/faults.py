"""How faults in data are told: one warning per kind, with a count and a few examples."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from cls2det.errors import some

_notes: ContextVar[list[str] | None] = ContextVar("notes", default=None)


def tell(file: Path, text: str) -> None:
    """Warn of what is doubtful in a file, or keep the text where ``kept_notes`` is open."""
    notes = _notes.get()
    if notes is None:
        warnings.warn(f"{file}: {text}", stacklevel=3)
    else:
        notes.append(text)


@contextlib.contextmanager
def kept_notes(file: Path) -> Iterator[list[str]]:
    """What is told within is no warning yet, but kept in the list: a cache gives it again whenever it is read.

    Where an error ends it, warnings come before the error.
    """
    notes: list[str] = []
    token = _notes.set(notes)
    try:
        yield notes
    except BaseException:
        _notes.reset(token)
        tell_all(file, notes)
        raise
    _notes.reset(token)


def tell_all(file: Path, notes: Iterable[str]) -> None:
    """Give the notes that were kept."""
    for text in notes:
        tell(file, text)


def warn_of(file: Path, faults: Sequence[str], fate: str, noun: str = "annotation") -> None:
    """One warning for all ``faults`` of a kind; none if there is no fault."""
    if faults:
        tell(file, f"{count(faults, noun)} {fate}: {some(faults)}")


def count(faults: Sequence[str], noun: str = "annotation") -> str:
    """3 annotations."""
    return f"{len(faults)} {noun}" if len(faults) == 1 else f"{len(faults)} {noun}s"


def describe(annotation: dict[str, Any]) -> str:
    """An annotation by its place, or its id and image, and its box."""
    bbox = f"bbox {annotation['bbox']}" if "bbox" in annotation else "no bbox"
    bbox += ", but a segmentation" if "bbox" not in annotation and annotation.get("segmentation") else ""
    place = annotation.get("place") or f"annotation {annotation.get('id')!r} of image {annotation['image_id']}"
    return f"{place} ({bbox})"
