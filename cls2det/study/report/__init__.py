"""``cls2det report``: the paper's tables, plots, error analysis and pictures, for runs that were evaluated.

Reads what ``cls2det train``, ``distill`` and ``evaluate`` left in folders; trains and evaluates nothing. Under ``out``:

    report.md                 everything below, to be read
    report.json               the same as data
    runs.csv                  a row per run, every column
    arms.csv                  the paper's Table 1: arms, mean over seeds, beside the paper's numbers with the difference
    methods.csv               its Table 2: students and methods
    iou.csv                   its Table 5: AP at IoU 0.50 to 0.95
    classes.csv               AP by class
    errors.csv                classification, localisation and other errors at these thresholds (``tide.py``)
    gain, ap-by-iou, ap-by-size, errors, training, detections .png     with the student's name in front if there are several
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from cls2det.data.dataset import DetectionData
from cls2det.data.layouts import load_truth
from cls2det.evaluation.by_class import class_table
from cls2det.files import make_folder, write_json
from cls2det.study.options import ReportOptions
from cls2det.study.report import pages, plots, tables
from cls2det.study.report.classes import class_rows
from cls2det.study.report.gallery import draw_detections
from cls2det.study.report.paper import why_not_comparable
from cls2det.study.report.resampling import draw_images, error_over_images, resampled_map
from cls2det.study.report.runs import RunRecord, by_arm, find_runs, read_json
from cls2det.study.report.tables import summarise
from cls2det.study.report.tide import ERRORS, error_gains, match

ON_SCREEN = 8  # classes, of which half are the worst

__all__ = ["report", "summarise"]


def report(options: ReportOptions, console: Console | None = None) -> dict[str, Any]:
    """Compare the runs under the folders; write every file and print the table.

    Args:
        options: which runs, and what the report says of them
        console: where the table is printed

    Returns:
        what report.json holds: ``students`` (by name: ``table`` by arm, see ``summarise``, and ``errors``), ``runs``,
        ``notes``, ``left out`` and the options

    Raises:
        ValueError: no run was found, or two runs are the same seed of the same arm
    """
    if not options.runs:
        raise ValueError("give at least one folder to look for runs in")
    split, baseline, quick, title = options.split, options.baseline, options.quick, options.title
    console = console or Console()
    out = options.out or options.runs[0] / "report"
    if (out / "options.json").is_file():
        raise ValueError(f"{out} holds a run, whose report.json this report would replace; give another --out")
    runs, run_notes = find_runs(options.runs, split)
    make_folder(out)
    left_out: list[str] = []
    root = runs[0].data_root
    truth = _attempt("comparison with the paper, error analysis", left_out, load_truth, root, split)
    why_not = why_not_comparable(truth, split)
    data = _attempt("pictures of detections", left_out, DetectionData, root, split)

    students: dict[str, dict[str, Any]] = {}
    text: list[str] = []
    names = list(dict.fromkeys(run.student for run in runs))
    for student in names:
        runs_of_student = [run for run in runs if run.student == student]
        table = summarise({(run.arm, run.seed): run.result for run in runs_of_student}, baseline)
        with console.status(f"errors and plots of {student}"):
            errors: dict[str, dict[str, list[float]]] = {}
            if truth is not None:
                errors, errors_over_images = _by_image(truth, runs_of_student, split, baseline, left_out)
                for arm, error in errors_over_images.items():
                    table[arm][tables.OVER_IMAGES] = error
            prefix = f"{student}-" if len(names) > 1 else ""
            figures = _draw(options, out, prefix, left_out, table=table, runs=runs_of_student, errors=errors, data=data)
        students[student] = {"table": table, "errors": errors}
        rows = class_rows(runs_of_student)
        run_notes += tables.pairing_notes(student, table, baseline)
        text += pages.student_page(student, table, errors, figures, why_not, rows, split)
        heading = f"{title}: {student}" if prefix else title
        tables.print_table(f"{heading} (percent on {split}, seconds of training)", table, console)
        if rows:
            arms = list(dict.fromkeys((next(arm for arm in table), tables.best_arm(table))))
            tables.print_whole(class_table(rows, arms, split, ON_SCREEN), console)

    over_images = any(tables.known_columns(content["table"], tables.OVER_IMAGES) for content in students.values())
    notes = [*([pages.QUICK] if quick else []), pages.about(runs, split, over_images), *options.notes, *run_notes]
    notes += [f"Left out: {part}." for part in left_out]
    methods = pages.write_csv_files(out, runs, students, comparable=not why_not, baseline=baseline)
    if len(methods) > 1:
        text += pages.methods_page(methods, why_not, split)
    header = [f"# {title}", "", *(f"- {note}" for note in notes), ""]
    (out / "report.md").write_text("\n".join([*header, *text, f"Reported on {pages.machine()}.", ""]), encoding="utf-8")
    content = {
        "title": title,
        "split": split,
        "data_root": str(root),
        "baseline": baseline,
        "quick": quick,
        "notes": notes,
        "left out": left_out,
        "machine": pages.machine(),
        "students": students,
        "runs": [
            {"student": run.student, "arm": run.arm, "seed": run.seed, "folder": str(run.folder), **run.result} for run in runs
        ],
    }
    write_json(out / "report.json", content)
    for note in notes:
        plain = "- " + note.replace("**", "").replace("`", "")
        console.print(plain, style="dim", highlight=False, markup=False, soft_wrap=not console.is_terminal)
    files = f"[dim]{escape(str(out))}/report.md, report.json, tables as .csv, plots as .png[/]"
    console.print(files, soft_wrap=not console.is_terminal)
    return content


def _attempt(part: str, left_out: list[str], function: Callable, *arguments) -> Any:
    """What the function returns; where it cannot read what it needs, None, and a line about it in ``left_out``."""
    try:
        return function(*arguments)
    except (OSError, ValueError, RuntimeError) as error:  # torchvision's decoders raise RuntimeError
        left_out.append(f"{part} ({error})")
        return None


def _by_image(
    truth: Any, runs: Sequence[RunRecord], split: str, baseline: str, left_out: list[str]
) -> tuple[dict[str, dict[str, list[float]]], dict[str, float | None]]:
    """Of the runs that have detections, by arm: gains by kind of error, mean over seeds, and the gain's error over images."""
    errors: dict[str, dict[str, list[float]]] = {}
    draws: dict[str, dict[int, np.ndarray]] = {}
    counts = draw_images(len(truth.imgs))
    for arm, group in by_arm(runs).items():
        gains, draws[arm] = [], {}
        for run in group:
            part, file = f"errors of {run.student}, {run.arm}, seed {run.seed}", run.folder / split / "detections.json"
            result = _attempt(part, left_out, _of_detections, truth, file, counts)
            if result is not None:
                gains.append(result[0])
                draws[arm][run.seed] = result[1]
        if gains:
            errors[arm] = {
                name: [fmean(level) for level in zip(*(gain[name] for gain in gains), strict=True)] for name in ("AP", *ERRORS)
            }
    base = draws.get(baseline, {})
    over_images = {
        arm: error_over_images([(of_seed[seed], base[seed]) for seed in of_seed if seed in base])
        for arm, of_seed in draws.items()
        if arm != baseline
    }
    return errors, over_images


def _of_detections(truth: Any, file: Path, counts: np.ndarray) -> tuple[dict[str, list[float]], np.ndarray]:
    """``error_gains`` and ``resampled_map`` of one run."""
    matches = match(truth, read_json(file))
    return error_gains(matches), resampled_map(matches, counts)


def _draw(
    options: ReportOptions,
    out: Path,
    prefix: str,
    left_out: list[str],
    *,
    table: Mapping[str, Mapping[str, Any]],
    runs: Sequence[RunRecord],
    errors: Mapping[str, Mapping[str, list[float]]],
    data: DetectionData | None,
) -> list[str]:
    """Draw what can be drawn of one student; returns the names of the files."""
    quick = options.quick
    plots_by_name: dict[str, tuple] = {
        "gain": (plots.draw_gain, table, runs, options.baseline, quick),
        "ap-by-iou": (plots.draw_by_iou, table, quick),
        "ap-by-size": (plots.draw_by_size, table, runs, quick),
        "training": (plots.draw_training, runs, quick),
    }
    for name in (*plots_by_name, "errors", "detections"):
        (out / f"{prefix}{name}.png").unlink(missing_ok=True)  # an earlier report may have had what this one lacks
    if errors:
        plots_by_name["errors"] = (plots.draw_errors, errors, list(table), quick)
    if data is not None:
        files = _detection_files(table, runs, options.split, options.baseline)
        plots_by_name["detections"] = (draw_detections, data, files)
    drawn = []
    for name, (function, *arguments) in plots_by_name.items():
        file = f"{prefix}{name}.png"
        before = len(left_out)
        _attempt(file, left_out, function, *arguments, out / file)
        drawn += [file] if len(left_out) == before else []
    return drawn


def _detection_files(table: Mapping, runs: Sequence[RunRecord], split: str, baseline: str) -> dict[str, Path]:
    """detections.json of the baseline and of the best other arm, of the first seed that each has."""
    others = {arm: row for arm, row in table.items() if arm != baseline}
    arms = [baseline] * (baseline in table) + ([tables.best_arm(others)] if others else [])
    groups = by_arm(runs)
    return {arm: min(groups[arm], key=lambda run: run.seed).folder / split / "detections.json" for arm in arms}
