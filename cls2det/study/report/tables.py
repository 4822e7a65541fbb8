"""The report's numbers: means over seeds, paired gains, rows beside the paper's, and their forms as Markdown, CSV and on the screen.

A row is a dictionary by column. ``source`` says whose numbers they are: of the ``runs``, of the ``paper``, or their ``difference``.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from cls2det.evaluation.anchors import DIAGNOSTICS
from cls2det.evaluation.coco import COCO_COLUMNS
from cls2det.study.report.runs import RunRecord
from cls2det.study.report.tide import ERRORS, THRESHOLDS

COLUMNS = (*COCO_COLUMNS, *DIAGNOSTICS, "seconds")
ON_SCREEN = ("mAP", "AP50", "AP75", "APs", "APm", "APl", "mAR", *DIAGNOSTICS, "seconds")  # what 120 characters hold
IOU_COLUMNS = tuple(f"AP{100 * threshold:.0f}" for threshold in THRESHOLDS)
# The rows of the paper's Table 2, and ours, with the names that an arm of the method may have.
TABLE2_ROWS = {
    "baseline": ("baseline",),
    "KD": ("KD", "+ KD", "Chen", "+ Chen"),  # the paper's name for the method of Chen et al.
    "FGFI": ("FGFI", "+ FGFI"),
    "GID": ("GID", "+ GID"),
    "FKD": ("FKD", "+ FKD"),
    **{name: (name, f"+ {name}") for name in ("FGD", "PKD", "CWD", "BCKD")},
    "harmony": ("harmony", "+ harmony", "TBD", "+ TBD"),
    "regions": ("regions", "+ regions"),
    "ours": ("ours", "+ all", "+ both"),
    "ours + FKD": ("ours + FKD", "+ all + FKD", "+ both + FKD"),
}
METHOD_SIZES = ("mAP", "APs", "APm", "APl")
METHOD_COLUMNS = ("student", "method", *METHOD_SIZES, *(f"paper {column}" for column in METHOD_SIZES), "difference")
ERROR_OF = {"mAP": "mAP standard error", "gain": "standard error"}
OVER_IMAGES = "standard error over images"  # of the gain
HEADINGS = {"gain": "gain in mAP", OVER_IMAGES: "± images"}


def summarise(results: Mapping[tuple[str, int], Mapping[str, Any]], baseline: str = "baseline") -> dict[str, dict[str, Any]]:
    """Means over seeds by arm, from results by (arm, seed).

    ``gain`` is that in mAP over the baseline arm, over the seeds that both have; where they share none, the difference
    of the means. ``standard error`` is the gain's, ``mAP standard error`` that of mAP. What cannot be told is None: an
    error from one seed, a column that one seed lacks, a gain without a baseline.
    """
    by_arm: dict[str, dict[int, Mapping[str, Any]]] = {}
    for (arm, seed), result in results.items():
        by_arm.setdefault(arm, {})[seed] = result
    table: dict[str, dict[str, Any]] = {}
    for arm, rows in by_arm.items():
        base = by_arm.get(baseline, {}) if arm != baseline else {}
        row = table[arm] = {column: _mean([row.get(column) for row in rows.values()]) for column in COLUMNS}
        row["seeds"], row["paired seeds"] = sorted(rows), sorted(rows.keys() & base.keys())
        row["mAP standard error"] = standard_error([row["mAP"] for row in rows.values()])
        row["gain"], row["standard error"] = _gain(rows, base, lambda result: result["mAP"])
        levels = [_gain(rows, base, lambda result, level=level: _by_iou(result)[level]) for level in range(len(THRESHOLDS))]
        row["gain by IoU"], row["gain by IoU standard error"] = map(list, zip(*levels, strict=True))
        row["AP by IoU"] = [_mean(list(level)) for level in zip(*map(_by_iou, rows.values()), strict=True)]
    return table


def standard_error(values: Sequence[float | None]) -> float | None:
    """Of the mean; None for fewer than two values."""
    known = _complete(values)
    return None if known is None or len(known) < 2 else statistics.stdev(known) / math.sqrt(len(known))


def _mean(values: Sequence[float | None]) -> float | None:
    known = _complete(values)
    return statistics.fmean(known) if known else None


def _complete(values: Iterable[float | None]) -> list[float] | None:
    """The values; None if one of them is missing."""
    values = list(values)
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def _by_iou(result: Mapping[str, Any]) -> list[float | None]:
    return result.get("AP by IoU") or [None] * len(THRESHOLDS)


def _gain(
    rows: Mapping[int, Mapping], base: Mapping[int, Mapping], of: Callable[..., float | None]
) -> tuple[float | None, float | None]:
    """Mean difference and its standard error, by seed if possible."""
    shared = rows.keys() & base.keys()
    values = _complete(of(rows[seed]) for seed in sorted(shared or rows))
    before = _complete(of(base[seed]) for seed in sorted(shared or base))
    if not values or not before:
        return None, None
    if shared:
        differences = [value - reference for value, reference in zip(values, before, strict=True)]
        return _mean(differences), standard_error(differences)
    errors = _complete(map(standard_error, (values, before)))
    return statistics.fmean(values) - statistics.fmean(before), None if errors is None else math.hypot(*errors)


def pairing_notes(student: str, table: Mapping[str, Mapping[str, Any]], baseline: str) -> list[str]:
    """Where the gain is not that of all seeds in pairs."""
    if baseline not in table:
        return [f"{student} has no arm {baseline!r}, so no gains; the arms are {', '.join(table)}."] if len(table) > 1 else []
    notes = []
    for arm, row in table.items():
        if arm == baseline or row["paired seeds"] == row["seeds"]:
            continue
        if row["paired seeds"]:
            notes.append(
                f"{student}, {arm}: the gain is over the {len(row['paired seeds'])} of {len(row['seeds'])} seeds "
                f"that {baseline} has too."
            )
        else:
            notes.append(f"{student}, {arm}: **not paired** (no seed that {baseline} has too); the gain is that of the means.")
    return notes


def arm_rows(table: Mapping[str, Mapping[str, Any]], paper: Mapping[str, Mapping[str, Any]], comparable: bool) -> list[dict]:
    """Table 1: arms of one student, the paper's arms, and their differences if the data compare."""
    base = paper.get("baseline", {}).get("mAP")
    gains = {arm: None if arm == "baseline" else row["mAP"] - base for arm, row in paper.items()}
    paper = {arm: {**row, "gain": gains[arm]} for arm, row in paper.items()}
    return _beside(table, paper, (*COCO_COLUMNS, "gain"), comparable)


def iou_rows(table: Mapping[str, Mapping[str, Any]], paper: Mapping[str, Mapping[str, Any]], comparable: bool) -> list[dict]:
    """Table 5: AP at each IoU threshold, in the same form."""
    runs = {arm: dict(zip(IOU_COLUMNS, row["AP by IoU"], strict=True)) for arm, row in table.items()}
    return _beside(runs, paper, IOU_COLUMNS, comparable)


def _beside(runs: Mapping[str, Mapping], paper: Mapping[str, Mapping], columns: Sequence[str], comparable: bool) -> list[dict]:
    rows = [{"arm": arm, "source": "runs", **row} for arm, row in runs.items()]
    rows += [{"arm": arm, "source": "paper", **row} for arm, row in paper.items()]
    both = [arm for arm in runs if arm in paper] if comparable else []
    return rows + [
        {"arm": arm, "source": "difference", **{column: _minus(runs[arm], paper[arm], column) for column in columns}}
        for arm in both
    ]


def method_rows(
    student: str,
    table: Mapping[str, Mapping[str, Any]],
    paper: Mapping[str, Mapping[str, Any]],
    comparable: bool,
    baseline: str = "baseline",
) -> list[dict]:
    """Table 2: one row for each method that the runs or the paper have for the student, the paper's numbers at its right."""
    rows = []
    for method, names in TABLE2_ROWS.items():
        names = (baseline, *names) if method == "baseline" else names
        arm = next((table[name] for name in names if name in table), None)
        if arm is None and method not in paper:
            continue
        row = {"student": student, "method": method} | {column: arm and arm[column] for column in METHOD_SIZES}
        row |= {f"paper {column}": paper.get(method, {}).get(column) for column in METHOD_SIZES}
        row["difference"] = _minus(arm, paper[method], "mAP") if arm and method in paper and comparable else None
        rows.append(row)
    return rows


def _minus(row: Mapping, other: Mapping, column: str) -> float | None:
    value, reference = row.get(column), other.get(column)
    return None if value is None or reference is None else value - reference


def run_rows(runs: Iterable[RunRecord]) -> list[dict]:
    """One row per run, with every column."""
    rows = []
    for run in runs:
        row = {"student": run.student, "arm": run.arm, "seed": run.seed}
        row |= {column: run.result.get(column) for column in COLUMNS}
        row |= dict(zip(IOU_COLUMNS, _by_iou(run.result), strict=True))
        row |= {name: run.result.get(name) for name in ("images", "steps", "parameters")}
        rows.append(row | {"folder": str(run.folder)})
    return rows


def error_rows(errors: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict]:
    """One row per arm and IoU threshold, from gains by arm and kind of error."""
    return [
        {"arm": arm, "IoU": round(float(threshold), 2)} | {name: values[level] for name, values in gains.items()}
        for arm, gains in errors.items()
        for level, threshold in enumerate(THRESHOLDS)
    ]


def best_arm(table: Mapping[str, Mapping[str, Any]]) -> str:
    """The arm with the highest mAP."""
    return max(table, key=lambda arm: -1.0 if table[arm]["mAP"] is None else table[arm]["mAP"])


def known_columns(table: Mapping[str, Mapping[str, Any]], *columns: str) -> list[str]:
    """Those of the columns that an arm has a value in."""
    return [name for name in columns if any(row.get(name) is not None for row in table.values())]


def cell(row: Mapping[str, Any], column: str) -> str:
    """A value as it is read: with its sign where it is a difference, with its standard error where there is one."""
    value, error = row.get(column), row.get(ERROR_OF.get(column, ""))
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return str(len(value))
    if value is None:
        return "" if column in ("gain", OVER_IMAGES) else "-"
    if column in ("seconds", "objects"):
        return f"{value:.0f}"
    signed = column in ("gain", "difference") or row.get("source") == "difference"
    if column == OVER_IMAGES:
        return f"{value:.2f}"
    text = f"{value:+.2f}" if column == "gain" else f"{value:+.1f}" if signed else f"{value:.1f}"
    return text + (f" ± {error:.2f}" if error is not None else "")


def markdown_table(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], text_columns: int = 1, bold: str = ""
) -> list[str]:
    """Lines; the row whose first column is ``bold`` has its first column and its mAP in bold."""
    lines = [
        "| " + " | ".join(HEADINGS.get(column, column) for column in columns) + " |",
        "|" + "---|" * text_columns + "---:|" * (len(columns) - text_columns),
    ]
    for row in rows:
        strong = bold and row[columns[0]] == bold
        cells = [
            f"**{cell(row, column)}**" if strong and column in (columns[0], "mAP") else cell(row, column) for column in columns
        ]
        lines.append("| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |")
    return lines


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Full precision; an empty field where there is no value. Of a list, its length."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: len(value) if isinstance(value, list) else value for name, value in row.items()})


def print_table(title: str, table: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """The arms on the screen, the best in bold."""
    shown = Table(title=escape(title), box=SIMPLE_HEAD)
    shown.add_column("arm", no_wrap=True)
    columns = known_columns(table, *ON_SCREEN, "gain", OVER_IMAGES)
    for column in columns:
        shown.add_column(HEADINGS.get(column, column), justify="right", no_wrap=True)
    for arm, row in table.items():
        shown.add_row(
            escape(arm), *(escape(cell(row, column)) for column in columns), style="bold" if arm == best_arm(table) else None
        )
    print_whole(shown, console)


def print_whole(table: Table, console: Console) -> None:
    """Cut numbers cannot be read: on a narrow screen lines are broken instead."""
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    (console if console.width >= needed else Console(file=console.file, width=needed)).print(table)


def error_tables(errors: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Markdown: every kind of error at IoU 0.5, then classification and localisation errors at each threshold."""
    first = [{"arm": arm} | {name: gains[name][0] for name in ERRORS} for arm, gains in errors.items()]
    lines = ["At IoU 0.50:", "", *markdown_table(first, ("arm", *ERRORS))]
    levels = [f"{threshold:.2f}" for threshold in THRESHOLDS]
    rows = [
        {"arm": arm, "error": kind} | dict(zip(levels, gains[kind], strict=True))
        for kind in ("classification", "localisation")
        for arm, gains in errors.items()
    ]
    return [*lines, "", "By IoU threshold:", "", *markdown_table(rows, ("arm", "error", *levels), text_columns=2)]
