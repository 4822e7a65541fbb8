"""`make gpu-check` says passed only of what ran and passed. (That the CUDA kernels pass it, only a GPU can show.)"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import torch

import gpu_check
from gpu_check import Result, Step
from helpers import default_signal, run_python

FACTS = {"device": "NVIDIA Something 9000", "driver": "1.2", "torch": "2.11", "date": "2030-01-02", "commit": "abc"}


def python(code: str, **options) -> Step:
    return Step("step", [sys.executable, "-c", code], **({"limit": 60, "after": ()} | options))


def result_of(step: Step, done: dict[str, Result] | None = None, seconds_left: float = 100) -> Result:
    return gpu_check.run(step, done or {}, seconds_left)


def test_a_step_that_passes_and_one_that_fails():
    assert result_of(python("print('fine')")).status == "passed"
    failed = result_of(python("print('first'); print('what went wrong'); raise SystemExit(4)"))
    assert (failed.status, failed.summary) == ("failed", "exit code 4: what went wrong")
    assert "first" in failed.log


def test_a_step_sees_the_build_and_no_setting_of_the_user(monkeypatch):
    monkeypatch.setenv("CLS2DET_BACKEND", "reference")
    code = (
        "import os; print([name for name in os.environ if name.startswith('CLS2DET_')], os.environ['PYTHONPATH'], os.getcwd())"
    )
    settings, path, folder = result_of(python(code, env={"CLS2DET_MARK": "of the step"})).log.split()
    assert settings == "['CLS2DET_MARK']"
    assert path.split(":")[0] == str(gpu_check.INSTALLED)
    assert not (Path(folder) / "cls2det_ops").exists(), "the sources would be imported instead of the build"


def test_what_was_built_is_what_is_tested():
    report = f"installed in    {gpu_check.INSTALLED}/cls2det_ops\nCUDA back end   native, H100\nCUDA kernels    for 9.0"
    assert gpu_check.built_kernels(report) == ("passed", "for 9.0")
    assert gpu_check.built_kernels(report.replace("native", "missing:"))[0] == "failed"
    assert gpu_check.built_kernels(report.replace(str(gpu_check.INSTALLED), "/somewhere/else"))[0] == "failed"


def test_a_step_that_takes_too_long_is_interrupted_and_keeps_its_output():
    code = """
import time
print("began", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("wrote what there was")
"""
    with default_signal(signal.SIGINT):
        result = result_of(python(code, limit=6))
    assert (result.status, result.summary) == ("failed", "not finished within 6 s")
    assert result.log.split("\n")[:2] == ["began", "wrote what there was"]


def test_what_the_machine_lacks_is_not_run():
    result = result_of(python("", needs=("torch", "no_such_module"), programs=("sh", "no-such-program")))
    assert (result.status, result.summary) == ("not run", "this machine lacks no_such_module, no-such-program")
    assert result_of(python("", needs=("torch",), programs=("sh",))).status == "passed"
    assert result_of(python(""), seconds_left=3).status == "not run"


def test_nothing_is_run_after_a_build_that_failed():
    for status in ("failed", "not run"):
        done = {"build": Result("build", status, 1, "")}
        assert result_of(python("", after=("build",)), done).status == "not run"
    assert result_of(python("", after=("build",)), {"build": Result("build", "passed", 1, "")}).status == "passed"


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("12 passed, 3 skipped in 4.5s", ("passed", "12 passed, 3 skipped")),
        ("15 skipped, 4 deselected in 0.01s", ("not run", "15 skipped")),
        ("24 deselected in 0.01s", ("not run", "no tests")),
        ("7 passed in 1.00s\nsomething printed at exit", ("passed", "7 passed")),
    ],
)
def test_tests_that_are_all_skipped_prove_nothing(last, expected):
    assert gpu_check.pytest_counts(f"...\n{last}") == expected


def test_no_tests_at_all_is_not_run():
    nothing_collected = "print('3 deselected in 0.10s'); raise SystemExit(5)"
    assert result_of(python(nothing_collected, judge=gpu_check.pytest_counts)).status == "not run"
    assert result_of(python(nothing_collected)).status == "failed"


@pytest.mark.parametrize(
    ("output", "status"),
    [
        ("========= ERROR SUMMARY: 0 errors", "passed"),
        ("========= ERROR SUMMARY: 1 error", "failed"),
        ("========= ERROR SUMMARY: 10 errors", "failed"),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", "passed"),
        ("========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)", "failed"),
        ("Segmentation fault", "failed"),
    ],
)
def test_summaries_of_compute_sanitizer(output, status):
    assert gpu_check.sanitizer_errors(output)[0] == status


@pytest.mark.parametrize(
    ("states", "code", "verdict"),
    [
        (("passed", "passed"), 0, "Every step passed."),
        (("passed", "failed", "not run"), 1, "**Not every step passed.**"),
        (("passed", "not run"), 3, "**Some steps were not run.**"),
    ],
)
def test_the_record_says_of_each_step_what_became_of_it(tmp_path, states, code, verdict):
    results = [Result(f"step {i}", state, 1.5, f"about {i}") for i, state in enumerate(states)]
    assert gpu_check.exit_code(results) == code
    (tmp_path / "cuda.md").write_text("| op |\n")
    (tmp_path / "cuda.json").write_text('{"rows": []}')
    path = gpu_check.write(tmp_path / "results", FACTS, results, tmp_path)
    text, record = path.read_text(), json.loads(path.with_suffix(".json").read_text())
    assert verdict in text
    for i, state in enumerate(states):
        assert f"| step {i} | {state if state == 'passed' else f'**{state}**'} |" in text
    assert [step["status"] for step in record["steps"]] == list(states)
    assert record["about"] == FACTS
    benchmarks = path.with_name(path.name.replace("-check", ""))
    assert benchmarks.read_text() == "| op |\n" and f"({benchmarks.name})" in text


def test_without_benchmarks_there_are_the_proofs_alone(tmp_path):
    path = gpu_check.write(tmp_path / "results", FACTS, [Result("build", "failed", 1, "")], tmp_path)
    assert "No benchmark finished." in path.read_text()
    assert {file.name for file in path.parent.iterdir()} == {path.name, path.with_suffix(".json").name}


def test_a_step_is_skipped_on_request():
    result = gpu_check.run(python("raise SystemExit(1)"), {}, 100, ["step"])
    assert (result.status, result.summary) == ("not run", "skipped on request")


def test_steps_name_files_that_exist_and_leave_time_for_the_benchmarks(tmp_path):
    *proofs, benchmarks = gpu_check.steps(tmp_path, "9.0")
    for step in proofs:
        assert all(Path(word).exists() for word in step.command if "tests/" in word), step.name
    operators = next(step for step in proofs if step.name == "operator tests").command
    assert sum(Path(word).name.startswith("test_") for word in operators) > 15
    side_by_side = max(step.limit for step in proofs if step.beside)
    assert side_by_side + sum(step.limit for step in proofs if not step.beside) + 60 <= gpu_check.SECONDS
    assert not benchmarks.beside, "what is timed would be timed beside other work"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_proved_and_nothing_written(tmp_path):
    result = run_python("", gpu_check.__file__, "--out", str(tmp_path / "results"))
    assert result.returncode == 2, result.stderr
    assert "nothing is proved" in result.stdout
    assert not (tmp_path / "results").exists()
