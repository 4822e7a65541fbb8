"""AP by class as it is read: all classes, or the worst and the best where they are many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

AT_ONCE = 12  # classes that a table shows; of more, half of them from either end
Row = Mapping[str, Any]  # "class", "objects", and AP in percent by name: of one model, or of several arms


def worst_and_best(rows: Sequence[Row], column: str, most: int = AT_ONCE) -> list[Row]:
    """All rows in their order or, of more than ``most``, half from either end by AP, the worst first."""
    if len(rows) <= most:
        return list(rows)
    ranked = sorted((row for row in rows if row[column] is not None), key=lambda row: row[column])
    if not ranked:  # of an evaluation that had no AP by class
        return list(rows[:most])
    return ranked if len(ranked) <= most else ranked[: most // 2] + ranked[-(most // 2) :]


def classes_heading(rows: Sequence[Row], shown: Sequence[Row], split: str) -> str:
    """What a table of some of the rows shows."""
    text, half = f"AP by class, percent on {split}", len(shown) // 2
    absent = sum(row["objects"] == 0 for row in rows)
    if len(shown) < len(rows) - absent:
        text += f": the {len(shown) - half} worst and {half} best of {len(rows)} classes"
    return f"{text} ({absent} without an object)" if absent else text


def class_table(rows: Sequence[Row], arms: Sequence[str], split: str, most: int = AT_ONCE) -> Table:
    """For the screen; the first of ``arms`` is what the others are compared with, the last is what classes are ranked by."""
    shown = worst_and_best(rows, arms[-1], most)
    heading = classes_heading(rows, shown, split)
    table = Table(title=escape(heading), box=SIMPLE_HEAD, min_width=min(len(heading) + 2, 78))
    table.add_column("class")
    for name in ("objects", *arms, *(["gain"] if len(arms) > 1 else [])):
        table.add_column(escape(name), justify="right", no_wrap=True)
    for row in shown:
        values = [row[arm] for arm in arms]
        cells = ["-" if value is None else f"{value:.1f}" for value in values]
        if len(arms) > 1:
            cells.append("-" if None in (values[0], values[-1]) else f"{values[-1] - values[0]:+.1f}")
        table.add_row(escape(row["class"]), "-" if row["objects"] is None else str(row["objects"]), *cells)
    return table
