"""How faults in data are told: one warning per kind, with a count and a few examples."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cls2det.errors import some


def warn_of(file: Path, faults: Sequence[str], fate: str, noun: str = "annotation") -> None:
    """One warning for all ``faults`` of a kind; none if there is no fault."""
    if faults:
        warnings.warn(f"{file}: {count(faults, noun)} {fate}: {some(faults)}", stacklevel=2)


def count(faults: Sequence[str], noun: str = "annotation") -> str:
    """3 annotations."""
    return f"{len(faults)} {noun}" if len(faults) == 1 else f"{len(faults)} {noun}s"


def describe(annotation: dict[str, Any]) -> str:
    """An annotation by its place, or its id and image, and its box."""
    bbox = f"bbox {annotation['bbox']}" if "bbox" in annotation else "no bbox"
    bbox += ", but a segmentation" if "bbox" not in annotation and annotation.get("segmentation") else ""
    place = annotation.get("place") or f"annotation {annotation.get('id')!r} of image {annotation['image_id']}"
    return f"{place} ({bbox})"
