"""Which options make a run what it is: options.json holds these, and a restart in the same folder must have the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from cls2det.commands.options import DistillOptions, PretrainOptions, TeacherOptions, TrainOptions
from cls2det.commands.renamed import present_run
from cls2det.training import runs
from cls2det.training.settings import CLAIMED

# Options that a restart may change. Of those of ``run``, CLAIMED alone must stay.
NOT_IDENTITY = ("out", "allow_poor_teacher", "run")


def identity(options: TeacherOptions | TrainOptions | PretrainOptions) -> dict[str, Any]:
    """The command and the options that make the run, as plain values."""
    command = "train"
    if isinstance(options, DistillOptions):
        if options.distils:
            command = "distill"
        else:
            options = options.without_distillation()
    elif not isinstance(options, TrainOptions):
        command = "teacher" if isinstance(options, TeacherOptions) else "pretrain"
    values = dataclasses.asdict(options)
    record = {name: value for name, value in values.items() if name not in NOT_IDENTITY}
    run = {name: values["run"].get(name) for name in CLAIMED}
    return json.loads(json.dumps({"command": command, **record, "run": run}, default=str))


def claim(options: TeacherOptions | TrainOptions | PretrainOptions) -> None:
    """Make ``options.out`` the folder of the run; FileExistsError if it holds a run of another identity."""
    runs.claim(options.out, identity(options), rename=present_run)


def check_claim(folder: Path, options: TeacherOptions | TrainOptions | PretrainOptions) -> None:
    """FileExistsError if the folder holds a run of another identity."""
    runs.check_claim(folder, identity(options), rename=present_run)
