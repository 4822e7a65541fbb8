"""Run by test_faulty_runs.py in a process of its own: a training that is killed again and again, then runs to its end.

    python killed_run.py KILLS SEED LONGEST cls2det-arguments …

Each start is a fork of this process, which has imported everything: a kill costs no seconds of imports. The fork is killed with
SIGKILL: every other time up to LONGEST seconds after its start, and otherwise up to 0.2 seconds after it has written a checkpoint, so
that many kills fall into the steps and into the writing of the next one. Prints a line of JSON: how many kills there were, how many
of them came after a new checkpoint, how many left a part of a file behind, and the exit status of the last start.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import cls2det.commands.distill
from cls2det.cli import main

torch.set_num_threads(1)


def start(arguments: list[str]) -> int:
    process = os.fork()
    if process:
        return process
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os._exit(main(arguments))


def kill_and_restart(kills: int, seed: int, longest: float, arguments: list[str]) -> dict[str, int]:
    draw, late, parts = random.Random(seed), 0, 0
    out = Path(arguments[arguments.index("--out") + 1])
    for number in range(kills):
        before, process = written(out), start(arguments)
        if number % 2:
            while written(out) == before and os.waitpid(process, os.WNOHANG) == (0, 0):
                time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.2 if number % 2 else longest))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"it ended by itself ({status}) after {number} kills: the run is too short")
        late += written(out) != before
        parts += any(out.rglob("*.part"))
    _, status = os.waitpid(start(arguments), 0)
    return {"kills": kills, "after a checkpoint": late, "parts": parts, "status": os.waitstatus_to_exitcode(status)}


def written(out: Path) -> int:
    """When the checkpoint was written; 0 for none."""
    file = out / "last.ckpt"
    return file.stat().st_mtime_ns if file.exists() else 0


if __name__ == "__main__":
    assert cls2det.commands.distill  # imported here, not in every fork
    number, first_seed, seconds, *words = sys.argv[1:]
    print(json.dumps(kill_and_restart(int(number), int(first_seed), float(seconds), words)))
