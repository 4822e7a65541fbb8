"""The demo's report: a table on the screen, report.md, report.json, gain.png and detections.png."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cls2det.base import write_json
from cls2det.data import DetectionData
from cls2det.evaluate import COCO_COLUMNS, DIAGNOSTICS

COLUMNS = (*COCO_COLUMNS, *DIAGNOSTICS, "seconds")
GAIN = "gain in mAP"


def write(
    out: Path,
    runs: Mapping[tuple[str, int], Path],
    *,
    split: str,
    quick: bool,
    images: int,
    scenes: int,
    device: str,
    settings: dict,
    seconds: float,
    console: Console,
) -> dict:
    """Gather the runs' results, write every file and print the table. ``runs``: folder by (arm, seed)."""
    results = {run: _read(folder, split) for run, folder in runs.items()}
    teacher, start = (json.loads((out / name / "report.json").read_text()) for name in ("teacher", "start"))
    table = summarise(results)
    notes = _notes(split, quick, images, scenes, teacher, len({seed for _, seed in runs}))
    content = {
        "table": table,
        "notes": notes,
        "split": split,
        "quick": quick,
        "seeds": sorted({seed for _, seed in runs}),
        "runs": [{"arm": arm, "seed": seed, **result} for (arm, seed), result in results.items()],
        "teacher": teacher,
        "start": start,
        "seconds": seconds,
        "machine": _machine(device),
        "settings": settings,
    }
    write_json(out / "report.json", content)
    (out / "report.md").write_text(markdown(table, notes, content["machine"], seconds))
    draw_gain(table, results, quick, out / "gain.png")
    draw_detections(DetectionData(out / "scenes", split), runs, split, out / "detections.png")
    _print(table, notes, console)
    console.print(f"[dim]{seconds / 60:.1f} minutes; {out}/report.md, report.json, gain.png, detections.png[/]")
    return content


def summarise(results: Mapping[tuple[str, int], dict]) -> dict[str, dict[str, Any]]:
    """By arm: each column's mean over seeds, and the paired gain in mAP with its standard error (None for one seed)."""
    table: dict[str, dict[str, Any]] = {}
    for arm in dict.fromkeys(arm for arm, _ in results):
        rows = {seed: result for (name, seed), result in results.items() if name == arm}
        table[arm] = {column: _mean([row[column] for row in rows.values()]) for column in COLUMNS}
        gains = [row["mAP"] - results["baseline", seed]["mAP"] for seed, row in rows.items()]
        table[arm]["gain"] = _mean(gains)
        table[arm]["standard error"] = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None
        table[arm]["gain by IoU"] = [
            _mean([row["AP by IoU"][level] - results["baseline", seed]["AP by IoU"][level] for seed, row in rows.items()])
            for level in range(10)
        ]
    return table


def markdown(table: Mapping[str, Mapping[str, Any]], notes: list[str], machine: str, seconds: float) -> str:
    """The table and its notes as Markdown."""
    lines = [
        "# Distilling a classifier into a detector",
        "",
        "| arm | " + " | ".join((*COLUMNS, GAIN)) + " |",
        "|---|" + "---:|" * (len(COLUMNS) + 1),
    ]
    lines += ["| " + " | ".join([arm, *_cells(arm, row)]) + " |" for arm, row in table.items()]
    lines += [
        "",
        *(f"- {note}" for note in notes),
        "",
        f"{machine}; {seconds / 60:.1f} minutes for everything.",
        "",
        "![gain](gain.png)",
        "",
        "![detections](detections.png)",
        "",
    ]
    return "\n".join(lines)


def _print(table: Mapping[str, Mapping[str, Any]], notes: list[str], console: Console) -> None:
    wide = console if console.width >= 120 else Console(width=120)  # cut numbers cannot be read
    shown = Table(title="Distilling a classifier into a detector", box=SIMPLE_HEAD)
    shown.add_column("arm", no_wrap=True)
    for column in (*COLUMNS, GAIN):
        shown.add_column(column, justify="right", no_wrap=True)
    for arm, row in table.items():
        shown.add_row(arm, *_cells(arm, row), style="bold" if arm == "+ both" else None)
    wide.print(shown)
    for note in notes:
        console.print("- " + note.replace("**", "").replace("`", ""), style="dim", highlight=False)


def _cells(arm: str, row: Mapping[str, Any]) -> list[str]:
    cells = [
        "-" if row[column] is None else f"{row[column]:.0f}" if column == "seconds" else f"{row[column]:.1f}"
        for column in COLUMNS
    ]
    error = "" if row["standard error"] is None else f" ± {row['standard error']:.2f}"
    return [*cells, "" if arm == "baseline" else f"{row['gain']:+.2f}{error}"]


def _notes(split: str, quick: bool, images: int, scenes: int, teacher: dict, seeds: int) -> list[str]:
    notes = (
        ["**Too short to show the gain**: `--quick` shows that everything runs; the differences in this table are noise."]
        if quick
        else []
    )
    notes += [
        f"Percent on the {split} scenes (pycocotools), mean of {seeds} paired seed{'s' * (seeds > 1)}"
        + (
            "; ± is the standard error of the paired gain over seeds (not over test scenes)."
            if seeds > 1
            else "; one seed gives no error bar."
        )
        + ' "class acc" and "mean IoU": at the default box that overlaps each object most. Seconds: training alone.',
        f"The teacher ({teacher['accuracy']:.1f} % of test crops right) and the start of every student's backbone were "
        f"trained on the crops of all {scenes} train scenes; the detectors saw {images} images. "
        "So the teacher knows more labels than the student.",
    ]
    if not quick:
        notes.append(
            "Part of what KD-cls does is weight on the foreground, part of what KD-loc does is weight on the boxes; "
            "`--controls` trains arms that show how much."
        )
    return notes


def draw_gain(
    table: Mapping[str, Mapping[str, Any]], results: Mapping[tuple[str, int], dict], quick: bool, path: Path
) -> None:
    """Left: mAP, AP50 and AP75 by arm, a dot per seed. Right: gain over the baseline by IoU threshold."""
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(3, 2), layout="constrained")
    columns, arms = ("mAP", "AP50", "AP75"), list(table)
    width = 0.8 / len(arms)
    for number, arm in enumerate(arms):
        places = [place + (number - (len(arms) - 1) / 2) * width for place in range(len(columns))]
        bars = left.bar(
            places, [table[arm][column] for column in columns], width * 0.92, color=f"C{number}", label=arm, alpha=0.85
        )
        left.bar_label(bars, fmt="%.1f", fontsize=8, padding=4)
        for seed_arm, seed in results:
            if seed_arm == arm:
                left.plot(
                    places, [results[arm, seed][column] for column in columns], "o", color="black", markersize=2.5, alpha=0.6
                )
        if arm != "baseline":
            right.plot(
                [0.5 + 0.05 * level for level in range(10)],
                table[arm]["gain by IoU"],
                "o-",
                color=f"C{number}",
                markersize=3.5,
                label=arm,
            )
    left.set_xticks(range(len(columns)), columns)
    left.set_ylabel("percent")
    left.set_ylim(0, 1.18 * max(max(row["AP50"] for row in table.values()), 1))
    left.legend(frameon=False, fontsize=8, ncols=2)
    right.axhline(0, color="grey", linewidth=0.8)
    right.set(xlabel="IoU threshold", ylabel="gain in AP over the baseline")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    if quick:
        figure.suptitle("quick run: too short to show the gain", fontsize=10, color="firebrick")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_detections(
    data: DetectionData,
    runs: Mapping[tuple[str, int], Path],
    split: str,
    path: Path,
    columns: int = 8,
    threshold: float = 0.3,
) -> None:
    """Scenes of the split in columns: ground truth, baseline and both, of the first seed.

    Green: right class and IoU ≥ 0.5; red: not.
    """
    plt = _pyplot()
    seed = min(seed for _, seed in runs)
    shown = [("ground truth", None)] + [
        (arm, _detections(runs[arm, seed] / split, threshold)) for arm in ("baseline", "+ both") if (arm, seed) in runs
    ]
    busy = [index for index, target in enumerate(data.targets) if len(target["labels"]) >= 3][:columns]
    figure, grid = plt.subplots(
        len(shown), len(busy), figsize=(1.6 * len(busy), 1.7 * len(shown)), squeeze=False, layout="constrained"
    )
    for column, index in enumerate(busy):
        image, target = data[index]
        truth = [(box, label) for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)]
        for row, (name, detections) in enumerate(shown):
            axes = grid[row][column]
            axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if column == 0:
                axes.set_ylabel(name, fontsize=10)
            boxes = truth if detections is None else detections.get(int(target["image_id"]), [])
            for box, label in boxes:
                label = label if detections is None else data.category_ids.index(label) + 1
                right = detections is None or any(label == other and _iou(box, true) >= 0.5 for true, other in truth)
                colour = "white" if detections is None else "lime" if right else "red"
                axes.add_patch(
                    plt.Rectangle(box[:2], box[2] - box[0], box[3] - box[1], fill=False, edgecolor=colour, linewidth=1.2)
                )
                axes.text(
                    box[0],
                    box[1] - 1,
                    data.classes[label - 1],
                    color="black",
                    fontsize=7,
                    va="bottom",
                    bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
                )
    figure.suptitle(f"scores ≥ {threshold}; green: right class and IoU ≥ 0.5, red: not", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _detections(folder: Path, threshold: float) -> dict[int, list[tuple[list[float], int]]]:
    """Boxes (xyxy) and category ids by image."""
    found: dict[int, list] = {}
    for detection in json.loads((folder / "detections.json").read_text()):
        if detection["score"] >= threshold:
            x, y, w, h = detection["bbox"]
            found.setdefault(detection["image_id"], []).append(([x, y, x + w, y + h], detection["category_id"]))
    return found


def _iou(a: list[float], b: list[float]) -> float:
    overlap = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def _read(folder: Path, split: str) -> dict:
    return {
        "seconds": json.loads((folder / "report.json").read_text())["seconds"],
        **json.loads((folder / split / "evaluation.json").read_text()),
    }


def _mean(values: list) -> float | None:
    return None if any(value is None for value in values) else statistics.fmean(values)


def _machine(device: str) -> str:
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU, {os.cpu_count()} cores"
    return f"{name}, torch {torch.__version__}"


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
