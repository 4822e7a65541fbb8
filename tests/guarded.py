"""Fences around every CPU tensor that is allocated inside a block: see guarded_allocator.cpp."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
from collections.abc import Iterator
from pathlib import Path

import torch

import emulated


@functools.cache
def library() -> ctypes.CDLL:
    include, libraries = (Path(torch.__file__).parent / name for name in ("include", "lib"))
    flags, link = ["-isystem", str(include)], ["-shared", f"-L{libraries}", "-lc10"]
    source = Path(__file__).with_name("guarded_allocator.cpp")
    loaded = ctypes.CDLL(str(emulated.compile_sources(emulated.BUILDS["plain"], [], [source], flags, link, "guarded.so")))
    for function in (loaded.guard_allocated, loaded.guard_alive, loaded.guard_damaged):
        function.restype = ctypes.c_long
    return loaded


@contextlib.contextmanager
def guarded_allocations() -> Iterator[None]:
    """Fails at the end if a byte outside of a tensor has changed. Tensors that outlive the block are not looked at."""
    library().guard_start()
    try:
        yield
    finally:
        if library().guard_alive() > 0:
            gc.collect(0)  # what this block left in cycles
        library().guard_stop()
    assert library().guard_allocated() > 0, "no tensor was allocated with fences"
    assert library().guard_damaged() == 0, f"{library().guard_damaged()} bytes outside of tensors were overwritten"
