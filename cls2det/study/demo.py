"""``cls2det demo``: a sweep on scenes that are made on the spot, from nothing to a table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from cls2det.study.options import DemoOptions
from cls2det.study.plan import load_plan
from cls2det.study.sweep import run_sweep

YOUR_OWN = """
Your own pictures, in COCO's, VOC's or YOLO's layout (cls2det look shows them first, docs/own-data.md says more):

    cls2det teacher --config teacher-own-small --data-root FOLDER --out runs/teacher
    cls2det distill --config own-small --data-root FOLDER --out runs/distilled --teacher runs/teacher/weights.pt
"""


def demo(options: DemoOptions) -> dict[str, Any]:
    """Run the sweep ``demo`` or ``demo-quick``; returns what ``report`` returns."""
    name = "demo-quick" if options.quick else "demo"
    plan = load_plan(name)
    if options.seeds is not None and options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {options.seeds}")
    count = options.seeds or len(plan.seeds)
    seeds = list(range(options.first_seed, options.first_seed + count))
    result = run_sweep(
        dataclasses.replace(plan, seeds=seeds, split=options.split or plan.split),
        options.out or Path("runs") / name,
        device=options.device,
        precision=options.precision,
        workers=options.workers,
        fresh=options.fresh,
    )
    Console().print(YOUR_OWN, highlight=False, markup=False, soft_wrap=True)
    return result
