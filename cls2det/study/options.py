"""What the study's commands take: a record per command, whose docstring is the command's help."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cls2det.training.settings import Device


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """Make data, train a teacher, train a detector with and without distillation, and report.

    Run it again with the same folder after Ctrl-C: it goes on from the last checkpoints.

    Args:
        out: folder for everything that is written (default: runs/demo, or runs/demo-quick)
        seeds: paired runs per arm (default: 3, or 1 with --quick)
        quick: only see that everything runs; too short to show the gain
        first_seed: the first of the seeds; the seeds below 11 served to choose the settings
        split: split that is reported (default: test); look at val while you choose settings
        device: auto takes a GPU if there is one
        precision: of Lightning: 32-true, bf16-mixed, 16-mixed (default: 32-true)
        workers: trainings at a time (default: one per GPU, or one per core and at most 4)
        fresh: delete what is in the folder and start anew
    """

    out: Path | None = None
    seeds: int | None = None
    quick: bool = False
    first_seed: int = 11
    split: str | None = None
    device: Device = "auto"
    precision: str | None = None
    workers: int | None = None
    fresh: bool = False


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """Train every arm of a sweep with every seed, evaluate, and report.

    Run it again with the same folder after Ctrl-C: it goes on from the last checkpoints, and does what is missing.

    Args:
        config: a sweep's YAML file, or the name of one that comes with the package: see `cls2det recipes`; `cls2det recipes
            --name study` prints one to begin from
        out: folder for everything that is written
        data_root: folder of data in COCO's, VOC's or YOLO's layout, in place of the scenes that the sweep may make
        recipe: in place of the sweep's recipe
        start: weights from which the backbone of every student starts, in place of the sweep's
        seeds: in place of the sweep's seeds
        arms: train only these arms
        students: detectors to train every arm with, in place of the sweep's
        split: in place of the sweep's split
        device: auto takes a GPU if there is one
        precision: of Lightning: 32-true, bf16-mixed, 16-mixed; in place of the sweep's
        workers: trainings at a time (default: one per GPU, or one per core and at most 4)
        fresh: delete what is in the folder and start anew
    """

    config: str
    out: Path
    data_root: Path | None = None
    recipe: str | None = None
    start: Path | None = None
    seeds: list[int] | None = None
    arms: list[str] | None = None
    students: list[str] | None = None
    split: str | None = None
    device: Device = "auto"
    precision: str | None = None
    workers: int | None = None
    fresh: bool = False


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Compare runs: tables, plots, error analysis and pictures, beside the paper's numbers.

    A part that cannot be made (no ground truth, no detections, no training log) is left out, and the report says so.

    Args:
        runs: folders that are searched at every depth; arms are shown in their order
        out: folder for what is written (default: report/ in the first of them)
        split: split on which the runs were evaluated
        baseline: name of the arm that gains are measured against
        notes: sentences under the title
        title: heading of the report
        quick: say everywhere that the runs were too short
    """

    runs: list[Path]
    out: Path | None = None
    split: str = "val"
    baseline: str = "baseline"
    notes: list[str] = dataclasses.field(default_factory=list)
    title: str = "Distilling a classifier into a detector"
    quick: bool = False
