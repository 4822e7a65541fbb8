"""How far the compiler's NEON is from hand-written NEON, in executed instructions: python tests/replay/neon.py

Each operator's benchmark, at a small shape, is recorded and repeated as replay.py does, under qemu with count.c and, where there is
valgrind, here. Printed by operator, forward and backward, in float32:

- arm64: instructions in the operators' own functions, templates of the standard library on their types included;
- by hand: the same with NEON intrinsics at their best. Addresses, loops and branches stay, as the compiler writes them in both
  cases. Blocks that work on single floats alone count a quarter, as do single floats elsewhere: four go into a vector. Moves and
  shuffles of floats are free, and so are floats on the stack;
- arithmetic: what is left of that if addresses, loops and branches were free as well. Nobody can write this;
- plain, avx2: instructions on x86-64 of the same source with vectors of 16 bytes, and with 32 bytes.

--kernels prints the functions of each operator, too.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path += [str(Path(__file__).resolve().parents[2] / "benchmarks"), str(Path(__file__).resolve().parent)]

import replay
from harness import Contender, load, operator_benchmarks, results

# operator -> (shape of its benchmark, what is smaller here)
SHAPES: dict[str, list[tuple[str, dict]]] = {
    "attention_means": [("fpn 2x256x25x38", {})],
    "frozen_stem": [("K160 3x112x112 C64", {"k": 2})],
    "imitation_mask": [("800x1024 N152757 G40", {"image": (400, 512), "g": 20})],
    "kd_sigmoid_loss": [("bce K4096 C80", {"k": 480}), ("l1norm K4096 C80", {"k": 480})],
    "kd_softmax_loss": [("K480 C80+1", {})],
    "masked_feature_loss": [("fpn 2x256x25x38", {})],
    "matched_feature_loss": [("ssd300 K480 64x28x28 P8", {"k": 60, "g": 8}), ("small K16 64x7x7 P1", {"k": 480})],
    "roi_avg_pool": [("ssd300 64x75x75 K480 S28 P8", {"images": 2, "k": 60, "g": 8})],
    "roi_crop": [("ssd300 3x300x300 K480 S112", {"images": 2, "k": 60, "g": 8})],
    "roi_feature_loss": [
        ("ssd300 3x300x300 K480 S112 P4", {"images": 2, "k": 60, "g": 8}),
        ("ssd300 64x75x75 K480 S28 P8 +map", {"images": 2, "k": 60, "g": 8}),
    ],
}
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\t(\S+)\s*([^/\n]*)")
FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
MOVES = re.compile(r"(mov|movi|mvni|dup|ins|umov|smov|ext|rev\w*|zip\d|uzp\d|trn\d|tbl|tbx|fmov|xtn2?|[su]xtl2?)$")
NAME = re.compile(r"cls2det::(?:plain::|\(anonymous namespace\)::)?(\w+)")
OWN = re.compile(r"cls2det::")


class Counts(NamedTuple):
    executed: float
    by_hand: float
    arithmetic: float


class Instruction(NamedTuple):
    function: str
    operation: str
    operands: str

    @property
    def on_vectors(self) -> bool:
        return bool(re.search(r"\bv\d+\.|\bq\d", self.operands))

    @property
    def on_floats(self) -> bool:
        return bool(re.search(r"\b[sd]\d", self.operands)) and not self.on_vectors

    @property
    def share_by_hand(self) -> float:
        if not (self.on_vectors or self.on_floats):
            return 1.0
        if MOVES.match(self.operation) or "[sp" in self.operands:
            return 0.0
        return 0.25 if self.on_floats else 1.0


def instructions_of(program: Path) -> dict[int, Instruction]:
    """The instructions of the operators' own functions, by address."""
    dump = ["aarch64-linux-gnu-objdump", "-dC", "--no-show-raw-insn", str(program)]
    instructions, name = {}, ""
    for line in subprocess.run(dump, check=True, capture_output=True, text=True).stdout.splitlines():
        if function := FUNCTION.match(line):
            name = function[1]
        elif OWN.search(name) and (instruction := INSTRUCTION.match(line)):
            instructions[int(instruction[1], 16)] = Instruction(name, instruction[2], instruction[3])
    return instructions


def short(function: str) -> str:
    match = NAME.search(function)
    return match[1] + (", a part" if "{lambda" in function else "") if match else function


def plugin(folder: Path) -> Path:
    """count.c, compiled."""
    library = folder / "count.so"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", str(replay.HERE / "count.c"), "-o", str(library)], check=True)
    return library


def on_arm64(program: Path, instructions: dict[int, Instruction], counter: Path, calls: Path) -> dict[str, Counts]:
    """Counts by function."""
    report = calls.with_suffix(".counts")
    command = [*replay.EMULATOR, "-plugin", f"{counter},out={report}", str(program)]
    with calls.open("rb") as content:
        subprocess.run(command, stdin=content, stdout=subprocess.DEVNULL, check=True)
    counts: dict[str, Counts] = {}
    for line in report.read_text().splitlines():
        address, length, executions = line.split()
        block = [instructions[at] for i in range(int(length)) if (at := int(address, 16) + 4 * i) in instructions]
        quarter = any(one.on_floats for one in block) and not any(one.on_vectors for one in block)
        for one in block:
            by_hand = one.share_by_hand if not quarter else 0.25
            arithmetic = one.share_by_hand if one.on_vectors or one.on_floats else 0.0
            times, before = int(executions), counts.get(one.function, Counts(0, 0, 0))
            counts[one.function] = Counts(
                before.executed + times, before.by_hand + times * by_hand, before.arithmetic + times * arithmetic
            )
    return counts


def on_x86(program: Path, calls: Path, level: str) -> int:
    """Instructions of the operators' own functions."""
    report = calls.with_suffix(".callgrind")
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={report}", str(program)]
    with calls.open("rb") as content:
        env = os.environ | {"CLS2DET_SIMD": level}
        subprocess.run(command, stdin=content, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, env=env)
    annotate = ["callgrind_annotate", "--threshold=100", str(report)]
    lines = subprocess.run(annotate, check=True, capture_output=True, text=True).stdout.splitlines()
    rows = [re.match(r"^\s*([\d,]+) (?:\([^)]*\))?\s*\S*?:(.*?)(?: \[[^\]]*\])?$", line) for line in lines]
    return sum(int(row[1].replace(",", "")) for row in rows if row and OWN.search(row[2]))


def record(operator: str, name: str, smaller: dict, path: Path) -> None:
    benchmark = load(operator_benchmarks()[operator])
    benchmark.SHAPES = {name: benchmark.SHAPES[name] | smaller}
    workload = benchmark.workload(name, "cpu")
    with (recorder := replay.Recorder()):
        results(Contender(workload, workload.function, "native", bool(workload.leaves)))
    path.write_bytes(recorder.content())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operators", nargs="*", default=list(SHAPES), help="default: all of them")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--folder", type=Path, help="where objects are kept; default: nowhere")
    options = parser.parse_args()
    if reason := replay.missing():
        raise SystemExit(f"arm64 cannot be emulated: {reason}")
    sources = sorted((replay.ROOT / "csrc/cpu").glob("*.cpp"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        program = replay.build(folder / "arm64", sources)
        here = replay.build(folder / "here", sources, "g++") if shutil.which("valgrind") else None
        instructions, counter = instructions_of(program), plugin(folder)
        print(
            "| operator | arm64 | by hand | ratio | arithmetic | ratio | plain | avx2 |\n|---|---:|---:|---:|---:|---:|---:|---:|"
        )
        for operator in options.operators:
            for name, smaller in SHAPES[operator]:
                calls = folder / "calls"
                record(operator, name, smaller, calls)
                by_function = on_arm64(program, instructions, counter, calls)
                total = Counts(*map(sum, zip(*by_function.values(), strict=True)))
                others = [f"{on_x86(here, calls, level):,}" if here else "" for level in ("plain", "avx2")]
                bounds = [text for bound in total[1:] for text in (f"{bound:,.0f}", f"{total.executed / bound:.2f}")]
                print(f"| {operator}, {name} | {' | '.join([f'{total.executed:,.0f}', *bounds, *others])} |", flush=True)
                for function, count in sorted(by_function.items(), key=lambda item: -item[1].executed)[: 8 * options.kernels]:
                    print(f"    {short(function)}: {count.executed:,.0f}, by hand {count.by_hand:,.0f}")


if __name__ == "__main__":
    main()
