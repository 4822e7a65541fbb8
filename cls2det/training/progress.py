"""Progress on the screen: one look for every bar, and lines now and then where there is no terminal, as in a log."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Progress = Callable[[int, int, str], None]  # (step, steps, text)
FIRST, EVERY = 10.0, 60.0  # seconds before the first line of a log, and between the others
NOUNS = {"training": "steps", "evaluating": "images", "predicting": "images", "scenes": "images", "bank": "images"}


class Screen(Console):
    """A console that goes quiet when nobody reads it any more: a closed pipe must not end a training."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in buffers goes there


def is_live(console: Console) -> bool:
    """Whether a bar can move there. A variable such as FORCE_COLOR, which makes rich see a terminal in a log, does not count."""
    return console.is_jupyter or (console.is_interactive and console.file.isatty())


@contextlib.contextmanager
def progress_bar(name: str, progress: Progress | None = None) -> Iterator[Progress]:
    """``progress``, or, if it is None, a bar on the screen; where there is no terminal, lines now and then, and one at the end."""
    if progress:
        yield progress
        return
    screen = Screen()
    if not is_live(screen):
        lines = log_lines(screen)
        yield lambda done, total, text: lines(name, done, total, text, ends=True)
        return
    with progress_display(screen) as display:
        bar = display.add_task(name, total=None, text="")
        yield lambda done, total, text: display.update(bar, completed=done, total=total or None, text=text)


def progress_display(console: Console) -> rich.progress.Progress:
    """The look of every progress bar; nothing where no bar can move."""
    return rich.progress.Progress(
        TextColumn("  {task.description:<24}"),
        BarColumn(32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[text]}"),
        console=console,
        transient=True,
        disable=not is_live(console),
    )


def log_lines(console: Console, clock: Callable[[], float] = time.monotonic) -> Callable[..., None]:
    """``report(name, done, total, text, ends=False)``, which prints a line now and then; none where a bar can move.

    ``ends`` prints the last step of all too. A count that falls, or another total, is a new stretch of work under the name.
    """
    began: dict[str, tuple[float, int, int]] = {}  # time, count and total at the start of a stretch
    due: dict[str, float] = {}

    def report(name: str, done: int, total: int, text: str, ends: bool = False) -> None:
        if is_live(console):
            return
        now = clock()
        last = began.get(name)
        if last is None or done < last[1] or total != last[2]:
            began[name] = last = (now, done, total)
            due.setdefault(name, now + FIRST)
        is_end = ends and bool(total) and done >= total
        if now < due[name] and not is_end:
            return
        due[name] = now + EVERY
        seconds, steps = now - last[0], done - last[1]
        times = (
            f"{seconds:.0f} s" if is_end or not steps else f"{seconds:.0f} s, {(total - done) * seconds / steps:.0f} s left"
        )
        count = f"{done} of {total}" if total else str(done)
        parts = [f"{count} {NOUNS.get(name, '')}".strip(), *([text] if text and text != name else []), times]
        console.print(f"{name}: {', '.join(parts)}", highlight=False, markup=False, soft_wrap=True)

    return report
