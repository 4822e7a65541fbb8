"""The folder of a run belongs to one run: its options are written there, and a run with others is refused.

A restart with the same options goes on from the last checkpoint. The caller decides which options count. Beside them stands
what the run reads: fingerprints of its data, and digests of the weights of teachers and starts. A file may change under its name.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cls2det.data.fingerprint import Fingerprint, changes
from cls2det.errors import some
from cls2det.files import make_folder, write_json

Record = dict[str, Any]  # plain values, as JSON has them


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run reads.

    Attributes:
        data: fingerprints by split
        weights: digests by option, of the files that the option names
    """

    data: dict[str, Fingerprint]
    weights: dict[str, str] = dataclasses.field(default_factory=dict)


def claim(folder: str | Path, record: Record, inputs: Inputs, rename: Callable[[Record], Record] | None = None) -> None:
    """Make ``folder`` the place of the run with this record. Raises as ``check_claim``, and as ``make_folder``."""
    is_claimed = check_claim(folder, record, rename, inputs)
    make_folder(folder)
    if not is_claimed:
        write_json(Path(folder) / "options.json", record | dataclasses.asdict(inputs))


def check_claim(
    folder: str | Path, record: Record, rename: Callable[[Record], Record] | None = None, inputs: Inputs | None = None
) -> bool:
    """Whether ``folder`` is the place of the run with this record; False for a free one, or one with nothing but options.

    Args:
        folder: of the run
        record: the command and the options that make the run what it is
        rename: brings a record that an older version wrote to today's names of the options; None compares it as it is
        inputs: of the run; None, as well as a record of an older version, which has none, compares the options alone

    Raises:
        FileExistsError: the folder holds a run with another record, or with other inputs
        ValueError: its options.json is damaged
    """
    file = Path(folder) / "options.json"
    if not file.is_file():
        return False
    existing = _read(file)
    if rename is not None:
        existing = rename(existing)
    then = Inputs(existing.pop("data", {}), existing.pop("weights", {}))
    names = sorted(name for name in record.keys() | existing.keys() if record.get(name) != existing.get(name))
    if not any((Path(folder) / name).exists() for name in ("last.ckpt", "weights.pt", "report.json")):
        return False  # it made no step worth keeping: a wrong option ended it, say
    if names:
        raise FileExistsError(
            f"{folder} holds a run with other options ({', '.join(names)}): {some(changed_options(existing, record))}. Give another "
            "--out, or remove it"
        )
    if inputs is not None and (texts := _changed_inputs(then, inputs)):
        raise FileExistsError(
            f"{folder} holds a run on something else: {'; '.join(texts)}. Give another --out, or put it back"
        )
    return True


def changed_options(then: Record, now: Record, prefix: str = "") -> list[str]:
    """A text for each option whose value differs; records inside of records one by one."""
    texts = []
    for name in dict.fromkeys((*then, *now)):
        old, new = then.get(name), now.get(name)
        if old != new and (isinstance(old, dict) or isinstance(new, dict)):
            texts += changed_options(old or {}, new or {}, f"{prefix}{name}.")  # None: the record is not there
        elif old != new:
            texts.append(f"{prefix}{name} was {old!r}, is {new!r}")
    return texts


def _changed_inputs(then: Inputs, now: Inputs) -> list[str]:
    texts = []
    for split, parts in now.data.items():
        if changed := changes(then.data.get(split, {}), parts):
            texts.append(f"the data of {split} have other {', '.join(changed)}")
    for option, digest in now.weights.items():
        if then.weights.get(option, digest) != digest:
            texts.append(f"the file of {option} holds other weights than then")
    return texts


def _read(file: Path) -> Record:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); give another --out, or remove the folder") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no options; give another --out, or remove the folder")
    return content
