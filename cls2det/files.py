"""Files that are whole or absent, written by one process of a distributed run."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed

from cls2det.errors import some

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # set by what starts the processes, the first counts
_processes = 1  # that run this command together
Content = TypeVar("Content", bound=dict[str, Any] | list[Any])


def write_json(path: str | Path, content: Content, indent: int | None = 2) -> Content:
    """Write ``content``, in the first process only; returns it.

    Raises:
        ValueError: a number is NaN or infinite, which JSON has no word for; nothing is written
        OSError: the file cannot be written
    """
    if is_first_process():
        try:
            text = json.dumps(content, indent=indent, allow_nan=False)
        except ValueError:
            places = [f"{place} is {value}" for place, value in _not_finite(content)]
            if not places:
                raise
            raise ValueError(f"{path} is not written: {some(places)}, expected finite numbers") from None
        with write_then_rename(path) as part:
            part.write_text(text, encoding="utf-8")
    return content


def write_torch(path: str | Path, content: Any) -> None:
    """``torch.save`` of ``content``, in this process. Raises OSError if the file cannot be written."""
    buffer = io.BytesIO()  # torch's own writer hides why a file cannot be written
    torch.save(content, buffer)
    with write_then_rename(path) as part:
        part.write_bytes(buffer.getbuffer())


def load_torch(path: str | Path) -> Any:
    """``torch.load`` on the CPU, of tensors and plain values alone. Raises ValueError where a part of the file is damaged.

    torch does not compare the parts with the checksums that the file holds: one bit that a disk has lost gives another network.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            try:
                damaged = archive.testzip()
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise ValueError(f"the file is damaged: {error}") from None
        if damaged:
            raise ValueError(f"the file is damaged: its part {damaged} does not have the checksum that was written")
    return torch.load(path, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def write_then_rename(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of ``path`` at the end.

    A kill, a full disk or a loss of power leave the old file there, or none, and no half of one: the temporary file lies in the same
    folder, and it is on the disk before it is renamed. What a kill leaves of it is overwritten the next time.

    Raises:
        OSError: it cannot be written; the message names the file, and how much room its disk has
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        _flush(part)
        part.replace(path)
        with contextlib.suppress(OSError):  # some network disks cannot flush a folder
            _flush(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cannot_write(path: Path, error: OSError) -> OSError:
    """The error of the same kind that names the file, and how much room its disk has."""
    room = ""
    with contextlib.suppress(OSError):
        room = f" (its disk has {shutil.disk_usage(path.parent).free / 2**20:.0f} MiB free)"
    return type(error)(f"{path} cannot be written: {error.strerror or error}{room}; what was there before is kept")


def make_folder(folder: str | Path, argument: str = "out") -> None:
    """Make the folder, and see that a file can be written there, before hours are spent on what is to be written.

    Raises:
        OSError: it is a file, or nothing can be written there
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{argument}: {folder} is a file, expected a folder; give another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
            probe.flush()
    except OSError as error:
        raise type(error)(
            f"{argument}: nothing can be written to the folder {folder}: {error.strerror}; give another folder, or make room there"
        ) from None


def not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """Names of the floating-point tensors that hold a NaN or an infinity."""
    floats = {name: value for name, value in tensors.items() if torch.is_tensor(value) and value.is_floating_point()}
    checks = [value.detach().isfinite().all() for value in floats.values()]
    # one wait for the GPU, not one per tensor
    if not checks or torch.stack([check.to(checks[0].device) for check in checks]).all():
        return []
    return [name for name, check in zip(floats, checks, strict=True) if not check]


def _not_finite(content: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Place and value of every number that is none."""
    if isinstance(content, float) and not math.isfinite(content):
        yield place, content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from _not_finite(value, f"{place}.{name}".lstrip("."))
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            yield from _not_finite(value, f"{place}[{number}]")


def start_processes(count: int) -> None:
    """Say how many processes run this command together; before that, and for commands that never do, it is one."""
    global _processes
    _processes = count


def is_first_process() -> bool:
    """Whether this process is alone, or the one of a distributed run that writes its files.

    A variable that a shell or a scheduler has set means nothing to a command that runs alone.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    name = next((name for name in RANKS if name in os.environ), None) if _processes > 1 else None
    if name is None:
        return True
    if not os.environ[name].isdecimal():
        raise ValueError(f"the variable {name} is {os.environ[name]!r}, expected the number of a process")
    return int(os.environ[name]) == 0
