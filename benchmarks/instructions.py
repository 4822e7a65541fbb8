"""Instructions that each CPU kernel executes, a count that no other work can move: python benchmarks/instructions.py --out FILE

Runs one forward and backward of every operator, at the first shape of its benchmark, under valgrind's callgrind, with one
thread and AVX2 (valgrind knows no AVX-512). Prints {kernel: instructions, those it calls included} as JSON. Takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
KERNEL = re.compile(r"^\s*([\d,]+) .*?cls2det::(?:avx2|plain)::(\w+)<float(?:, float)?>")


def run_all() -> None:
    """The process that valgrind runs."""
    import torch

    from harness import Contender, load, operator_benchmarks, results

    torch.set_num_threads(1)
    for path in operator_benchmarks().values():
        benchmark = load(path)
        workload = benchmark.workload(next(iter(benchmark.SHAPES)), "cpu")
        results(Contender(workload, workload.function, "native", bool(workload.leaves)))


def counts() -> dict[str, int]:
    if missing := [program for program in ("valgrind", "callgrind_annotate") if not shutil.which(program)]:
        raise SystemExit(f"instructions are not counted: no {' and no '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder:
        report = f"{folder}/callgrind.out"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={report}", sys.executable, __file__, "--run"]
        env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]),
        }
        subprocess.run(command, check=True, env=env, stderr=subprocess.DEVNULL)
        annotate = ["callgrind_annotate", "--inclusive=yes", "--threshold=100", report]
        lines = subprocess.run(annotate, check=True, capture_output=True, text=True).stdout.splitlines()
    kernels = [match for match in map(KERNEL.match, lines) if match]
    if not kernels:
        raise SystemExit("instructions are not counted: the library has no names of functions; pip install -e . keeps them")
    return dict(sorted((match.group(2), int(match.group(1).replace(",", ""))) for match in kernels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write; default: print")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        return run_all()
    text = json.dumps(counts(), indent=1) + "\n"
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
