"""report.md and the CSV files, from the tables of each student."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cls2det.evaluation.by_class import classes_heading, worst_and_best
from cls2det.study.report import tables
from cls2det.study.report.classes import class_rows
from cls2det.study.report.paper import ablations, paper, paper_rows
from cls2det.study.report.resampling import DRAWS
from cls2det.study.report.runs import RunRecord, by_arm
from cls2det.study.report.tide import ERRORS

QUICK = "**Too short to show the gain**: a quick run shows that everything runs; the differences in these tables are noise."


def student_page(
    student: str,
    table: Mapping[str, Mapping[str, Any]],
    errors: Mapping[str, Mapping[str, Sequence[float]]],
    figures: Sequence[str],
    why_not: str,
    by_class: Sequence[Mapping[str, Any]],
    split: str,
) -> list[str]:
    """Lines of Markdown on one student.

    Args:
        student: its name
        table: of ``tables.summarise``
        errors: gains by arm and kind
        figures: names of the files to show
        why_not: why the paper's numbers do not compare with the runs'; empty if they do
        by_class: of ``classes.class_rows``
        split: that was evaluated
    """
    columns = ("arm", "seeds", *tables.COLUMNS, "gain", *tables.known_columns(table, tables.OVER_IMAGES))
    best = tables.best_arm(table) if len(table) > 1 else ""
    arms = tables.arm_rows(table, paper_rows("arms", student), not why_not)
    lines = [
        f"## {student}",
        "",
        f"Percent on {split}, seconds of training.",
        "",
        *tables.markdown_table(_of(arms, "runs"), columns, bold=best),
        "",
    ]
    lines += _beside_paper(arms, ("arm", *paper()["arms"]["columns"], "gain"), why_not)
    rows, columns = tables.iou_rows(table, paper_rows("iou", student), not why_not), ("arm", *tables.IOU_COLUMNS)
    lines += [f"### AP by IoU threshold, percent on {split}", "", *tables.markdown_table(_of(rows, "runs"), columns), ""]
    lines += _beside_paper(rows, columns, why_not)
    for ablation in ablations(student, table):
        values = [{"arm": name, "mAP": value} for name, value in ablation["mAP"].items()]
        lines += [f"### The paper's Table {ablation['table']}: {ablation['title']}", ""]
        lines += [f"{why_not} ".lstrip() + f"{student}:", "", *tables.markdown_table(values, ("arm", "mAP")), ""]
    if by_class:
        shown = worst_and_best(by_class, tables.best_arm(table))
        lines += [f"### {classes_heading(by_class, shown, split)}", ""]
        lines += [*tables.markdown_table(shown, ("class", "objects", *table)), ""]
    if errors:
        lines += [
            "### Errors",
            "",
            f"Percent of AP on {split} that an oracle would gain by mending the error (TIDE; see `cls2det/study/report/tide.py`).",
        ]
        lines += ["", *tables.error_tables(errors), ""]
    return lines + [line for file in figures for line in (f"![{Path(file).stem}]({file})", "")]


def methods_page(rows: Sequence[Mapping[str, Any]], why_not: str, split: str) -> list[str]:
    """Lines of Markdown: the paper's Table 2."""
    lines = [
        f"## Students and methods, percent on {split}",
        "",
        *tables.markdown_table(rows, list(rows[0]), text_columns=2),
        "",
    ]
    if any(row["paper mAP"] is not None for row in rows):
        lines += [f"{why_not} ".lstrip() + f"Second hand: {paper()['second hand']}.", ""]
    return lines


def _of(rows: Sequence[Mapping[str, Any]], source: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["source"] == source]


def _beside_paper(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], why_not: str) -> list[str]:
    """The paper's rows, and the difference to them where data compare."""
    if not _of(rows, "paper"):
        return []
    lines = [why_not or f"The paper ({paper()['data']}):", "", *tables.markdown_table(_of(rows, "paper"), columns), ""]
    if _of(rows, "difference"):
        lines += ["Difference, runs - paper:", "", *tables.markdown_table(_of(rows, "difference"), columns), ""]
    return lines


def write_csv_files(
    out: Path, runs: Sequence[RunRecord], students: Mapping[str, Mapping[str, Any]], comparable: bool, baseline: str
) -> list[dict]:
    """Write every table; returns the rows of methods.csv."""
    arms, iou, methods, errors, classes = [], [], [], [], []
    for student, content in students.items():
        table, named = content["table"], {"student": student}
        arms += [named | row for row in tables.arm_rows(table, paper_rows("arms", student), comparable)]
        iou += [named | row for row in tables.iou_rows(table, paper_rows("iou", student), comparable)]
        methods += tables.method_rows(student, table, paper_rows("methods", student), comparable, baseline)
        errors += [named | row for row in tables.error_rows(content["errors"])]
        for row in class_rows(run for run in runs if run.student == student):
            same = {"class": row["class"], "objects": row["objects"]}
            classes += [named | {"arm": arm} | same | {"AP": row[arm]} for arm in table if arm in row]
    first = ("student", "arm", "source")
    gain = ("mAP standard error", "gain", "standard error", tables.OVER_IMAGES, "paired seeds")
    tables.write_csv(out / "arms.csv", arms, (*first, "seeds", *tables.COLUMNS, *gain))
    tables.write_csv(out / "iou.csv", iou, (*first, *tables.IOU_COLUMNS))
    tables.write_csv(out / "errors.csv", errors, ("student", "arm", "IoU", "AP", *ERRORS))
    tables.write_csv(out / "classes.csv", classes, ("student", "arm", "class", "objects", "AP"))
    tables.write_csv(out / "methods.csv", methods, tables.METHOD_COLUMNS)
    every = tables.run_rows(runs)
    tables.write_csv(out / "runs.csv", every, list(every[0]))
    return methods


def about(runs: Sequence[RunRecord], split: str, over_images: bool) -> str:
    """What the numbers are; ``over_images`` says whether a table has the gain's error over images."""
    counts = {len(group) for student in {run.student for run in runs} for group in by_arm(runs, student).values()}
    least, most = min(counts), max(counts)
    return (
        f"Percent on {split} of `{runs[0].data_root}` (COCO's measures), "
        + f"mean of {least if least == most else f'{least} to {most}'} seed{'s' * (most > 1)}"
        + ("; ± is the standard error over seeds, for a gain over its pairs" if most > 1 else "")
        + f'; "{tables.HEADINGS[tables.OVER_IMAGES]}" is that over images, of {DRAWS} paired draws of them' * over_images
        + ("; one seed gives no error bar" if least == 1 else "")
        + '. "class acc" and "mean IoU": at the default box that overlaps each object most. Seconds: training alone.'
    )


def machine() -> str:
    """Where the report was made."""
    import torch

    cores = f"{platform.machine()} CPU, {os.cpu_count()} cores"
    return f"{torch.cuda.get_device_name() if torch.cuda.is_available() else cores}, torch {torch.__version__}"
