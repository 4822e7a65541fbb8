"""`make gpu-check` says passed only of what ran and passed. (That the CUDA kernels pass it, only a GPU can show.)"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import gpu_check
from gpu_check import Result, Step
from helpers import run_python

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


def test_environment_and_folder_of_a_step():
    found = result_of(python("import os; print(os.environ['MARK'], os.environ['PYTHONPATH'], os.getcwd())", env={"MARK": "here"}))
    assert found.log.split() == ["here", str(gpu_check.INSTALLED), str(gpu_check.ROOT)]


def test_a_step_that_takes_too_long_is_interrupted_and_keeps_its_output():
    code = """
import time
print("began", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("wrote what there was")
"""
    found = result_of(python(code, limit=6))
    assert (found.status, found.summary) == ("failed", "not finished within 6 s")
    assert found.log.split("\n")[:2] == ["began", "wrote what there was"]


def test_what_the_machine_lacks_is_not_run():
    found = result_of(python("", needs=("torch", "no_such_module", "no-such-program")))
    assert (found.status, found.summary) == ("not run", "this machine lacks no_such_module, no-such-program")
    assert result_of(python("", needs=("torch", "sh"))).status == "passed"
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
        ("no tests ran in 0.01s", ("not run", "no tests")),
    ],
)
def test_tests_that_are_all_skipped_prove_nothing(last, expected):
    assert gpu_check.pytest_counts(f"...\n{last}") == expected


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
def test_what_is_written(tmp_path, states, code, verdict):
    results = [Result(f"step {i}", state, 1.5, f"about {i}") for i, state in enumerate(states)]
    assert gpu_check.exit_code(results) == code
    (tmp_path / "cuda.md").write_text("| op |\n")
    (tmp_path / "cuda.json").write_text('{"rows": []}')
    path = gpu_check.write(tmp_path / "results", FACTS, results, tmp_path)
    assert path.name == "2030-01-02-nvidia-something-9000.md"
    text = path.read_text()
    assert verdict in text
    assert "| op |" in text
    for i, state in enumerate(states):
        assert f"| step {i} | {state if state == 'passed' else f'**{state}**'} |" in text
    record = json.loads(path.with_suffix(".json").read_text())
    assert [step["status"] for step in record["steps"]] == list(states)
    assert record["about"] == FACTS
    assert record["benchmarks"] == {"rows": []}


def test_steps_name_files_that_exist_and_end_in_time(tmp_path):
    steps = gpu_check.steps(tmp_path)
    for step in steps:
        for word in step.command:
            assert "tests/" not in word or (gpu_check.ROOT / word).exists(), word
    assert {tool for step in steps for tool in step.command if tool.endswith("check")} >= {
        "memcheck", "racecheck", "initcheck", "synccheck",
    }  # fmt: skip
    assert gpu_check.SECONDS < 9 * 60
    operators = next(step for step in steps if step.name == "operator tests").command
    assert sum(Path(word).name.startswith("test_") for word in operators) > 15


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_proved_and_nothing_written(tmp_path):
    result = run_python("", gpu_check.__file__, "--out", str(tmp_path / "results"))
    assert result.returncode == 2, result.stderr
    assert "nothing is proved" in result.stdout
    assert not (tmp_path / "results").exists()
