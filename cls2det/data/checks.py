"""What a split's annotations hold, in one line, and what in them is doubtful: told before anything is trained."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cls2det.data.conventions import suspect_convention
from cls2det.data.faults import tell, warn_of
from cls2det.data.targets import Table
from cls2det.files import is_first_process

if TYPE_CHECKING:
    from cls2det.data.arrange import Listing

FEW = 10  # boxes that are too few for a verdict on a split
DUPLICATES = 0.01  # share of boxes from which on exact duplicates are a fault; large hand-made data has a few

_told: set[str] = set()  # summaries of this process, as a command may open a split more than once


def doubts(listing: Listing, file: Path) -> str:
    """Tell what is doubtful in all annotations together; the summary is returned."""
    table = listing.table
    boxes = Table(*(column[~table.crowds] for column in table)) if table.crowds.any() else table
    if text := suspect_convention(boxes.boxes, boxes.sizes):
        tell(file, text)
    crowds = int(table.crowds.sum())
    if len(table.crowds) >= FEW and 2 * crowds > len(table.crowds):
        about = f"{listing.ignored or 'crowds (iscrowd 1)'}, which are not trained on"
        if not listing.ignored:
            about += ". A crowd is a group of objects in one box; single objects have iscrowd 0"
        tell(file, f"{crowds} of {len(table.crowds)} annotations are {about}")
    copies = _copies(boxes)
    if len(boxes.boxes) >= FEW and len(copies) > DUPLICATES * len(boxes.boxes):
        rows = np.flatnonzero(~table.crowds)[copies].tolist()
        numbers = [f"annotation {listing.odd_ids.get(row, int(listing.ids[row]))!r}" for row in rows]
        warn_of(file, numbers, "with image, category and bbox of an earlier one; an object that stands twice counts twice")
    fate = "of more than one image; each is trained and evaluated with its own annotations alone, and the others are missing there"
    warn_of(file, listing.shared_names, fate, "file name")
    return _summary(listing, boxes)


def log_once(summary: str) -> None:
    """What a split holds, once per process."""
    if summary not in _told and is_first_process():
        _told.add(summary)
        logging.getLogger(__name__).info(summary)


def _copies(boxes: Table) -> np.ndarray:
    """Rows that equal an earlier one in image, label and box."""
    factors = np.random.default_rng(0).integers(1, 2**63, 6, dtype=np.uint64) | np.uint64(1)
    sums = np.zeros(len(boxes.boxes), dtype=np.uint64)
    for factor, column in zip(factors, (*boxes.boxes.T, boxes.owners, boxes.labels), strict=True):
        mixed = (column + 0.0).view(np.uint64) * factor  # + 0.0: of -0.0 and 0.0 the bits differ
        sums += mixed ^ (mixed >> np.uint64(29))
    _, first = np.unique(sums, return_index=True)
    return np.setdiff1d(np.arange(len(sums)), first, assume_unique=True)


def _summary(listing: Listing, boxes: Table) -> str:
    sides = boxes.inside[:, 2:] - boxes.inside[:, :2]
    over = (boxes.boxes[:, :2] < 0) | (boxes.boxes.reshape(-1, 2, 2).sum(1) > boxes.sizes + 0.5)  # less is rounding
    labelled = len(np.unique(boxes.owners))
    parts = {
        listing.ignored or "crowds": int(listing.table.crowds.sum()),
        "annotations of images that are not listed": listing.strays,
        "tiny boxes (a side below 1 pixel)": int((sides < 1).any(1).sum()),
        "boxes clipped at the border": int(over.any(1).sum()),
    }
    return (
        f"{len(listing.images['image_ids'])} images ({labelled} with objects), {len(boxes.boxes)} boxes, "
        f"{len(listing.categories)} classes; {', '.join(f'{kind}: {number}' for kind, number in parts.items())}"
    )
