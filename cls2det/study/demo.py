"""``cls2det demo``: a sweep on scenes that are made on the spot, from nothing to a table."""

from __future__ import annotations

from pathlib import Path

from cls2det.study.sweep import load_sweep, run_sweep
from cls2det.training.settings import Device


def demo(
    out: Path | None = None,
    seeds: int = 0,
    quick: bool = False,
    first_seed: int = 11,
    split: str | None = None,
    device: Device = "auto",
    precision: str | None = None,
    workers: int = 0,
    fresh: bool = False,
) -> None:
    """Make data, train a teacher, train a detector with and without distillation, and report.

    Run it again with the same folder after Ctrl-C: it goes on from the last checkpoints.

    Args:
        out: folder for everything that is written (default: runs/demo, or runs/demo-quick)
        seeds: paired runs per arm (default: 3, or 1 with --quick)
        quick: see that everything runs; too short to show the gain
        first_seed: the first of the seeds (those below 11 were seen while settings were chosen)
        split: split that is reported (default: test); look at val while choosing settings
        device: auto takes a GPU if there is one
        precision: of Lightning: 32-true (default), bf16-mixed, 16-mixed
        workers: trainings at a time; 0: one per GPU, or per core and at most 4
        fresh: forget what is in the folder
    """
    name = "demo-quick" if quick else "demo"
    plan = load_sweep(name)
    if seeds < 0:
        raise ValueError(f"--seeds must be at least 1, got {seeds}")
    plan["seeds"] = list(range(first_seed, first_seed + (seeds or len(plan["seeds"]))))
    plan["split"] = split or plan["split"]
    run_sweep(plan, out or Path("runs") / name, None, None, device, precision, workers, fresh)
