"""Fences around every CPU tensor that is allocated inside a block: see guarded_allocator.cpp."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import emulated


@functools.cache
def allocator() -> ModuleType:
    source = Path(__file__).with_name("guarded_allocator.cpp")
    flags = ["-fvisibility=hidden", *emulated.binding_flags()]
    link = [*emulated.torch_libraries(), "-lc10"]
    return emulated.import_file(
        emulated.compile_sources(emulated.BUILDS["plain"], [], [source], flags, link, "guarded_allocator.so")
    )


@contextlib.contextmanager
def guarded_allocations() -> Iterator[None]:
    """Fails at the end if a byte outside of a tensor has changed. Tensors that outlive the block are not looked at."""
    guard = allocator()
    guard.start()
    try:
        yield
    finally:
        if guard.alive() > 0:
            gc.collect(0)  # what this block left in cycles
        guard.stop()
    assert guard.allocated() > 0, "no tensor was allocated with fences"
    assert guard.damaged() == 0, f"{guard.damaged()} bytes outside of tensors were overwritten"
