"""Many small files, read once per process: a command opens a split several times, and there may be 100,000 of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

THREADS = 32  # network disks answer slowly, but many at once
T = TypeVar("T")
R = TypeVar("R")
State = tuple[int, int, int]  # changes with the file

_results: dict[tuple[str, str], tuple[State, Any]] = {}  # by function and path


def side_by_side(function: Callable[[T], R], items: Sequence[T], share: int = 256) -> Iterator[R]:
    """``map`` by threads, each with a share of the items."""
    if len(items) <= share // 8:
        yield from map(function, items)
        return
    shares = [items[start : start + share] for start in range(0, len(items), share)]
    with ThreadPoolExecutor(THREADS) as pool:
        for results in pool.map(lambda part: [function(item) for item in part], shares):
            yield from results


def read_once(function: Callable[[str], R], paths: Sequence[str]) -> list[R]:
    """``function(path)`` of each. What it returned before in this process is returned again unless the file has changed.

    Args:
        function: of a module, known by its name; it returns what is wrong with a file, and does not raise. What it returns must
            not be changed
        paths: of the files
    """

    def read(path: str) -> R:
        key = (function.__qualname__, path)
        try:
            status = os.stat(path)
            state = (status.st_mtime_ns, status.st_size, status.st_ino)
        except (OSError, ValueError):  # the function says what is wrong
            return function(path)
        if key in _results and _results[key][0] == state:
            known: R = _results[key][1]
            return known
        result = function(path)
        _results[key] = (state, result)
        return result

    return list(side_by_side(read, paths))
