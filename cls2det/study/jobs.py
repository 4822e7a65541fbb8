"""Jobs in processes of their own with one progress display: two small trainings side by side use two cores well.

A job is a function that can be pickled, with its arguments; it gets one more, ``progress(step, steps, text)``.
Each runs in a fresh process, so a job that is killed leaves nothing behind but its files.

``concurrent.futures.ProcessPoolExecutor`` and joblib do not serve here: neither says which job a killed process had, nor ends
the running ones at Ctrl-C, and a fresh process per job (``max_tasks_per_child``) needs Python 3.11.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from cls2det.errors import JobFailed
from cls2det.training.progress import log_lines, progress_display


@dataclasses.dataclass(frozen=True)
class Job:
    """``function(*arguments, progress=...)`` under a name."""

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]


def run_jobs(jobs: Sequence[Job], workers: int, console: Console, gpus: Sequence[str] = ()) -> None:
    """Run the jobs, ``workers`` at a time, each with its share of the cores and one of the ``gpus``, if any are named.

    A set OMP_NUM_THREADS is each job's number of threads.

    Ctrl-C ends those that run and raises KeyboardInterrupt.

    Raises:
        JobFailed: a job raised an error, or its process was killed; the other jobs are ended
    """
    context = multiprocessing.get_context("spawn")
    messages, waiting = context.Queue(), list(jobs)
    running: dict[str, multiprocessing.process.BaseProcess] = {}
    free_places, places = list(range(workers)), {}  # a job's place decides its GPU
    with progress_display(console) as display, _threads(workers) as threads:
        lines = log_lines(console)
        bars = {job.name: display.add_task(escape(job.name), total=None, visible=False, text="") for job in jobs}
        try:
            while waiting or running:
                while waiting and free_places:
                    job = waiting.pop(0)
                    places[job.name] = free_places.pop(0)
                    if gpus:  # read by the process when it imports torch
                        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[places[job.name] % len(gpus)]
                    # Not a daemon: a job may have loader workers of its own.
                    running[job.name] = context.Process(target=_work, args=(job, threads, messages), name=job.name)
                    running[job.name].start()
                    display.update(bars[job.name], text="starting")
                    display.reset(bars[job.name], visible=True)
                try:
                    name, kind, content = messages.get(timeout=0.5)
                except queue.Empty:
                    for name, process in running.items():
                        if not process.is_alive() and messages.empty():
                            raise JobFailed(f"{name} ended with exit code {process.exitcode} and no message") from None
                    continue
                if kind == "failed":
                    raise JobFailed(f"{name} failed:\n{content}")
                if kind == "progress":
                    step, steps, text = content
                    display.update(bars[name], completed=step, total=steps or None, text=text)
                    lines(name, step, steps, text)
                else:
                    running.pop(name).join()
                    free_places.append(places[name])
                    display.update(bars[name], visible=False)
                    console.print(f"  [green]✓[/] {escape(name)}  [dim]{display.tasks[bars[name]].elapsed or 0:.0f} s[/]")
        finally:
            for process in running.values():
                process.kill()  # checkpoints are written whole or not at all; nothing else needs care
                process.join()


@contextlib.contextmanager
def _threads(workers: int) -> Iterator[int]:
    """How many a job has, set where its process reads it when it imports torch.

    Threads that wait for each other at the end of an operator sleep: by default they spin, and where another program has one of
    the cores, all but it spin until that program's turn is over. Beside busy neighbours on two cores, a compact Faster R-CNN
    trained 3 images/s with two threads that spin, 17 with two that sleep, and 32 with one.
    """
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
    wanted = (before["OMP_NUM_THREADS"] or "").split(",")[0].strip()  # a list is of nested levels
    threads = int(wanted) if wanted.isdecimal() and int(wanted) else max(1, cores() // workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        yield threads
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work(job: Job, threads: int, messages: multiprocessing.queues.Queue) -> None:
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
    """A parent that was killed could not end its jobs, which would write into folders that a restart takes."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
