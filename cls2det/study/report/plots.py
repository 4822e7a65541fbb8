"""The report's plots. Each function draws one file from tables by arm; arms keep their colour over all of them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cls2det.evaluation.fonts import use_fonts_for_texts
from cls2det.study.report.runs import RunRecord, by_arm
from cls2det.study.report.tide import THRESHOLDS

NOT_CURVES = ("epoch", "step")


def pyplot():
    """matplotlib without a window."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_gain(
    table: Mapping[str, Mapping[str, Any]], runs: Sequence[RunRecord], baseline: str, quick: bool, path: Path
) -> None:
    """Left: mAP, AP50 and AP75 by arm, a dot per seed. Right: gain over the baseline by IoU threshold, ± standard error."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(3, 2), layout="constrained")
    _bars(left, table, runs, ("mAP", "AP50", "AP75"))
    for arm, colour in _colours(table).items():
        gains = table[arm]["gain by IoU"]
        if arm != baseline and None not in gains:
            errors = table[arm]["gain by IoU standard error"]
            right.errorbar(
                THRESHOLDS,
                gains,
                None if None in errors else errors,
                fmt="o-",
                color=colour,
                markersize=3.5,
                elinewidth=0.8,
                label=arm,
            )
    right.axhline(0, color="grey", linewidth=0.8)
    right.set(xlabel="IoU threshold", ylabel=f"gain in AP over {baseline}")
    _finish(figure, (left, right), quick, path)


def draw_by_iou(table: Mapping[str, Mapping[str, Any]], quick: bool, path: Path) -> None:
    """AP at each IoU threshold by arm."""
    figure, axes = pyplot().subplots(figsize=(6, 4), layout="constrained")
    for arm, colour in _colours(table).items():
        axes.plot(THRESHOLDS, _numbers(table[arm]["AP by IoU"]), "o-", color=colour, markersize=3.5, label=arm)
    axes.set(xlabel="IoU threshold", ylabel="AP, percent")
    axes.set_ylim(bottom=0)
    _finish(figure, (axes,), quick, path)


def draw_by_size(table: Mapping[str, Mapping[str, Any]], runs: Sequence[RunRecord], quick: bool, path: Path) -> None:
    """AP of small, medium and large objects by arm, a dot per seed; sizes that the data lack are left out."""
    figure, axes = pyplot().subplots(figsize=(7, 4), layout="constrained")
    sizes = [size for size in ("APs", "APm", "APl") if any(row[size] is not None for row in table.values())]
    _bars(axes, table, runs, sizes)
    _finish(figure, (axes,), quick, path)


def draw_errors(errors: Mapping[str, Mapping[str, Sequence[float]]], arms: Sequence[str], quick: bool, path: Path) -> None:
    """Classification and localisation error against the IoU threshold by arm."""
    figure, panels = pyplot().subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, kind in zip(panels, ("classification", "localisation"), strict=True):
        for arm, colour in _colours(arms).items():
            if arm in errors:
                axes.plot(THRESHOLDS, errors[arm][kind], "o-", color=colour, markersize=3.5, label=arm)
        axes.set(xlabel="IoU threshold", ylabel=f"{kind} error: AP gained if mended")
        axes.set_ylim(bottom=0)
    _finish(figure, panels, quick, path)


def draw_training(runs: Sequence[RunRecord], quick: bool, path: Path) -> None:
    """Every loss term and val/mAP against the step; a line per run, in its arm's colour.

    Raises FileNotFoundError if no run has log/metrics.csv.
    """
    curves = {run.folder: read_curves(run.folder / "log" / "metrics.csv") for run in runs}
    names = list(dict.fromkeys(name for curve in curves.values() for name in curve))
    if not names:
        raise FileNotFoundError("no run has a log/metrics.csv with curves")
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, grid = pyplot().subplots(rows, columns, figsize=(4 * columns, 2.8 * rows), squeeze=False, layout="constrained")
    colours = _colours(by_arm(runs))
    for axes, name in zip(grid.flat, names, strict=False):
        labelled = set()
        for run in runs:
            if name in curves[run.folder]:
                label = None if run.arm in labelled else run.arm
                axes.plot(*curves[run.folder][name], color=colours[run.arm], linewidth=0.9, alpha=0.8, label=label)
                labelled.add(run.arm)
        axes.set(title=name, xlabel="step")
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    _finish(figure, grid.flat[: len(names)], quick, path)


def read_curves(file: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values by name, from Lightning's CSV log: losses and other plain names, and val/mAP. Empty without a file."""
    if not file.is_file():
        return {}
    curves: dict[str, tuple[list[float], list[float]]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            for name, text in row.items():
                is_curve = name == "val/mAP" or (name and "/" not in name and not name.startswith("lr-"))
                if text and is_curve and name not in NOT_CURVES:
                    steps, values = curves.setdefault(name, ([], []))
                    steps.append(float(row["step"]))
                    values.append(float(text))
    first = [name for name in ("loss", "val/mAP") if name in curves]
    return {name: curves[name] for name in (*first, *sorted(curves.keys() - set(first)))}


def _bars(axes, table: Mapping[str, Mapping[str, Any]], runs: Sequence[RunRecord], columns: Sequence[str]) -> None:
    width = 0.8 / len(table)
    groups = by_arm(runs)
    for number, (arm, colour) in enumerate(_colours(table).items()):
        places = [place + (number - (len(table) - 1) / 2) * width for place in range(len(columns))]
        values = _numbers(table[arm][column] for column in columns)
        bars = axes.bar(places, values, width * 0.92, color=colour, label=arm, alpha=0.85)
        if len(table) <= 6:
            axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=4)
        for run in groups[arm]:
            dots = _numbers(run.result.get(column) for column in columns)
            axes.plot(places, dots, "o", color="black", markersize=2.5, alpha=0.6)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_ylabel("percent")
    highest = max((row[column] or 0.0 for row in table.values() for column in columns), default=0.0)
    axes.set_ylim(0, 1.18 * max(highest, 1.0))


def _numbers(values) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _colours(arms) -> dict[str, Any]:
    arms = list(arms)
    if len(arms) <= 10:
        return {arm: f"C{number}" for number, arm in enumerate(arms)}
    colours = pyplot().get_cmap("viridis")
    return {arm: colours(number / (len(arms) - 1)) for number, arm in enumerate(arms)}


def _finish(figure, panels, quick: bool, path: Path) -> None:
    """Legend, once; a plain look; the warning of a quick run; the file."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = max((axes.get_legend_handles_labels() for axes in panels), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=min(6, max(1, len(labels))), loc="outside lower center")
    if quick:
        figure.suptitle("quick run: too short to show the gain", fontsize=10, color="firebrick")
    use_fonts_for_texts(figure)
    figure.savefig(path, dpi=150)
    pyplot().close(figure)
