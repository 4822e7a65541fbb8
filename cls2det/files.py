"""Files that are whole or absent, written by one process of a distributed run."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # set by what starts the processes, the first counts


def write_json(path: str | Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write ``content``, in the first process only; returns it."""
    if is_first_process():
        with write_then_rename(path) as part:
            part.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return content


@contextlib.contextmanager
def write_then_rename(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of ``path`` at the end: a kill leaves no half of a file there."""
    part = Path(f"{path}.part")
    yield part
    part.replace(path)


def is_first_process() -> bool:
    """Whether this process is alone, or the one of a distributed run that writes its files."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return next((int(os.environ[name]) for name in RANKS if name in os.environ), 0) == 0
