"""The examples of docs/examples: each runs as a user would run it, and its terms fall; the lines that it adds are few and marked."""

from __future__ import annotations

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchvision")

from helpers import clean_environment

FOLDER = Path(__file__).parent.parent / "docs" / "examples"
BOXES = ("kd_cls", "kd_loc", "loc")
CLASSES = ("kd_cls",)
# Example: the libraries that it needs, its arguments, the terms that fall, and how many lines it may add.
EXAMPLES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], int]] = {
    "own_loop": ((), (), CLASSES, 10),
    "torchvision_detection": ((), (), CLASSES, 10),
    "lightning_module": (("lightning",), (), CLASSES, 10),
    "transformers_trainer": (("transformers", "scipy", "accelerate"), (), CLASSES, 13),
    "teachers": (("timm", "transformers"), (), BOXES, 24),
    "keypoints": ((), (), ("kd_keypoints", "loss_keypoint"), 8),
    "ultralytics_yolo": (("ultralytics",), (), CLASSES, 18),
    "ultralytics_yolo of 26": (("ultralytics",), ("yolo26n",), CLASSES, 18),
    "libreyolo_yolo9": (("libreyolo",), (), CLASSES, 23),
}
STEP = re.compile(r"step +(\d+)  (.*)")


def runs_of(output: str) -> list[list[dict[str, float]]]:
    """The values that an example printed, of each step; a step 0 begins another run."""
    runs: list[list[dict[str, float]]] = []
    for line in re.split(r"[\r\n]", output):
        if match := STEP.search(line):
            number, values = int(match[1]), match[2].split("  ")
            if number == 0 or not runs:
                runs.append([])
            runs[-1].append({name: float(value) for name, value in (pair.split() for pair in values)})
    return runs


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_terms_fall(example, tmp_path, monkeypatch, capsys):
    libraries, arguments, terms, _ = EXAMPLES[example]
    missing = [library for library in libraries if importlib.util.find_spec(library) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    file = str(FOLDER / f"{example.split()[0]}.py")
    if {"ultralytics", "libreyolo"} & set(libraries):  # they change much of their process
        environment = clean_environment() | {"YOLO_OFFLINE": "1"}
        command = [sys.executable, file, *arguments]
        child = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600)
        assert child.returncode == 0, child.stderr[-3000:]
        output = child.stdout
    else:
        monkeypatch.setattr(sys, "argv", [file, *arguments])
        monkeypatch.syspath_prepend(FOLDER)
        monkeypatch.chdir(tmp_path)
        runpy.run_path(file, run_name="__main__")
        output = capsys.readouterr().out
    runs = runs_of(output)
    assert len(runs) == (6 if example == "teachers" else 1)
    for steps in runs:
        assert len(steps) >= 3
        for term in set(terms) & set(steps[0]) if example == "teachers" else terms:  # a zero-shot teacher has no KD-loc
            values = [step[term] for step in steps]
            assert all(0 < value < 100 for value in values), (term, values)
            assert values[-1] < 0.9 * values[0], (term, values)


def source(example: str) -> list[str]:
    return (FOLDER / f"{example.split()[0]}.py").read_text(encoding="utf-8").splitlines()


MARK = re.compile(r"  # distil(:|$)")


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_lines_of_distillation_are_few_and_marked(example):
    lines = source(example)
    body = lines[lines.index("from __future__ import annotations") :]
    assert 5 < sum(bool(MARK.search(line)) for line in body) <= EXAMPLES[example][3]
    if example not in ("teachers", "keypoints"):  # these are about something else than how to hook a trainer
        names = re.compile(r"\b(cls2det|PositiveTap|BoxDistiller|teacher_from|Positives|tap|distiller|Distilling\w+)\b")
        unmarked = [line for line in body if names.search(line.split("#")[0]) and not MARK.search(line)]
        assert not unmarked, unmarked


def test_no_example_is_forgotten():
    assert {path.stem for path in FOLDER.glob("*.py")} == {example.split()[0] for example in EXAMPLES} | {"pictures"}


def code_of(text: str) -> str:
    """Without indentation and empty lines, which a formatter adds."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


@pytest.mark.parametrize("page", sorted((FOLDER.parent / "trainers").glob("*.md")), ids=lambda page: page.stem)
def test_the_code_of_a_page_is_that_of_its_example(page):
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    if page.stem == "trained":  # a record
        assert not blocks
        return
    (name,) = set(re.findall(r"docs/examples/(\w+)\.py", text))
    whole = code_of((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    assert blocks
    for block in blocks:
        assert f"\n{code_of(block)}\n" in whole, block


OVERVIEW = (FOLDER.parent / "trainers.md").read_text(encoding="utf-8")


def test_the_overview_counts_the_lines_of_each_example():
    counted = re.findall(r"`docs/examples/(\w+)\.py` \| (\d+) \|", OVERVIEW)
    assert {name for name, _ in counted} == {example.split()[0] for example in EXAMPLES} - {"teachers", "keypoints"}
    assert counted == [(name, str(sum(bool(MARK.search(line)) for line in source(name)))) for name, _ in counted]


def test_the_overview_says_of_each_detector_what_its_tap_says():
    for library in ("transformers", "scipy"):
        pytest.importorskip(library)
    from reach import where_rows

    rows = [line for line in OVERVIEW.splitlines() if re.match(r"\| (torchvision|transformers) \|", line)]
    assert rows == where_rows()


def test_only_its_example_imports_ultralytics():
    """It is under the AGPL: nothing of the package, and no other example, may import it; its example says so first."""
    root = FOLDER.parent.parent
    files = [
        path for folder in ("cls2det", "cls2det_ops", "docs", "tests", "benchmarks") for path in (root / folder).rglob("*.py")
    ]
    importers = [
        path.name for path in files if re.search(r"^\s*(import|from) ultralytics\b", path.read_text(encoding="utf-8"), re.M)
    ]
    assert importers == ["ultralytics_yolo.py"]
    assert "AGPL-3.0" in "\n".join(source("ultralytics_yolo")[:5])
