"""The folder of a run belongs to one run: its options are written there, and a run with others is refused.

A restart with the same options goes on from the last checkpoint. ``run_record`` gives the options that count.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cls2det.files import write_json
from cls2det.training.settings import CLAIMED, PretrainRun

Record = dict[str, Any]  # plain values, as JSON has them

APART = ("out", "progress", "run", "allow_poor_teacher")  # options that may differ between a run and its restart


def run_record(command: str, options: Mapping[str, Any], run: PretrainRun) -> Record:
    """The identity of a run: its command, its options, and those of ``run`` that change its steps (``CLAIMED``)."""
    record = {name: _plain(value) for name, value in options.items() if name not in APART}
    return {"command": command, **record, "run": {name: getattr(run, name, None) for name in CLAIMED}}


def claim(folder: str | Path, record: Record, rename: Callable[[Record], Record] | None = None) -> None:
    """Make ``folder`` the place of the run with this record. Raises as ``check_claim``."""
    if not check_claim(folder, record, rename):
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / "options.json", record)


def check_claim(folder: str | Path, record: Record, rename: Callable[[Record], Record] | None = None) -> bool:
    """Whether ``folder`` is the place of the run with this record; False for a free one.

    Args:
        folder: of the run
        record: see ``run_record``
        rename: brings a record that an older version wrote to today's names of the options; None compares it as it is

    Raises:
        FileExistsError: the folder holds a run with another record
        ValueError: its options.json is damaged
    """
    file = Path(folder) / "options.json"
    if not file.is_file():
        return False
    existing = _read(file)
    if rename is not None:
        existing = rename(existing)
    names = sorted(name for name in record.keys() | existing.keys() if record.get(name) != existing.get(name))
    if names:
        raise FileExistsError(f"{folder} holds a run with other options ({', '.join(names)}); give another --out or remove it")
    return True


def _read(file: Path) -> Record:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); give another --out, or remove the folder") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no options; give another --out, or remove the folder")
    return content


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    return json.loads(json.dumps(value, default=str))
