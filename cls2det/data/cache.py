"""Large annotation files are parsed once: their arrays lie in a file beside them, which all processes map.

The file has the form of safetensors: the length of a JSON header, the header, arrays one after another. It is made anew where the
annotation file has other bytes than it had, or where this is another version of the package.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from cls2det.data.arrange import arrange, listing_of
from cls2det.data.coco import read_annotations
from cls2det.data.columns import Columns, Heading
from cls2det.data.faults import kept_notes, tell_all
from cls2det.data.quick import read_quickly
from cls2det.files import is_first_process, write_then_rename
from cls2det_ops import __version__

VARIABLE = "CLS2DET_ANNOTATION_CACHE"  # "off", or a folder for all caches; else they lie beside the annotation files
LARGE = 4 * 2**20  # bytes of an annotation file from which on it has a cache; below, parsing takes a third of a second
FORMAT = 1  # raised with whatever changes arrays, notes or the summary within one version of the package
SUFFIX = ".cls2det"
SECOND = 10**9  # nanoseconds; a file system with times in whole seconds does not show a change within the second
TICK = SECOND // 20  # the clock of others moves in steps of up to 10 ms
DTYPES = {"I64": "<i8", "I32": "<i4", "F64": "<f8", "F32": "<f4", "U8": "|u1", "BOOL": "|b1"}  # safetensors' names
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what a damaged file may raise
NAMES = {np.dtype(kind): name for name, kind in DTYPES.items()}


def read_columns(file: Path) -> Columns:
    """The annotations of a file in COCO's format, from its cache where it is large. What was told when they were read is told.

    Raises:
        FileNotFoundError, ValueError: see ``read_annotations``
    """
    is_cached = file.is_file() and file.stat().st_size >= LARGE and os.environ.get(VARIABLE) != "off"
    columns = _cached(file) if is_cached else _read(file)
    tell_all(file, columns.heading.notes["read"])
    return columns


def _read(file: Path) -> Columns:
    """Parse and check the file."""
    with kept_notes(file) as notes:
        listing = read_quickly(file) if file.is_file() and file.stat().st_size >= LARGE else None
        if listing is None:
            notes.clear()  # the checks begin anew
            listing = listing_of(read_annotations(file))
    return arrange(listing, file, notes)


def _cached(file: Path) -> Columns:
    """From the first cache that fits; where there is none, one process makes it, and others wait."""
    places, columns = _places(file), None
    for place in places:
        if (known := _current(place, file)) is not None:
            return known
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            turn = _Turn(place)
        except OSError:
            continue
        with turn:
            if columns is None:
                if (known := _current(place, file)) is not None:
                    return known
                _wait_for_clock(file)
                stamp, digest = _stamp(file), _digest(file)
                columns = _read(file)
                if stamp != _stamp(file):
                    return columns  # it was written to meanwhile
            with contextlib.suppress(OSError):
                _store(place, columns, {"stamp": stamp, "digest": digest})
                return load(place) or columns
    if columns is None:
        columns = _read(file)
    folders = " nor to ".join(dict.fromkeys(str(place.parent) for place in places))
    _log(
        f"{file} is parsed by every process: its cache can be written not to {folders}. Name a folder in the variable {VARIABLE}"
    )
    return columns


def _log(text: str) -> None:
    if is_first_process():
        logging.getLogger(__name__).info(text)


def _places(file: Path) -> list[Path]:
    """Where the cache may lie, best first."""
    digest = blake2b(os.fsencode(file.resolve()), digest_size=8).hexdigest()
    apart = f"{file.stem}-{digest}{SUFFIX}"
    if folder := os.environ.get(VARIABLE):
        return [Path(folder).expanduser() / apart]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    beside = file.with_name(f"{file.name}{SUFFIX}")
    return [beside] if home.startswith("~") else [beside, Path(home) / "cls2det" / apart]


class _Turn(contextlib.AbstractContextManager["_Turn"]):
    """One process at a time. The system ends the turn of a process that is killed.

    What is locked is the file that becomes the cache, so nothing else is left in the folder.

    Raises:
        OSError: nothing can be written or locked there
    """

    def __init__(self, path: Path):
        try:
            import fcntl
        except ImportError:
            raise OSError("this system has no flock") from None
        self.part = path.with_name(f"{path.name}.part")  # of `write_then_rename`
        while True:
            self.handle = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                try:
                    fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    _log(f"another process makes {path}; this one waits for it")
                    fcntl.flock(self.handle, fcntl.LOCK_EX)
            except BaseException:
                os.close(self.handle)
                raise
            if self._is_here():
                return
            os.close(self.handle)  # who had the lock made the cache of it

    def __exit__(self, *_: object) -> None:
        if self._is_here():
            with contextlib.suppress(OSError):
                self.part.unlink()
        os.close(self.handle)

    def _is_here(self) -> bool:
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self.handle), os.stat(self.part))
        return False


def _current(place: Path, file: Path) -> Columns | None:
    """The cache, if the annotation file has the bytes that it was made of.

    The same size, times and inode tell so, as nobody can set the time of a file's last change of status. Where they differ (the
    file was copied, say), a digest does.
    """
    columns = load(place)
    if columns is None:
        return None
    then, now = columns.source["stamp"], _stamp(file)
    if then == now and now[2] % SECOND:
        return columns
    return columns if then[0] == now[0] and columns.source["digest"] == _digest(file) else None


def _stamp(file: Path) -> list[int]:
    state = file.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def _wait_for_clock(file: Path) -> None:
    """Until a change of the file would show in its times."""
    age = time.time_ns() - file.stat().st_ctime_ns
    time.sleep(max(0, min(TICK, TICK - age)) / SECOND)


def _digest(file: Path) -> str:
    digest = blake2b(digest_size=16)
    with file.open("rb") as handle:
        while part := handle.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


def _store(place: Path, columns: Columns, source: dict[str, Any]) -> None:
    heading = {"format": FORMAT, "version": __version__, "source": source, "heading": columns.heading._asdict()}
    arrays = sorted(columns.arrays.items(), key=lambda item: -item[1].itemsize)  # so each begins at a multiple of its items
    header: dict[str, Any] = {"__metadata__": {"cls2det": json.dumps(heading)}}
    start = 0
    for name, array in arrays:
        stop = start + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype], "shape": array.shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with write_then_rename(place) as part, part.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for _, array in arrays:
            handle.write(np.ascontiguousarray(array).data)


def load(place: Path) -> Columns | None:
    """The arrays of a cache, mapped; None where there is none, or one of another version."""
    with contextlib.suppress(*DAMAGED), place.open("rb") as handle:
        start = 8 + int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(min(start - 8, os.fstat(handle.fileno()).st_size)))
        content = json.loads(header.pop("__metadata__")["cls2det"])
        if (content["format"], content["version"]) != (FORMAT, __version__):
            return None
        mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        if len(mapped) != start + max(entry["data_offsets"][1] for entry in header.values()):
            return None
        arrays = {
            name: np.frombuffer(
                mapped, DTYPES[entry["dtype"]], int(np.prod(entry["shape"])), start + entry["data_offsets"][0]
            ).reshape(entry["shape"])
            for name, entry in header.items()
        }
        return Columns(Heading(**content["heading"]), arrays, place.absolute(), content["source"])
    return None
