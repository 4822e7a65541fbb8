"""The folder of a run belongs to one run: its options are written there, and a run with others is refused.

A restart with the same options goes on from the last checkpoint. The caller decides which options count.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cls2det.files import make_folder, write_json

Record = dict[str, Any]  # plain values, as JSON has them


def claim(folder: str | Path, record: Record, rename: Callable[[Record], Record] | None = None) -> None:
    """Make ``folder`` the place of the run with this record. Raises as ``check_claim``."""
    is_claimed = check_claim(folder, record, rename)
    make_folder(folder)
    if not is_claimed:
        write_json(Path(folder) / "options.json", record)


def check_claim(folder: str | Path, record: Record, rename: Callable[[Record], Record] | None = None) -> bool:
    """Whether ``folder`` is the place of the run with this record; False for a free one.

    Args:
        folder: of the run
        record: the command and the options that make the run what it is
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
