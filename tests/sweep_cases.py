"""What the tests of sweeps share: a sweep's file whose trainings take two steps, and jobs that run in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("lightning")

from cls2det.study import sweep as sweep_module

TINY: dict[str, Any] = {
    "scenes": {"train": 8, "val": 2, "test": 4},
    "teachers": {
        "teacher": {"optim": {"steps": 2, "batch_size": 4}, "run": {"checkpoint_every": 2}},
        "start": {"optim": {"steps": 2, "batch_size": 4}, "run": {"checkpoint_every": 2}},
    },
    "train": {"images": 4, "optim": {"steps": 2, "batch_size": 2}, "run": {"checkpoint_every": 2}, "allow_poor_teacher": True},
}


@pytest.fixture
def ran(monkeypatch):
    """Names of the jobs that ran, in this process."""
    names: list[str] = []

    def in_this_process(jobs, workers, console, gpus=()):
        for job in jobs:
            job.function(*job.arguments, progress=lambda *_: None)
        names.extend(job.name for job in jobs)

    monkeypatch.setattr(sweep_module, "run_jobs", in_this_process)
    return names


def write(path: Path, **changes: Any) -> str:
    path.write_text(yaml.safe_dump(TINY | changes))
    return str(path)
