"""The file of a bank: one safetensors file, which is read as maps of memory and written piece by piece.

    8 bytes: length of the header | header: JSON, padded with blanks to whole pages | tensors, one after another

Any reader of safetensors reads it; none is needed, and nothing in it is executed. Of N annotations:

=====================  ==================  ==============================================================================
tensor                 shape, dtype        content
=====================  ==================  ==============================================================================
``annotation_ids``     (N,) int64          of the annotation file, ascending
``labels``             (N,) int64          from 1, in the order of ``classes``
``logits``             (N, V, F, C) fp16   V views; F is 1, or 2: as it is, and mirrored; C columns, with that of the
                                           background, if the teacher has one, the last
``embeddings``         (N, V, F, D) fp16   of an encoder, of length 1
=====================  ==================  ==============================================================================

The header's ``__metadata__`` has the ``format``, its ``version``, and ``about``: JSON with all else, see ``bank.Bank.about``.

While it is written, the file is called ``<name>.part``, and a byte for each step of the work, 1 where it is done, follows the
tensors. So a command that was stopped goes on, with any number of processes of one machine.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cls2det.files import cannot_write

FORMAT, VERSION = "cls2det bank", 1
PAGE, SPARE = 4096, 4096  # bytes; what is only known at the end has room in the spare ones
DTYPES: dict[str, np.dtype[Any]] = {"I64": np.dtype("<i8"), "F16": np.dtype("<f2")}
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # word for the dtype, and shape, by name
ANEW = "make it anew with `cls2det bank`"


class Header(NamedTuple):
    """What stands before the tensors.

    Attributes:
        about: see ``bank.Bank.about``
        places: dtype, shape and offset in the file of each tensor
        begin, end: of all tensors in the file, in bytes
    """

    about: dict[str, Any]
    places: dict[str, tuple[np.dtype, tuple[int, ...], int]]
    begin: int
    end: int


def read_header(path: str | Path) -> Header:
    """
    Raises:
        FileNotFoundError: nothing at ``path``
        ValueError: no bank, one of a later version, or a damaged header
    """
    path = Path(path)
    if not path.is_file():
        part = " (there is one that is not finished: the same `cls2det bank` goes on with it)" if _part(path).is_file() else ""
        raise FileNotFoundError(f"no bank at {path}{part}")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= 100 * 2**20 or length > path.stat().st_size:
            raise ValueError(f"{path} is not a bank: expected a safetensors file that `cls2det bank` wrote")
        words = file.read(length)
    begin, places, end = 8 + length, {}, 0
    try:
        header = json.loads(words)
        metadata = header.pop("__metadata__", {})
        version = int(metadata["version"]) if metadata.get("format") == FORMAT else 0
        about = json.loads(metadata["about"]) if version else {}
        for name, entry in header.items() if 0 < version <= VERSION else ():
            first, end = entry["data_offsets"]
            places[name] = (DTYPES[entry["dtype"]], tuple(entry["shape"]), begin + first)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a bank, or its header is damaged ({type(error).__name__}); {ANEW}") from None
    if not version:
        raise ValueError(f"{path} is not a bank: expected a safetensors file that `cls2det bank` wrote")
    if version > VERSION:
        raise ValueError(
            f"{path} is a bank of version {version}, and this cls2det reads versions up to {VERSION}; take a later one"
        )
    return Header(about, places, begin, begin + end)


def open_bank(path: str | Path, *, check: bool = True) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """``about``, and the tensors as maps of memory: what is not read takes no memory.

    Args:
        path: of a finished bank
        check: read all of it once and compare it with its digest, about a second per GB

    Raises:
        as ``read_header``; ValueError for a file that was cut or changed
    """
    header, size = read_header(path), Path(path).stat().st_size
    if size != header.end:
        what = "cut" if size < header.end else "longer than it was written"
        raise ValueError(f"{path} is {what}: it has {size} bytes, its header says {header.end}; copy it again, or {ANEW}")
    if check and header.about.get("digest") != _digest(path, header):
        raise ValueError(f"{path} is damaged: its content does not have the digest that was written; copy it again, or {ANEW}")
    # private maps: what is written to them goes nowhere, and torch warns of read-only ones
    return header.about, _maps(Path(path), header, "c")


class Part:
    """A bank that is being written, open in this process.

    Attributes:
        arrays: the tensors, to be written to
        done: (steps,), 1 for each step of the work whose rows are on the disk
    """

    def __init__(self, path: str | Path, steps: int):
        self.path, self.file = Path(path), _part(Path(path))
        self.header = read_header(self.file)
        self.arrays = _maps(self.file, self.header, "r+")
        self.done = np.memmap(self.file, np.uint8, "r+", self.header.end, (steps,))

    def mark(self, steps: Sequence[int]) -> None:
        """Say that the rows of these steps are whole, after they are on the disk."""
        for array in self.arrays.values():
            array.flush()  # type: ignore[attr-defined] # a map of memory
        self.done[list(steps)] = 1
        self.done.flush()

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write the whole header, with a digest of everything, and give the file its name."""
        final = {name: value for name, value in about.items() if name != "digest"}
        for array in self.arrays.values():
            array.flush()  # type: ignore[attr-defined]
        header = self.header._replace(about=final)
        words = _words({**final, "digest": _digest(self.file, header)}, self.header.places, self.header.begin)
        with self.file.open("r+b") as file:
            file.write(words)
            file.truncate(self.header.end)
            file.flush()
            os.fsync(file.fileno())
        self.file.replace(self.path)


def begin(
    path: str | Path, about: Mapping[str, Any], shapes: Shapes, steps: int, fill: Callable[[dict[str, np.ndarray]], None]
) -> bool:
    """Make the file of a bank that is to be written, with its full size, or find the one of an earlier call; whether it did.

    Args:
        path: of the bank
        about: all that decides what is written; the values of a finished bank that are measured at the end are added then
        shapes: of the tensors
        steps: of the work
        fill: writes what is known at the start

    Raises:
        FileExistsError: an unfinished bank of something else
        OSError: there is no room
    """
    if (part := _part(Path(path))).is_file():
        check_same(path, about)
        return True
    places, offset = {}, 0
    for name, (word, shape) in shapes.items():
        places[name] = (DTYPES[word], shape, offset)
        offset += math.prod(shape) * DTYPES[word].itemsize
    start = -(-(len(_words(about, places, 0)) + SPARE) // PAGE) * PAGE
    places = {name: (dtype, shape, start + first) for name, (dtype, shape, first) in places.items()}
    new = part.with_name(f"{part.name}.new")
    try:
        with new.open("wb") as file:
            file.write(_words(about, places, start))
            file.truncate(start + offset + steps)
            if hasattr(os, "posix_fallocate"):  # a full disk is noticed here, and not as a killed process later
                os.posix_fallocate(file.fileno(), 0, start + offset + steps)
        fill(_maps(new, read_header(new), "r+"))
        new.replace(part)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise cannot_write(Path(path), error) from error
    return False


def is_begun(path: Path) -> bool:
    """Whether there is a bank, finished or not."""
    return path.is_file() or _part(path).is_file()


def check_same(path: str | Path, about: Mapping[str, Any]) -> None:
    """FileExistsError if the bank, or what was begun of it, was written with other options or on other data."""
    file, what = Path(path), "a bank"
    if not file.is_file():
        file, what = _part(file), "the beginning of a bank"
    if file.is_file() and not is_same(read_header(file).about, about):
        raise FileExistsError(f"{file} is {what} with other options or data; remove it, or give another --out")


def is_same(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a file was written with these options, on these data; what was measured at its end does not count."""
    return {name: then.get(name) for name in now} == dict(json.loads(json.dumps(now)))


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _words(about: Mapping[str, Any], places: Mapping[str, tuple[np.dtype, tuple[int, ...], int]], begin: int) -> bytes:
    """The header, with its length; ``begin`` bytes of it, or as few as there are for 0."""
    names = {dtype: word for word, dtype in DTYPES.items()}
    tensors = {
        name: {
            "dtype": names[dtype],
            "shape": list(shape),
            "data_offsets": [first - begin, first - begin + math.prod(shape) * dtype.itemsize],
        }
        for name, (dtype, shape, first) in places.items()
    }
    metadata = {"format": FORMAT, "version": str(VERSION), "about": json.dumps(about)}
    text = json.dumps({"__metadata__": metadata, **tensors}).encode()
    length = begin - 8 if begin else len(text)
    if len(text) > length:
        raise ValueError(f"the header of a bank has {len(text)} bytes, and room for {length}")
    return length.to_bytes(8, "little") + text.ljust(length)


def _maps(path: Path, header: Header, mode: Any) -> dict[str, np.ndarray]:
    return {
        name: np.memmap(path, dtype, mode, offset, shape) if math.prod(shape) else np.zeros(shape, dtype)
        for name, (dtype, shape, offset) in header.places.items()
    }


def _digest(path: str | Path, header: Header) -> str:
    """Of what the header says, but for the digest itself, and of all tensors."""
    about = {name: value for name, value in header.about.items() if name != "digest"}
    shapes = {name: [dtype.str, *shape] for name, (dtype, shape, _) in header.places.items()}
    digest = blake2b(json.dumps([about, shapes], sort_keys=True).encode(), digest_size=16)
    with Path(path).open("rb") as file:
        file.seek(header.begin)
        left = header.end - header.begin
        while left and (block := file.read(min(left, 1 << 22))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
