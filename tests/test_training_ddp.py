"""Two processes under torchrun: every student trains, and the loss does not depend on how a batch is split."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

import ddp_students
from cls2det.students import STUDENTS
from training_cases import FITS, batch, weights_in

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")

COMPACT = [name for name in STUDENTS if "compact" in name]
PUBLISHED = [name for name in STUDENTS if "compact" not in name]


def run_two(scenes, teacher, out: Path, students: list[str]) -> None:
    teachers = ddp_students.untrained_teachers(out, students)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", ddp_students.__file__]
    command += [str(scenes), str(out), str(teacher), *(f"{name}={path}" for name, path in teachers.items())]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]


def check_run(folder: Path) -> None:
    with open(folder / "log" / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    assert len(rows) == 2
    for row in rows:
        for term in ("kd_cls", "kd_loc", "loc"):
            assert 0 < float(row[term]) < 1e4, (folder.name, term, row[term])
    weights = weights_in(folder / "weights.pt")
    assert all(value.isfinite().all() for value in weights.values() if value.is_floating_point())
    assert not any("teacher" in name for name in weights)


@pytest.fixture(scope="module")
def two(scenes, teacher_weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    run_two(scenes, teacher_weights, out, COMPACT)
    return out


@pytest.mark.parametrize("student", COMPACT)
def test_student_in_two_processes(two, student):
    check_run(two / student)


@pytest.mark.parametrize("student", FITS)
def test_methods_in_two_processes(two, student):
    """Every adapter took part in every step, or DDP would have stopped; the student's file holds none of them."""
    check_run(two / f"{student}-methods")
    with open(two / f"{student}-methods" / "log" / "metrics.csv", newline="") as file:
        (*_, row) = [row for row in csv.DictReader(file) if row["loss"]]
    for method in FITS[student]:
        terms = [float(value) for name, value in row.items() if name.startswith(method) and value and "/" not in name]
        assert terms and all(0 <= term < 1e4 for term in terms), (method, terms)
    held = torch.load(two / f"{student}-methods" / "last.ckpt", weights_only=True)["state_dict"]
    assert any(name.startswith("distillers.methods.fkd") for name in held)
    assert not any(name.startswith("distillers") for name in weights_in(two / f"{student}-methods" / "weights.pt"))


@pytest.mark.slow
def test_published_students_in_two_processes(scenes, teacher_weights, tmp_path):
    run_two(scenes, teacher_weights, tmp_path, PUBLISHED)
    for student in PUBLISHED:
        check_run(tmp_path / student)


def test_validation_in_two_processes_sees_every_image_once(two):
    with open(two / "ssd_compact" / "log" / "metrics.csv", newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["val/mAP"]]
    table = json.loads((two / "ssd_compact" / "val" / "evaluation.json").read_text())
    assert float(row["val/AP50"]) == pytest.approx(table["AP50"], abs=1e-3)


def test_all_reduced_normalizer_makes_the_split_irrelevant(two, scenes, teacher_weights):
    """Two unequal shares, averaged as DDP does, equal the whole batch in one process; "process" does not."""
    terms, gradients = ddp_students.distilled(teacher_weights, "all", *batch(scenes, 6))
    found, other = (torch.load(two / f"{name}.pt", weights_only=True) for name in ("all", "process"))
    for name, term in terms.items():
        torch.testing.assert_close(found["terms"][name], term, rtol=1e-4, atol=1e-6)
        assert abs(other["terms"][name] - term) > 1e-3 * term, "the shares do not differ enough to show anything"
    assert gradients.keys() == found["gradients"].keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item())
