"""Progress on the screen: one look for every bar."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Progress = Callable[[int, int, str], None]  # (step, steps, text)


class Screen(Console):
    """A console that goes quiet when nobody reads it any more: a closed pipe must not end a training."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in buffers goes there


@contextlib.contextmanager
def progress_bar(name: str, progress: Progress | None = None) -> Iterator[Progress]:
    """``progress``, or, if it is None, a bar on the screen."""
    if progress:
        yield progress
        return
    with progress_display(Screen()) as display:
        bar = display.add_task(name, total=None, text="")
        yield lambda done, total, text: display.update(bar, completed=done, total=total or None, text=text)


def progress_display(console: Console) -> rich.progress.Progress:
    """The look of every progress bar."""
    return rich.progress.Progress(
        TextColumn("  {task.description:<24}"),
        BarColumn(32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[text]}"),
        console=console,
        transient=True,
    )
