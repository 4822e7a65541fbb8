"""What a command prints at its end: its numbers, each with its unit and, where it was measured, the split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cls2det.evaluation.anchors import DIAGNOSTICS
from cls2det.evaluation.by_class import class_table
from cls2det.evaluation.coco import COCO_COLUMNS
from cls2det.files import is_first_process

MEASURED = {
    **dict.fromkeys((*COCO_COLUMNS, "accuracy"), "%"),
    **dict.fromkeys(DIAGNOSTICS, "%, at each object's best default box"),
    "ece": "%, expected calibration error",
    "overconfidence": "%, mean confidence less accuracy",
}
UNITS = {"seconds": "s of training", "image_size": "pixels"}


def print_result(result: Mapping[str, Any], console: Console | None = None) -> None:
    """A table of the numbers in a command's result, and one of AP by class if it has that.

    ``split`` of the result names where ``MEASURED`` ones were measured. Numbers that are None, and all that is no number, are left
    out.
    """
    if not is_first_process():
        return
    console, split = console or Console(), result.get("split")
    where = f" on {split}" if split else ""
    table = Table(show_header=False)
    for name, value in result.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            unit, comma, about = MEASURED.get(name, "").partition(",")
            text = f"{unit}{where}{comma}{about}" if name in MEASURED else UNITS.get(name, "")
            table.add_row(escape(name), f"{value:.2f}" if isinstance(value, float) else str(value), escape(text))
    if table.row_count:
        console.print(table)
    if result.get("AP by class"):
        counts = result.get("objects by class", {})
        rows = [{"class": name, "objects": counts.get(name), "AP": value} for name, value in result["AP by class"].items()]
        console.print(class_table(rows, ["AP"], split or "the split"))
