"""Run by test_faulty_runs.py in a process of its own: a training that is killed again and again, then runs to its end.

    python killed_run.py KILLS SEED LONGEST cls2det-arguments …

Each start is a fork of this process, which has imported everything: a kill costs no seconds of imports. The fork is killed with
SIGKILL after a random time of up to LONGEST seconds. Prints a line of JSON: how many kills there were, how many of them left a part
of a file behind, and the exit status of the last start.
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
    draw, killed, parts = random.Random(seed), 0, 0
    out = Path(arguments[arguments.index("--out") + 1])
    while killed < kills:
        process = start(arguments)
        time.sleep(draw.uniform(0, longest))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"it ended by itself ({status}) after {killed} kills: the run is too short")
        killed += 1
        parts += any(out.rglob("*.part"))
    _, status = os.waitpid(start(arguments), 0)
    return {"kills": killed, "parts": parts, "status": os.waitstatus_to_exitcode(status)}


if __name__ == "__main__":
    assert cls2det.commands.distill  # imported here, not in every fork
    number, first_seed, seconds, *words = sys.argv[1:]
    print(json.dumps(kill_and_restart(int(number), int(first_seed), float(seconds), words)))
