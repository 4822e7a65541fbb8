"""``cls2det report``: the paper's tables, plots, error analysis and pictures, for the runs at hand.

Reads what ``cls2det train``, ``distill`` and ``evaluate`` left in folders; trains and evaluates nothing. Under ``out``:

    report.md                 everything below, to be read
    report.json               the same as data
    runs.csv                  a row per run, every column
    arms.csv                  the paper's Table 1: arms, mean over seeds, beside the paper's numbers with the difference
    methods.csv               its Table 2: students and methods
    iou.csv                   its Table 5: AP at IoU 0.50 to 0.95
    errors.csv                classification, localisation and other errors at these thresholds (``errors.py``)
    gain, ap-by-iou, ap-by-size, errors, training, detections .png     with the student's name in front if there are several
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from cls2det.data.coco import load_coco
from cls2det.data.dataset import DetectionData
from cls2det.files import write_json
from cls2det.study.report import pages, plots, tables
from cls2det.study.report.gallery import draw_detections
from cls2det.study.report.paper import why_not_comparable
from cls2det.study.report.runs import Run, by_arm, find_runs, read_json
from cls2det.study.report.tables import summarise
from cls2det.study.report.tide import ERRORS, error_gains

__all__ = ["report", "summarise"]


def report(
    runs: list[Path],
    out: Path | None = None,
    split: str = "val",
    baseline: str = "baseline",
    notes: Sequence[str] = (),
    title: str = "Distilling a classifier into a detector",
    console: Console | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """Compare the runs found under the given folders; write every file and print the table.

    A part that cannot be made (no ground truth, no detections, no training log) is left out, and the report says so.

    Args:
        runs: folders that are searched, at every depth; arms are shown in their order
        out: folder for what is written; default: report/ in the first of them
        split: split on which the runs were evaluated
        baseline: name of the arm that gains are measured against
        notes: sentences under the title
        title: heading of the report
        console: where the table is printed
        quick: say everywhere that the runs were too short

    Returns:
        what report.json holds: ``students`` (by name: ``table`` by arm, see ``summarise``, and ``errors``), ``runs``,
        ``notes``, ``left out`` and what was asked for

    Raises:
        ValueError: no run was found, or two runs are the same seed of the same arm
    """
    if not runs:
        raise ValueError("give at least one folder to look for runs in")
    console = console or Console()
    out = Path(out) if out else Path(runs[0]) / "report"
    if (out / "options.json").is_file():
        raise ValueError(f"{out} holds a run, whose report.json this report would replace; give another --out")
    found, odd = find_runs(runs, split)
    out.mkdir(parents=True, exist_ok=True)
    left_out: list[str] = []
    root = found[0].data_root
    truth = _attempt(
        "comparison with the paper, error analysis", left_out, load_coco, root / "annotations" / f"instances_{split}.json"
    )
    why_not = why_not_comparable(truth, split)
    data = _attempt("pictures of detections", left_out, DetectionData, root, split)

    students: dict[str, dict[str, Any]] = {}
    text: list[str] = []
    for student in dict.fromkeys(run.student for run in found):
        own = [run for run in found if run.student == student]
        table = summarise({(run.arm, run.seed): run.result for run in own}, baseline)
        with console.status(f"errors and plots of {student}"):
            errors = _errors(truth, own, split, left_out) if truth is not None else {}
            prefix = f"{student}-" if len({run.student for run in found}) > 1 else ""
            figures = _draw(out, prefix, table, own, errors, data, split, baseline, quick, left_out)
        students[student] = {"table": table, "errors": errors}
        odd += tables.pairing_notes(student, table, baseline)
        text += pages.student_page(student, table, errors, figures, why_not)
        tables.print_table(f"{title}: {student}" if prefix else title, table, console)

    said = [*([pages.QUICK] if quick else []), pages.about(found, split), *notes, *odd]
    said += [f"Left out: {part}." for part in left_out]
    methods = pages.write_csv_files(out, found, students, not why_not, baseline)
    if len(methods) > 1:
        text += pages.methods_page(methods, why_not)
    header = [f"# {title}", "", *(f"- {note}" for note in said), ""]
    (out / "report.md").write_text("\n".join([*header, *text, f"Reported on {pages.machine()}.", ""]), encoding="utf-8")
    content = {
        "title": title,
        "split": split,
        "data_root": str(root),
        "baseline": baseline,
        "quick": quick,
        "notes": said,
        "left out": left_out,
        "machine": pages.machine(),
        "students": students,
        "runs": [
            {"student": run.student, "arm": run.arm, "seed": run.seed, "folder": str(run.folder), **run.result}
            for run in found
        ],
    }
    write_json(out / "report.json", content)
    for note in said:
        console.print("- " + note.replace("**", "").replace("`", ""), style="dim", highlight=False, markup=False)
    console.print(f"[dim]{out}/report.md, report.json, tables as .csv, plots as .png[/]")
    return content


def _attempt(part: str, left_out: list[str], function: Callable, *arguments) -> Any:
    """What the function returns; where it cannot read what it needs, None, and a line about it in ``left_out``."""
    try:
        return function(*arguments)
    except (OSError, ValueError, RuntimeError) as error:  # torchvision's decoders raise RuntimeError
        left_out.append(f"{part} ({error})")
        return None


def _errors(truth: Any, runs: Sequence[Run], split: str, left_out: list[str]) -> dict[str, dict[str, list[float]]]:
    """Mean over seeds of the gains by kind of error, by arm; of the runs that have detections."""
    errors = {}
    for arm, group in by_arm(runs).items():
        gains = []
        for run in group:
            part, file = f"errors of {run.student}, {run.arm}, seed {run.seed}", run.folder / split / "detections.json"
            gains.append(_attempt(part, left_out, _gains, truth, file))
        gains = [each for each in gains if each is not None]
        if gains:
            errors[arm] = {
                name: [fmean(level) for level in zip(*(each[name] for each in gains), strict=True)] for name in ("AP", *ERRORS)
            }
    return errors


def _gains(truth: Any, file: Path) -> dict[str, list[float]]:
    return error_gains(truth, read_json(file))


def _draw(
    out: Path,
    prefix: str,
    table: Mapping[str, Mapping[str, Any]],
    runs: Sequence[Run],
    errors: Mapping[str, Mapping[str, list[float]]],
    data: DetectionData | None,
    split: str,
    baseline: str,
    quick: bool,
    left_out: list[str],
) -> list[str]:
    """Draw what can be drawn; returns the names of the files."""
    jobs: dict[str, tuple] = {
        "gain": (plots.draw_gain, table, runs, baseline, quick),
        "ap-by-iou": (plots.draw_by_iou, table, quick),
        "ap-by-size": (plots.draw_by_size, table, runs, quick),
        "training": (plots.draw_training, runs, quick),
    }
    for name in (*jobs, "errors", "detections"):
        (out / f"{prefix}{name}.png").unlink(missing_ok=True)  # an earlier report may have had what this one lacks
    if errors:
        jobs["errors"] = (plots.draw_errors, errors, list(table), quick)
    if data is not None:
        jobs["detections"] = (draw_detections, data, _pictured(table, runs, split, baseline))
    drawn = []
    for name, (function, *arguments) in jobs.items():
        file = f"{prefix}{name}.png"
        before = len(left_out)
        _attempt(file, left_out, function, *arguments, out / file)
        drawn += [file] if len(left_out) == before else []
    return drawn


def _pictured(table: Mapping, runs: Sequence[Run], split: str, baseline: str) -> dict[str, Path]:
    """detections.json of the baseline and of the best other arm, of the first seed that each has."""
    others = {arm: row for arm, row in table.items() if arm != baseline}
    arms = [baseline] * (baseline in table) + ([tables.best_arm(others)] if others else [])
    groups = by_arm(runs)
    return {arm: min(groups[arm], key=lambda run: run.seed).folder / split / "detections.json" for arm in arms}
