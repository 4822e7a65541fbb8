"""``cls2det look``: a first look at a data set, with the eyes of a student."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from typing import Any

import torch

from cls2det.commands.options import LookOptions
from cls2det.commands.proposal import FEW_OBJECTS, Sized, at_size, propose
from cls2det.data.classes import quoted
from cls2det.data.dataset import DetectionData
from cls2det.data.overview import object_sizes, overview, shares_below
from cls2det.evaluation.drawing import contact_sheet, draw_boxes, write_picture
from cls2det.files import make_folder, write_json
from cls2det.models.anchor_fit import MEASURED, best_overlaps, evenly

EDGES = (0, 16, 32, 64, 128, 256, float("inf"))  # of the sizes of objects, in pixels of the student's input
COLUMNS = 4  # of the contact sheet
LISTED = 12  # classes that the screen shows


def look(options: LookOptions) -> dict[str, Any]:
    """Look at a split, and print; returns the content of look.json."""
    if options.pictures < 0:
        raise ValueError(f"pictures: expected 0 or more, found {options.pictures}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = DetectionData(options.data_root, options.split, max_pixels=options.max_pixels)
    doubts = list(dict.fromkeys(str(warning.message) for warning in caught))
    numbers = overview(data)
    doubts += _doubts(numbers)
    report: dict[str, Any] = {"data": numbers, "warnings": doubts}
    if numbers["objects"]:
        first = at_size(options.student, data, options.image_size)
        report |= {
            "student": {
                "name": options.student,
                "image_size": first.side,
                "object size": shares_below(object_sizes(first.boxes)),
            },
            "anchors": _fits(first),
            "proposal": propose(options, data, first),
        }
    if options.out:
        make_folder(options.out)
        write_json(options.out / "look.json", report)
        if options.pictures:
            write_picture(_sheet(data, options.pictures), options.out / "pictures.jpg")
    print("\n".join(_lines(report)))
    if options.out:
        print(f"\nwritten to {options.out}: look.json{', pictures.jpg' if options.pictures else ''}")
    return report


def _doubts(numbers: dict[str, Any]) -> list[str]:
    """What is no fault of the file, and still doubtful."""
    few = [name for name, count in numbers["classes"].items() if 0 < count < FEW_OBJECTS]
    none = [name for name, count in numbers["classes"].items() if not count]
    texts = [f"no object of class {quoted(none)}: it is not learnt"] if none else []
    return texts + ([f"fewer than {FEW_OBJECTS} objects of class {quoted(few)}: too few to learn from"] if few else [])


def _fits(first: Sized) -> dict[str, Any] | None:
    """How the student's own anchors, and fitted ones, meet the objects: of all, and by size."""
    if first.grid is None or first.own is None or first.better is None or first.levels is None:
        return None
    sizes = object_sizes(evenly(first.boxes, MEASURED))
    grids = {"own": first.grid, "fitted": first.grid.with_levels(first.levels)}
    overlaps = {name: best_overlaps(grid, first.boxes) for name, grid in grids.items()}
    rows = []
    for low, high in itertools.pairwise(EDGES):
        chosen = (sizes >= low) & (sizes < high)
        if chosen.any():
            row: dict[str, Any] = {"from": low, "to": high if high < EDGES[-1] else None, "objects": int(chosen.sum())}
            for name, values in overlaps.items():
                matched = (values[chosen] >= first.own.threshold).double().mean().item()
                row[name] = {"share": matched, "mean_iou": values[chosen].mean().item()}
            rows.append(row)
    return {"own": dataclasses.asdict(first.own), "fitted": dataclasses.asdict(first.better), "by size": rows}


def chosen_pictures(data: DetectionData, count: int) -> list[int]:
    """Positions of ``count`` pictures: one with each class first, rare ones before others, then evenly from all."""
    rare_first = [name for name, number in sorted(data.class_counts().items(), key=lambda item: item[1]) if number]
    chosen: list[int] = []
    for label in (data.classes.index(name) + 1 for name in rare_first):
        if not any(label in data.targets[index]["labels"] for index in chosen):
            chosen.append(next(index for index, target in enumerate(data.targets) if label in target["labels"]))
    spread = range(0, len(data), max(1, len(data) // count))
    return sorted(list(dict.fromkeys([*chosen[:count], *spread]))[:count])


def _sheet(data: DetectionData, count: int) -> torch.Tensor:
    """These pictures with their boxes."""
    drawn = []
    for index in chosen_pictures(data, count):
        image, target = data[index]
        drawn.append(draw_boxes(image, target["boxes"], target["labels"], data.classes))
    return contact_sheet([drawn[first : first + COLUMNS] for first in range(0, len(drawn), COLUMNS)])


def _lines(report: dict[str, Any]) -> list[str]:
    numbers = report["data"]
    counts = sorted(numbers["classes"].items(), key=lambda item: -item[1])
    classes = ", ".join(f"{name} {count}" for name, count in counts[:LISTED])
    sizes = {name: f"{width} x {height}" for name, (width, height) in numbers["image size"].items()}
    lines = [
        f"pictures  {numbers['images']}, {numbers['images without objects']} of them without objects; "
        f"{sizes['median']} pixels (from {sizes['smallest']} to {sizes['largest']})",
        f"objects   {numbers['objects']} and {numbers['crowds']} crowds; {numbers['objects per image']['mean']:.1f} per picture, "
        f"at most {numbers['objects per image']['most']}",
        f"classes   {len(counts)}: {classes}{f' and {len(counts) - LISTED} more' if len(counts) > LISTED else ''}",
    ]
    if numbers["objects"]:
        student = f"{report['student']['name']} at {report['student']['image_size']} pixels"
        lines += [
            f"sizes     {_spread(numbers['object size'])} pixels; in the input of {student} "
            f"{_spread(report['student']['object size'])}",
            f"shapes    height / width {_spread(numbers['height over width'], 2)}",
        ]
    lines += [f"doubtful  {text}" for text in report["warnings"]]
    if fits := report.get("anchors"):
        lines += ["", f"Objects with an anchor of {student} at IoU {fits['own']['threshold']:g} (mean of the best IoUs)"]
        lines.append(f"{'pixels':>10} {'objects':>8} {'its own':>14} {'from the data':>14}")
        for row in [*fits["by size"], {"objects": fits["own"]["objects"], "own": fits["own"], "fitted": fits["fitted"]}]:
            name = (
                "all" if "from" not in row else f"from {row['from']}" if row["to"] is None else f"{row['from']} to {row['to']}"
            )
            cells = [f"{row[kind]['share']:.0%} ({row[kind]['mean_iou']:.2f})" for kind in ("own", "fitted")]
            lines.append(f"{name:>10} {row['objects']:>8} {cells[0]:>14} {cells[1]:>14}")
    if proposal := report.get("proposal"):
        lines += [
            "",
            "Proposal",
            *(f"- {text}" for text in proposal["words"]),
            *(f"    {text}" for text in proposal["commands"]),
        ]
    return lines


def _spread(shares: dict[str, float], digits: int = 0) -> str:
    low, middle, high = (f"{value:.{digits}f}" for value in shares.values())
    return f"{middle} (90 % from {low} to {high})"
