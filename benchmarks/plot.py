"""Tables and plots from the raw numbers of a run: python benchmarks/plot.py RESULT.json [--out FOLDER]

Writes <name>.md with the tables, <name>-operators.png with the ratios, and <name>-steps.png with where the time of a training
step goes. Takes what `pytest benchmarks --bench-out` writes, and `make gpu-check` beside its proofs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cls2det.study.report.plots import pyplot
from parts import PARTS
from tables import best_baseline, document, parts_of, tax_by_parts

COLOURS = dict(zip(PARTS, ("lightgrey", "C0", "C2", "C3", "C1"), strict=True))


def draw_operators(rows: Sequence[Mapping], path: Path) -> None:
    """How many times as fast as the reference and as the best baseline, with backward where there is one."""
    measured = {(row["op"], row["shape"]): row for row in rows}  # the last is with backward
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.34 * len(measured)), layout="constrained")
    for place, row in enumerate(measured.values()):
        native = row["ms"]["native"]
        ratios = {
            "reference (eager PyTorch)": row["ms"]["reference"] / native,
            "best baseline": best_baseline(row)[1] / native,
        }
        for shift, colour, (label, ratio) in zip((-0.2, 0.2), ("C0", "C1"), ratios.items(), strict=True):
            axes.barh(place + shift, ratio - 1, 0.38, 1, color=colour, label=label if place == 0 else None)
            axes.text(
                max(ratio, 1), place + shift, f" {ratio:.2g}" if ratio < 10 else f" {ratio:.0f}", fontsize=7, va="center"
            )
    axes.set_yticks(range(len(measured)), [f"{op}  {shape}" for op, shape in measured], fontsize=7)
    axes.set_ylim(len(measured) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as fast; left of 1: slower")
    finish(figure, [axes], path)


def draw_steps(rows: Sequence[Mapping], path: Path) -> None:
    """A panel per student: the parts of each contender's step, beside one another."""
    plt = pyplot()
    bars = sum(len(row["contenders"]) for row in rows)
    figure, panels = plt.subplots(
        len(rows), figsize=(9, 1.2 + 0.3 * bars + 0.6 * len(rows)), squeeze=False, layout="constrained",
        height_ratios=[len(row["contenders"]) for row in rows],
    )  # fmt: skip
    for axes, row in zip(panels[:, 0], rows, strict=True):
        steps = row["contenders"]
        left = [0.0] * len(steps)
        for part, colour in COLOURS.items():
            widths = [parts_of(step)[part] / 1e3 for step in steps]
            axes.barh(range(len(steps)), widths, 0.8, left, color=colour, label=part)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for place, (end, step) in enumerate(zip(left, steps, strict=True)):
            added = f" (+{100 * tax_by_parts(step):.0f} %)" if step["terms"] else ""
            axes.text(end, place, f" {end:.3g}{added}", fontsize=7, va="center")
        names = [" ".join(filter(None, (step["terms"], step["implementation"]))) for step in steps]
        axes.set_yticks(range(len(steps)), names, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        height, width = row["size"]
        axes.set_title(
            f"{row['student']}, {row['images']} images of {height}x{width}, {row['positives']} positives", fontsize=9
        )
    clock = "CPU time" if rows[0]["contenders"][0]["parts_cpu_ms"] else "time"
    panels[-1, 0].set_xlabel(
        f"seconds of {clock} of a step, medians of its parts; in brackets what distillation adds to the student's"
    )
    finish(figure, panels[:, 0], path)


def finish(figure, panels, path: Path) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=len(labels), loc="outside lower center")
    figure.savefig(path, dpi=150)
    pyplot().close(figure)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, help="JSON of a run")
    parser.add_argument("--out", type=Path, help="folder; default: the one where the JSON is")
    options = parser.parse_args(arguments)
    record = json.loads(options.result.read_text(encoding="utf-8"))
    out, name = options.out or options.result.parent, options.result.stem
    out.mkdir(parents=True, exist_ok=True)
    written = [out / f"{name}.md"]
    written[0].write_text(document(record), encoding="utf-8")
    if record["rows"]:
        draw_operators(record["rows"], out / f"{name}-operators.png")
        written.append(out / f"{name}-operators.png")
    if record.get("training_steps"):
        draw_steps(record["training_steps"], out / f"{name}-steps.png")
        written.append(out / f"{name}-steps.png")
    print("written:", *written)


if __name__ == "__main__":
    main(sys.argv[1:])
