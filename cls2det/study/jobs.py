"""Jobs in worker processes with one progress display: two small trainings side by side use two cores well.

A job is a function that can be pickled, with its arguments; it gets one more, ``progress(step, steps, text)``.
Each runs in a fresh process, so a job that is killed leaves nothing behind but its files.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from cls2det.training.progress import progress_display


@dataclasses.dataclass(frozen=True)
class Job:
    """``function(*arguments, progress=...)`` under a name."""

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]


class JobFailed(RuntimeError):
    """A job ended with an error; the message is its traceback."""


def run_jobs(jobs: Sequence[Job], workers: int, console: Console, gpus: Sequence[str] = ()) -> None:
    """Run the jobs, ``workers`` at a time, each with its share of the cores and one of the ``gpus``, if any are named.

    Ctrl-C ends those that run and raises KeyboardInterrupt.
    """
    context = multiprocessing.get_context("spawn")
    messages, waiting, running = context.Queue(), list(jobs), {}
    places = list(range(workers))  # that are free
    placed: dict[str, int] = {}
    threads = max(1, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) // workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the children when they import torch
    with progress_display(console) as display:
        bars = {job.name: display.add_task(job.name, total=None, visible=False, text="") for job in jobs}
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    job = waiting.pop(0)
                    placed[job.name] = places.pop(0)
                    if gpus:  # read by the child when it imports torch
                        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[placed[job.name] % len(gpus)]
                    # Not a daemon: a job may have loader workers of its own.
                    process = context.Process(target=_work, args=(job, threads, messages), name=job.name)
                    process.start()
                    running[job.name] = process
                    display.update(bars[job.name], visible=True, text="starting")
                    display.reset(bars[job.name], visible=True)
                try:
                    name, kind, content = messages.get(timeout=0.5)
                except queue.Empty:
                    for name, process in running.items():
                        if not process.is_alive() and messages.empty():
                            raise JobFailed(f"{name} ended with exit code {process.exitcode} and no message") from None
                    continue
                if kind == "progress":
                    step, total, text = content
                    display.update(bars[name], completed=step, total=total or None, text=text)
                elif kind == "done":
                    running.pop(name).join()
                    places.append(placed[name])
                    display.update(bars[name], visible=False)
                    console.print(f"  [green]✓[/] {name}  [dim]{display.tasks[bars[name]].elapsed or 0:.0f} s[/]")
                else:
                    raise JobFailed(f"{name} failed:\n{content}")
        finally:
            for process in running.values():
                process.kill()  # checkpoints are written whole or not at all; nothing else needs care
                process.join()


def _work(job: Job, threads: int, messages) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides what to end
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        import torch

        torch.set_num_threads(threads)
        job.function(*job.arguments, progress=lambda *content: messages.put((job.name, "progress", content)))
        messages.put((job.name, "done", None))
    except BaseException:
        messages.put((job.name, "failed", traceback.format_exc()))


def _end_with_parent() -> None:
    """A parent that was killed could not end its jobs; left alone, they would write into folders that a restart takes."""
    multiprocessing.parent_process().join()
    os._exit(1)
