"""The `bench` fixture, and the table at the end: median times, the best baseline, ratios and memory."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # for harness and shapes, whatever the import mode

import cls2det_ops
import memory
from cls2det_ops import _library
from harness import contenders, medians, rounds_for, warmed_and_checked

ROWS: list[dict] = []
MEMORY_RESOLUTION = 100_000  # bytes: less than this the resident set does not tell


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-out", type=Path, help="folder for the results as JSON and Markdown")
    parser.addoption("--bench-device", choices=["auto", "cpu", "cuda"], default="auto", help="default: cuda if there is one")
    parser.addoption("--bench-no-compile", action="store_true", help="leave torch.compile out (it takes minutes)")
    parser.addoption("--bench-no-memory", action="store_true", help="leave the memory out")


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def device_of(config: pytest.Config) -> str:
    chosen = config.getoption("--bench-device")
    return ("cuda" if torch.cuda.is_available() and not _library.cuda_missing else "cpu") if chosen == "auto" else chosen


def about(device: str) -> dict[str, str | int]:
    try:
        git = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "instructions": getattr(sys.modules.get("cls2det_ops._C"), "cpu_capability", lambda: "none")(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 0,
        "date": date.today().isoformat(),
        "commit": commit or "unknown",
        "cls2det_ops": cls2det_ops.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def pytest_report_header(config: pytest.Config) -> str:
    facts = about(device_of(config))
    return "benchmarks on " + ", ".join(f"{key} {value}" for key, value in facts.items())


@pytest.fixture
def bench(benchmark, request: pytest.FixtureRequest) -> Callable:
    """bench(workload, shape, backward): check every contender, time them in turn, and add a row to the table."""
    device = device_of(request.config)
    missing = _library.cuda_missing if device == "cuda" else _library.cpu_missing
    if missing:
        pytest.skip(f"no native kernels to measure: {missing}")

    def run(workload: Callable, shape: str, backward: bool) -> None:
        built = workload(shape, device)
        if request.config.getoption("--bench-no-compile"):
            built = type(built)(built.function, built.inputs, built.leaves, built.baselines)
        torch._dynamo.reset()
        found = warmed_and_checked(contenders(built, backward))
        times: dict[str, list[float]] = {name: [] for name in found}
        native = found.pop("native")

        def baselines_first() -> None:
            for name, contender in found.items():
                times[name].append(contender.timed())

        rounds = rounds_for({"native": native, **found})
        benchmark.pedantic(lambda: times["native"].append(native.timed()), setup=baselines_first, rounds=rounds)
        file = request.node.path
        measured = (backward or not built.leaves) and not request.config.getoption("--bench-no-memory")
        row = {
            "op": file.stem.removeprefix("test_bench_"),
            "shape": shape,
            "pass": "fwd+bwd" if backward else "fwd",
            "ms": medians(times),
            "rounds": rounds,
            "memory": memory_of(file, shape, device) if measured else None,
        }
        benchmark.extra_info.update(row)
        ROWS.append(row)

    return run


def memory_of(file: Path, shape: str, device: str) -> dict[str, int] | None:
    """Peak bytes above the inputs of each contender, on the CPU measured in a fresh process."""
    if device == "cuda":
        return memory.growth(str(file), shape, device)
    if device == "cpu" and not Path("/proc/self/clear_refs").exists():
        return None
    env = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # large blocks go back when freed
    env["PYTHONPATH"] = os.pathsep.join([str(Path(cls2det_ops.__file__).parents[1]), env.get("PYTHONPATH", "")])
    worker = [sys.executable, str(Path(__file__).with_name("memory.py")), str(file), shape, device]
    result = subprocess.run(worker, env=env, capture_output=True, text=True, check=False)
    return json.loads(result.stdout) if result.returncode == 0 else None


def best_baseline(row: dict) -> tuple[str, float]:
    return min(((name, ms) for name, ms in row["ms"].items() if name != "native"), key=lambda pair: pair[1])


def table() -> list[list[str]]:
    lines = [
        [
            "op",
            "shape",
            "pass",
            "native ms",
            "reference ms",
            "ratio",
            "best baseline ms",
            "which",
            "ratio",
            "memory MB",
            "ratio",
        ]
    ]
    for row in ROWS:
        name, best = best_baseline(row)
        native, plain = row["ms"]["native"], row["ms"]["reference"]
        used = row["memory"]
        mega = f"{used['native'] / 1e6:.2f} / {used['reference'] / 1e6:.1f}" if used else ""
        share = f"1/{used['reference'] / max(used['native'], MEMORY_RESOLUTION):.0f}" if used else ""
        lines.append([row["op"], row["shape"], row["pass"], f"{native:.3f}", f"{plain:.3f}", f"{plain / native:.1f}x",
                      f"{best:.3f}", name, f"{best / native:.1f}x" + ("" if best > native else " LOSES"), mega, share])  # fmt: skip
    return lines


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if not ROWS:
        return
    facts = about(device_of(config))
    lines = table()
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    terminalreporter.section("cls2det_ops against plain PyTorch, medians of interleaved rounds")
    terminalreporter.write_line(", ".join(f"{key} {value}" for key, value in facts.items()))
    for line in lines:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    terminalreporter.write_line(
        "ratio: baseline time over native time, higher is better for native. memory: peak of one forward"
    )
    terminalreporter.write_line(
        "and backward above the inputs, native / reference, to 0.1 MB. torch.compile is tried at one shape per op."
    )
    out = config.getoption("--bench-out")
    if out:
        write(out, facts, lines)
        terminalreporter.write_line(f"written to {out}")


def write(out: Path, facts: dict, lines: list[list[str]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    name = "cpu" if facts["device"] == processor() else "cuda"
    (out / f"{name}.json").write_text(json.dumps({"about": facts, "rows": ROWS}, indent=1) + "\n")
    head, *body = lines
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(line) + " |" for line in body)]
    facts_line = ", ".join(f"{key} {value}" for key, value in facts.items())
    (out / f"{name}.md").write_text(f"{facts_line}\n\n" + "\n".join(rows) + "\n")
