"""Proves and times the CUDA kernels on the GPU of this machine: python tests/gpu_check.py

It needs only what is there: torch with CUDA, a toolkit, pytest, compute-sanitizer; nothing is fetched. Each step builds, tests
or measures in a process of its own, within what is left of --seconds; those that only prove something run side by side, and the
benchmarks alone. What the machine lacks is reported as not run. Writes DATE-DEVICE-check.json and .md, and what the benchmarks
found as DATE-DEVICE.json and .md; exits with 0 if every step passed, 1 if one failed, 3 if none failed but some were not run, and
2, writing nothing, where there is no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import date
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = ROOT / "build/gpu"
SECONDS = 9 * 60 - 20  # of all steps together, unless --seconds says otherwise
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
TESTS = ROOT / "tests"


@dataclass(frozen=True)
class Step:
    name: str
    command: list[str]
    limit: int  # seconds
    needs: tuple[str, ...] = ()  # Python modules
    programs: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ("build",)  # steps that must have passed
    beside: bool = False  # runs at the same time as the steps around it of which this is true too
    judge: Callable[[str], tuple[str, str]] = lambda output: ("passed", "")  # (status, summary) of an exit code of 0


@dataclass
class Result:
    name: str
    status: str  # "passed", "failed" or "not run"
    seconds: float
    summary: str
    log: str = ""


def pytest_counts(output: str) -> tuple[str, str]:
    """A run in which nothing passed has proved nothing."""
    lines = [line for line in output.splitlines() if re.search(r"\d+ (passed|failed|skipped|deselected)\b.* in [\d.]+s", line)]
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", lines[-1] if lines else "")}
    summary = ", ".join(f"{n} {word}" for word, n in counts.items())
    return ("passed", summary) if counts.get("passed") else ("not run", summary or "no tests")


def built_kernels(output: str) -> tuple[str, str]:
    """Whether what the steps import is what was built, with CUDA kernels that load."""
    facts = dict(re.findall(r"^(installed in|CUDA back end|CUDA kernels) +(.*)", output, re.M))
    fine = facts.get("installed in", "").startswith(str(INSTALLED)) and facts.get("CUDA back end", "").startswith("native")
    return ("passed" if fine else "failed", facts.get("CUDA kernels", "no CUDA kernels"))


def sanitizer_errors(output: str) -> tuple[str, str]:
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", output)
    if not summaries:
        return "failed", "compute-sanitizer printed no summary"
    clean = all(re.match(r"0 (errors|hazards)", line) for line in summaries)
    return "passed" if clean else "failed", "; ".join(summaries)


def steps(scratch: Path, capability: str, bench: tuple[str, ...] = (), commit: str = "") -> list[Step]:
    """All but the last fit into SECONDS with their limits; the benchmarks have what is left."""
    build = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--upgrade"]
    fixture = re.compile(r"\b(kernel_|native_)?backend\b")
    operator_tests = [str(path) for path in sorted(TESTS.glob("test_*.py")) if fixture.search(path.read_text())]
    workers = ["-n", "10"] if importlib.util.find_spec("xdist") else []
    benchmarks = [str(ROOT / "benchmarks"), "--bench-device", "cuda"]
    driver = [sys.executable, str(TESTS / "kernel_driver.py"), "cuda"]
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # each tensor an allocation of its own, with ends to run over

    def sanitizer(tool: str) -> Step:
        quiet = ["--report-api-errors", "no"] if tool == "memcheck" else []  # torch asks the driver for what it may lack
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *quiet, *driver]
        needs = {"programs": ("compute-sanitizer",), "env": uncached, "judge": sanitizer_errors, "beside": True}
        return Step(f"compute-sanitizer {tool}", command, 150, **needs)

    def pytest(name: str, limit: int, *arguments: str, beside: bool = True, needs: tuple[str, ...] = ("pytest",)) -> Step:
        return Step(name, [*PYTEST, *arguments], limit, needs, judge=pytest_counts, beside=beside)

    return [
        Step("build", [*build, "--target", str(INSTALLED), str(ROOT)], 110, ("pip", "setuptools"),
             env={"CLS2DET_CUDA": "1", "TORCH_CUDA_ARCH_LIST": capability}, after=()),
        Step("what was built", [sys.executable, "-m", "cls2det_ops"], 20, judge=built_kernels),
        pytest("operator tests", 150, *operator_tests, "--backends", "cuda", *workers),
        pytest("streams, graphs, synchronisation", 150, str(TESTS / "test_cuda.py")),
        pytest("frozen teacher", 150, str(TESTS / "test_frozen.py"), needs=("pytest", "torchvision")),
        *(sanitizer(tool) for tool in ("memcheck", "racecheck", "initcheck", "synccheck")),
        pytest("outputs past 2^31 elements", 150, str(TESTS / "test_large.py"), "-m", "slow", "--backends", "cuda"),
        pytest("benchmarks' own checks", 150, *benchmarks, "--bench-no-compile", "--bench-no-memory", "--benchmark-disable",
               needs=("pytest", "pytest_benchmark")),
        pytest("benchmarks", 3600, *benchmarks, *(bench or ["--bench-no-compile"]), "--bench-out", str(scratch),
               "--bench-commit", commit,
               needs=("pytest", "pytest_benchmark"), beside=False),
    ]  # fmt: skip


def environment(step: Step) -> dict[str, str]:
    """Without settings that would choose another back end, with the build first and the toolkit's programs at hand."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CLS2DET_")} | step.env
    paths = [str(INSTALLED), os.environ.get("PYTHONPATH", "")]
    toolkits = [os.path.join(home, "bin") for home in (os.environ.get("CUDA_HOME", ""), "/usr/local/cuda") if home]
    env["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), *toolkits])
    wide = {"COLUMNS": "200"}  # pytest cuts the lines of its summary, a failure's message with them
    return env | wide | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}


def lacking(step: Step, done: dict[str, Result]) -> str:
    missing = [name for name in step.needs if importlib.util.find_spec(name) is None]
    missing += [name for name in step.programs if shutil.which(name, path=environment(step)["PATH"]) is None]
    if missing:
        return f"this machine lacks {', '.join(missing)}"
    broken = [name for name in step.after if done[name].status != "passed"]
    return f"after {', '.join(broken)}, which did not pass" if broken else ""


def run(step: Step, done: dict[str, Result], seconds_left: float, skip: Collection[str] = ()) -> Result:
    if step.name in skip:
        return Result(step.name, "not run", 0, "skipped on request")
    if problem := lacking(step, done):
        return Result(step.name, "not run", 0, problem)
    limit = min(step.limit, seconds_left)
    if limit < 5:
        return Result(step.name, "not run", 0, "no time was left")
    begin = time.monotonic()
    INSTALLED.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        step.command, cwd=INSTALLED.parent, env=environment(step), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip  # not in ROOT, where the sources would be imported instead of the build
    late = False
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(process.pid, signal.SIGINT)  # pytest then writes what it has
        try:
            output, _ = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
    seconds = round(time.monotonic() - begin, 1)
    log = output[-8000:]
    if late:
        return Result(step.name, "failed", seconds, f"not finished within {limit:.0f} s", log)
    nothing_collected = process.returncode == 5 and step.judge is pytest_counts
    if process.returncode != 0 and not nothing_collected:
        last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
        return Result(step.name, "failed", seconds, f"exit code {process.returncode}: {last.strip()}", log)
    status, summary = step.judge(output.strip())
    return Result(step.name, status, seconds, summary, log)


def about(commit: str) -> dict[str, str]:
    """Empty where there is no GPU."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    if not torch.cuda.is_available():
        return {}

    def output_of(*command: str) -> str:
        try:
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return "unknown"

    return {
        "device": torch.cuda.get_device_name(),
        "compute capability": "{}.{}".format(*torch.cuda.get_device_capability()),
        "driver": output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()[0],
        "torch": torch.__version__,
        "CUDA of torch": str(torch.version.cuda),
        "Python": platform.python_version(),
        "date": date.today().isoformat(),
        "commit": commit or output_of("git", "describe", "--always", "--dirty"),
    }


def exit_code(results: list[Result]) -> int:
    states = {result.status for result in results}
    return 1 if "failed" in states else 3 if "not run" in states else 0


def markdown(facts: dict[str, str], results: list[Result], benchmarks: str) -> str:
    verdict = {0: "Every step passed.", 1: "**Not every step passed.**", 3: "**Some steps were not run.**"}[exit_code(results)]
    lines = [
        ", ".join(f"{key} {value}" for key, value in facts.items()),
        "",
        verdict,
        "",
        "| step | | s | |",
        "|---|---|---:|---|",
    ]
    for result in results:
        state = result.status if result.status == "passed" else f"**{result.status}**"
        lines.append(f"| {result.name} | {state} | {result.seconds:.0f} | {result.summary.replace('|', '/')} |")
    return "\n".join([*lines, "", benchmarks or "No benchmark finished.", ""])


def write(out: Path, facts: dict[str, str], results: list[Result], scratch: Path) -> Path:
    """The proofs; beside them the benchmarks, in the format of any run of theirs, if there are any."""
    out.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")
    name = f"{facts['date']}-{device}"
    kinds = [kind for kind in ("json", "md") if (scratch / f"cuda.{kind}").is_file()]
    for kind in kinds:
        shutil.copyfile(scratch / f"cuda.{kind}", out / f"{name}.{kind}")
    path = out / f"{name}-check.md"
    path.write_text(markdown(facts, results, f"The benchmarks are in [{name}.md]({name}.md)." if "md" in kinds else ""))
    logs = ["" if result.status == "passed" else result.log.replace(str(ROOT), ".") for result in results]
    record = {"about": facts, "steps": [asdict(result) | {"log": log} for result, log in zip(results, logs, strict=True)]}
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return path


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--commit", default="", help="what to write down where the sources are no git checkout")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of all steps together (default: {SECONDS})")
    parser.add_argument("--bench", default="", metavar="ARGS", help="of the benchmarks (default: --bench-no-compile)")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME", help="a step to leave out; may be repeated")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    facts = about(options.commit)
    if not facts:
        print("no GPU that a torch of this Python can use: nothing was run, nothing is proved, nothing was written")
        return 2
    print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
    scratch = ROOT / "build/gpu-benchmarks"
    shutil.rmtree(scratch, ignore_errors=True)
    done: dict[str, Result] = {}

    def run_and_tell(step: Step) -> Result:
        result = done[step.name] = run(step, done, options.seconds - (time.monotonic() - begin), options.skip)
        log = f"\n{result.log}" if result.status == "failed" else ""
        print(f"{result.status:<8} {result.seconds:6.1f} s  {step.name}: {result.summary}{log}", flush=True)
        return result

    planned = steps(scratch, facts["compute capability"], tuple(shlex.split(options.bench)), facts["commit"])
    if unknown := set(options.skip) - {step.name for step in planned}:
        parser.error(f"--skip: no step {', '.join(sorted(unknown))}; there are {', '.join(step.name for step in planned)}")
    for beside, group in groupby(planned, key=lambda step: step.beside):
        together = list(group)
        with ThreadPoolExecutor(len(together) if beside else 1) as pool:
            list(pool.map(run_and_tell, together))
    results = [done[step.name] for step in planned]
    print(f"written to {write(options.out, facts, results, scratch)}")
    return exit_code(results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
