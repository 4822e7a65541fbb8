"""Going on from a checkpoint: reading it, also one of version 0.1, and joining the log of a stopped run with its restart's."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning
from torch import Tensor

from cls2det.errors import first_lines, some
from cls2det.files import is_first_process, load_torch, not_finite, write_then_rename, write_torch

# How version 0.1 named the parts of a module in its checkpoints; the first prefix that fits is replaced.
OLD_PREFIXES = {
    "distillers.methods.kd.": "distillation.methods.chen.",
    "distillers.methods.tbd.": "distillation.methods.harmony.",
    "distillers.": "distillation.",
}
OLD_CLASSIFIER_PREFIXES = {"network.": "classifier.network."}  # of a module that has a ``classifier``
STATES = ("state_dict", "current_model_state")  # of a checkpoint; the latter is there where weights are averaged


def read_checkpoint(file: Path, module: lightning.LightningModule) -> dict[str, Any]:
    """Content of a training checkpoint, with its weights (averaged ones, if there are) loaded into ``module``.

    ``{"global_step": 0}`` for a run that has none yet. A file of version 0.1 is written anew with today's names, from which
    Lightning resumes.

    Raises:
        ValueError: the file is damaged, something else, of another model, or has weights that are NaN or infinite
    """
    if not file.is_file():
        return {"global_step": 0}
    remedy = "Remove it, and the run starts from its first step"
    try:
        content = load_torch(file)
        if not isinstance(content, dict) or not {"global_step", "state_dict"} <= content.keys():
            raise ValueError("it is something else")
    except MemoryError:
        raise
    except Exception as error:  # torch has a different one for each way in which a file can be wrong
        if isinstance(error, OSError) and error.filename:  # it cannot be read, which says nothing about its content
            raise
        raise ValueError(f"{file} does not load as a checkpoint: {first_lines(error, 1)}. {remedy}") from None
    if names := not_finite(content["state_dict"]):
        raise ValueError(f"{file} holds weights that are not finite ({some(names)}). {remedy}")
    if _rename_states(content, module) and is_first_process():
        write_torch(file, content)
    try:
        module.load_state_dict(content["state_dict"])
    except (RuntimeError, TypeError) as error:  # another model, or a version of a library that names its layers otherwise
        raise ValueError(f"{file} does not fit the model of this run: {first_lines(error)}. {remedy}") from None
    return content


def _rename_states(content: dict[str, Any], module: lightning.LightningModule) -> bool:
    """Bring the weights of a checkpoint of version 0.1 to today's names; whether there was one to rename."""
    prefixes = OLD_PREFIXES | (OLD_CLASSIFIER_PREFIXES if hasattr(module, "classifier") else {})
    states = {name: _renamed(content[name], prefixes) for name in STATES if isinstance(content.get(name), dict)}
    changed = any(state.keys() != content[name].keys() for name, state in states.items())
    content.update(states)
    return changed


def _renamed(state: dict[str, Tensor], prefixes: dict[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        old = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        renamed[prefixes.get(old, "") + name.removeprefix(old)] = value
    return renamed


# Lightning's CSV logger begins its file anew with each start of a run. The lines of an earlier start are put aside, up to the
# step that the new one goes on from, and joined with the new file at the end, or at the next start.


def put_log_aside(folder: Path, step: int) -> None:
    """Keep the lines of steps before ``step``, in the first process of a distributed run."""
    if not is_first_process():
        return
    join_log(folder)
    file = folder / "metrics.csv"
    if file.is_file():
        _write_rows(folder / "before.csv", [row for row in _rows(file) if int(row["step"]) < step])
        file.unlink()


def join_log(folder: Path) -> None:
    """Put the lines that were kept in front of those that were written since."""
    before, file = folder / "before.csv", folder / "metrics.csv"
    if before.is_file():
        _write_rows(file, _rows(before) + (_rows(file) if file.is_file() else []))
        before.unlink()


def _rows(file: Path) -> list[dict[str, str]]:
    """Without a last line that a kill or a full disk has cut off."""
    text = file.read_text(encoding="utf-8")
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def _write_rows(file: Path, rows: list[dict[str, str]]) -> None:
    columns = sorted({column for row in rows for column in row} | {"step"})
    with write_then_rename(file) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
