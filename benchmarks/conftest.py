"""Fixtures for operators, training steps and teachers, and the tables at the end: times, best baseline, ratios, limits, memory."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # for harness and shapes, whatever the import mode

import cls2det_ops
import limits
import memory
import tables
from cls2det_ops import _library
from harness import (
    STEP_ROUNDS,
    TOLERANCE,
    Contender,
    contenders,
    keep_freed_memory,
    medians,
    results,
    rounds_for,
    timed_by_all_clocks,
    warmed_and_checked,
)
from shapes import STEPS, TERMS

ROWS: list[dict] = []
STEP_ROWS: list[dict] = []
TEACHER_ROWS: list[dict] = []
MACHINE: dict[str, float] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-out", type=Path, help="folder for the results as JSON and Markdown")
    parser.addoption("--bench-device", choices=["auto", "cpu", "cuda"], default="auto", help="default: cuda if there is one")
    parser.addoption("--bench-no-compile", action="store_true", help="leave torch.compile out (it takes minutes)")
    parser.addoption("--bench-no-memory", action="store_true", help="leave the memory out")
    parser.addoption("--bench-commit", default="", help="what to write down where the sources are no git checkout")
    steps = "students whose training steps are timed, with commas between; all, or none"
    parser.addoption("--bench-steps", default="ssd300_vgg16", help=f"{steps} (default: ssd300_vgg16; {', '.join(STEPS)})")
    teachers = "whether training steps with teachers of other libraries are timed: all, or none (default: none)"
    parser.addoption("--bench-teachers", choices=["all", "none"], default="none", help=teachers)
    terms = "distillation terms of the timed steps, with commas between"
    parser.addoption("--bench-terms", default="all", help=f"{terms} (default: all; {', '.join(TERMS)}); both is always there")


def pytest_configure(config: pytest.Config) -> None:
    if device_of(config) == "cpu":
        keep_freed_memory()


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def device_of(config: pytest.Config) -> str:
    chosen = config.getoption("--bench-device")
    return ("cuda" if torch.cuda.is_available() and not _library.cuda_missing else "cpu") if chosen == "auto" else chosen


def about(config: pytest.Config) -> dict[str, str | int]:
    device = device_of(config)
    try:
        git = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    kind: dict[str, str | int]
    if device == "cuda":  # its numbers do not depend on the host's instructions and threads
        kind = {"device": torch.cuda.get_device_name(), "host": processor()}
    else:
        kind = {"device": processor(), "instructions": _library.cpu_capability(), "threads": torch.get_num_threads()}
    return {
        **kind,
        "cores": os.cpu_count() or 0,
        "date": date.today().isoformat(),
        "commit": config.getoption("--bench-commit") or commit or "unknown",
        "cls2det_ops": cls2det_ops.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def pytest_report_header(config: pytest.Config) -> str:
    facts = about(config)
    return "benchmarks on " + ", ".join(f"{key} {value}" for key, value in facts.items())


@pytest.fixture
def bench_device(request: pytest.FixtureRequest) -> str:
    device = device_of(request.config)
    missing = _library.cuda_missing if device == "cuda" else _library.cpu_missing
    if missing:
        pytest.skip(f"no native kernels to measure: {missing}")
    return device


@pytest.fixture
def bench(benchmark, bench_device: str, request: pytest.FixtureRequest) -> Callable:
    """bench(workload, shape, backward): check every contender, time them in turn, and add a row to the table."""
    device = bench_device

    def run(workload: Callable, shape: str, backward: bool) -> None:
        work = workload(shape, device)
        if request.config.getoption("--bench-no-compile"):
            work = dataclasses.replace(work, compile=False)
        torch._dynamo.reset()
        rivals = warmed_and_checked(contenders(work, backward))
        times: dict[str, dict[str, list[float]]] = {}  # by clock and contender
        least = limits.least_work(work, results(rivals["native"]), backward)
        native = rivals.pop("native")

        def time_once(name: str, contender: Contender) -> None:
            for clock, value in timed_by_all_clocks(contender).items():
                times.setdefault(clock, {"native": []}).setdefault(name, []).append(value)

        def baselines_first() -> None:
            for name, contender in rivals.items():
                time_once(name, contender)

        rounds = rounds_for({"native": native, **rivals}, device)
        benchmark.pedantic(lambda: time_once("native", native), setup=baselines_first, rounds=rounds)
        cold = None
        if not benchmark.disabled:
            cold = limits.cold_medians({"native": native, "reference": rivals["reference"]}, device)
            if not MACHINE:
                MACHINE.update(limits.machine_limits(device))
        file = request.node.path
        measured = (backward or not work.leaves) and not shape.startswith("small")
        measured = measured and not request.config.getoption("--bench-no-memory")
        row = {
            "op": file.stem.removeprefix("test_bench_"),
            "shape": shape,
            "pass": "fwd+bwd" if backward else "fwd",
            **{clock: medians(by_contender) for clock, by_contender in times.items()},
            "cold_ms": cold,
            "rounds": rounds,
            "least": least,
            "memory": memory_of(file, shape, device, work) if measured else None,
        }
        if device == "cuda":  # how often the queue's clock saw the GPU alone
            row["queued"] = {
                name: statistics.fmean(contender.queued) for name, contender in {"native": native, **rivals}.items()
            }
        benchmark.extra_info.update(row)
        ROWS.append(row)

    return run


@pytest.fixture
def bench_step(benchmark, bench_device: str, request: pytest.FixtureRequest) -> Callable:
    """bench_step(workload, student): the same for training steps, whose times are kept by part and by round."""
    device, chosen = bench_device, request.config.getoption("--bench-steps").split(",")
    if unknown := set(chosen) - {*STEPS, "all", "none"}:
        raise pytest.UsageError(f"--bench-steps: no student {', '.join(unknown)}; there are {', '.join(STEPS)}")
    terms = terms_of(request.config)

    def run(workload: Callable, student: str) -> None:
        if benchmark.disabled:
            work = workload(student, device, small=True)
            steps = work.contenders(["both"])
            work.warmed_and_checked(steps)
            benchmark.pedantic(steps["ours, both"].timed)
            return
        if student not in chosen and "all" not in chosen:
            pytest.skip(f"time it with --bench-steps {student}, or all")
        work = workload(student, device)
        steps = work.contenders(terms)
        positives = work.warmed_and_checked(steps)
        steps["plain"].run()
        if device == "cuda":
            for step in steps.values():
                step.timed()  # cuDNN chooses an algorithm for each new shape, also those of the backward
        laps: dict[str, list] = {name: [] for name in steps}

        def rivals_first() -> None:
            for name, step in steps.items():
                if name != "ours, both":
                    laps[name].append(step.timed())

        rounds = STEP_ROUNDS[device]
        benchmark.pedantic(lambda: laps["ours, both"].append(steps["ours, both"].timed()), setup=rivals_first, rounds=rounds)
        images, targets = work.batch
        row = {
            "student": student,
            "images": len(images),
            "size": list(images[0].shape[1:]),
            "ground_truths": sum(len(target["boxes"]) for target in targets),
            "positives": positives,
            "rounds": rounds,
        }
        if device == "cuda":
            row["clock"] = "from an idle GPU"
        records: list[dict] = [{"implementation": step.implementation, "terms": step.terms} for step in steps.values()]
        measured = not request.config.getoption("--bench-no-memory")
        peaks = (memory_of(request.node.path, student, device, work, *terms) if measured else None) or {}
        for (name, rounds_of_step), record in zip(laps.items(), records, strict=True):
            for clock, parts in zip(("ms", "cpu_ms"), zip(*rounds_of_step, strict=True), strict=True):
                record[clock] = [sum(lap.values()) for lap in parts if lap]
                record[f"parts_{clock}"] = medians({part: [lap[part] for lap in parts] for part in parts[0]})
            record["memory"] = peaks.get(name)
        row["contenders"] = records
        benchmark.extra_info.update(row)
        STEP_ROWS.append(row)

    return run


@pytest.fixture
def bench_teacher(benchmark, bench_device: str, request: pytest.FixtureRequest) -> Callable:
    """bench_teacher(workload, name): the same for steps with a teacher that is read in several ways."""
    device = bench_device

    def run(workload: Callable, name: str) -> None:
        if benchmark.disabled:
            work = workload(name, device, small=True)
            assert work.checked()[1] <= TOLERANCE
            benchmark.pedantic(work.ways["frozen"].run)
            return
        if request.config.getoption("--bench-teachers") == "none":
            pytest.skip("time it with --bench-teachers all")
        work = workload(name, device)
        positives, agreement = work.checked()
        laps: dict[str, list] = {way: [] for way in work.ways}
        for step in work.ways.values():
            step.timed()  # libraries choose their algorithms

        def rivals_first() -> None:
            for way, step in work.ways.items():
                if way != "frozen":
                    laps[way].append(step.timed())

        rounds = STEP_ROUNDS[device]
        benchmark.pedantic(lambda: laps["frozen"].append(work.ways["frozen"].timed()), setup=rivals_first, rounds=rounds)
        records = []
        for way, rounds_of_step in laps.items():
            record: dict = {"implementation": way or "no teacher"}
            for clock, parts in zip(("ms", "cpu_ms"), zip(*rounds_of_step, strict=True), strict=True):
                record[clock] = [sum(lap.values()) for lap in parts if lap]
                record[f"parts_{clock}"] = medians({part: [lap[part] for lap in parts] for part in parts[0]})
            records.append(record)
        facts = {"teacher": name, "layer": work.settings.feature_layers[0], "crop": work.own_teacher.crop_size}
        row = {**facts, "traced": work.is_traced, "agreement": agreement, "positives": positives, "contenders": records}
        benchmark.extra_info.update(row)
        TEACHER_ROWS.append(row)

    return run


def terms_of(config: pytest.Config) -> list[str]:
    """In the order of ``TERMS``. "both" is never left out, since the checks compare both at once."""
    chosen = config.getoption("--bench-terms").split(",")
    if unknown := set(chosen) - {*TERMS, "all"}:
        raise pytest.UsageError(f"--bench-terms: no terms {', '.join(sorted(unknown))}; there are {', '.join(TERMS)}")
    return [terms for terms in TERMS if terms in chosen or "all" in chosen or terms == "both"]


def memory_of(file: Path, shape: str, device: str, work, *terms: str) -> dict[str, int] | None:
    """Peak bytes above the inputs of each contender, on the CPU measured in a fresh process."""
    if device == "cuda":
        return memory.growth(work, device)
    if device == "cpu" and not Path("/proc/self/clear_refs").exists():
        return None
    env = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # large blocks go back when freed
    env["PYTHONPATH"] = os.pathsep.join([str(Path(cls2det_ops.__file__).parents[1]), env.get("PYTHONPATH", "")])
    worker = [sys.executable, str(Path(__file__).with_name("memory.py")), str(file), shape, device, *terms]
    result = subprocess.run(worker, env=env, capture_output=True, text=True, check=False)
    return json.loads(result.stdout) if result.returncode == 0 else None


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if not ROWS and not STEP_ROWS and not TEACHER_ROWS:
        return
    facts = about(config)
    terminalreporter.section("cls2det_ops against plain PyTorch, interleaved rounds")
    terminalreporter.write_line(tables.heading({"about": facts, "machine": MACHINE}))
    if ROWS:
        for line in (*tables.aligned(tables.op_table(ROWS, MACHINE)), *tables.op_notes(ROWS)):
            terminalreporter.write_line(line)
    if STEP_ROWS:
        for line in (*tables.aligned(tables.step_table(STEP_ROWS)), *tables.step_notes(STEP_ROWS)):
            terminalreporter.write_line(line)
    if TEACHER_ROWS:
        for line in (*tables.aligned(tables.teacher_table(TEACHER_ROWS)), *tables.TEACHER_NOTES):
            terminalreporter.write_line(line)
    out = config.getoption("--bench-out")
    if out:
        record = {"about": facts, "machine": MACHINE, "rows": ROWS, "training_steps": STEP_ROWS}
        write(out, record | ({"teachers": TEACHER_ROWS} if TEACHER_ROWS else {}))
        terminalreporter.write_line(f"written to {out}")


def write(out: Path, record: dict) -> None:
    out.mkdir(parents=True, exist_ok=True)
    name = "cpu" if record["about"]["device"] == processor() else "cuda"
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (out / f"{name}.md").write_text(tables.document(record), encoding="utf-8")
