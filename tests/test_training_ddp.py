"""Two processes under torchrun: every student trains, and the loss does not depend on how a batch is split."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

import cls2det
import ddp_students
from cls2det.models.students import STUDENTS
from training_cases import ALL_TERMS, FITS, batch, logged, weights_in

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")

PUBLISHED = [name for name in STUDENTS if "compact" not in name]
PYTHONPATH = os.pathsep.join(str(Path(path).parent) for path in (__file__, Path(cls2det.__file__).parent))  # that under test


def run_two(scenes, teacher, out: Path, students: list[str]) -> None:
    teachers = ddp_students.untrained_teachers(out, students)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", ddp_students.__file__]
    command += [str(scenes), str(out), str(teacher), *(f"{name}={path}" for name, path in teachers.items())]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]


def check_run(folder: Path) -> None:
    rows = logged(folder)
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
    run_two(scenes, teacher_weights, out, list(FITS))
    return out


@pytest.mark.parametrize("student", FITS)
def test_student_in_two_processes(two, student):
    """Every adapter took part in every step, or DDP would have stopped; the student's file holds none of them."""
    check_run(two / student)
    row = logged(two / student)[-1]
    for method in ("regions", *FITS[student]):
        terms = [float(value) for name, value in row.items() if name.startswith(method) and value and "/" not in name]
        assert terms and all(0 <= term < 1e4 for term in terms), (method, terms)
    state = torch.load(two / student / "last.ckpt", weights_only=True)["state_dict"]
    assert any(name.startswith("distillation.methods.fkd") for name in state)
    assert not any(name.startswith("distillation") for name in weights_in(two / student / "weights.pt"))


@pytest.mark.slow
def test_published_students_in_two_processes(scenes, teacher_weights, tmp_path):
    run_two(scenes, teacher_weights, tmp_path, PUBLISHED)
    for student in PUBLISHED:
        check_run(tmp_path / student)
        check_evaluation(tmp_path / student, scenes)


def check_evaluation(folder: Path, scenes: Path) -> int:
    """Every image was evaluated once, with the detections of one process; returns the number of detections."""
    evaluated = json.loads((folder / "evaluated.json").read_text())
    images = json.loads((scenes / "annotations" / "instances_val.json").read_text())["images"]
    assert sorted(evaluated["images"]) == sorted(image["id"] for image in images)
    alone = json.loads((folder / "val" / "detections.json").read_text())
    counts, expected = (Counter(entry["image_id"] for entry in entries) for entries in (evaluated["detections"], alone))
    for image in images:  # neighbours in a batch shift scores a little, and some over the threshold
        assert counts[image["id"]] == pytest.approx(expected[image["id"]], rel=0.1, abs=1), (folder.name, image["id"])
    (row,) = logged(folder, "val/mAP")
    table = json.loads((folder / "val" / "evaluation.json").read_text())
    assert float(row["val/AP50"]) == pytest.approx(table["AP50"], abs=0.1)
    return len(alone)


@pytest.mark.parametrize("student", FITS)
def test_validation_in_two_processes_takes_every_image_once(two, scenes, student):
    detections = check_evaluation(two / student, scenes)
    assert detections > 20 or STUDENTS[student].head == "sigmoid"  # which begins with scores below the threshold


@pytest.mark.slow
def test_lightning_starts_the_second_process_itself(two, scenes, tmp_path):
    """Without torchrun, from the command line: the weights and the evaluation are those under torchrun."""
    command = [sys.executable, "-m", "cls2det", "distill", "--data-root", str(scenes), "--out", str(tmp_path)]
    command += ["--teacher", str(two / "teacher-of-ssd_compact.pt"), "--allow-poor-teacher", "--image-size", "96"]
    command += ["--images", "8", "--backbone-weights", "none", "--val-split", "val"]
    command += ["--augmentation", "jitter", "--run.cache", "true"]
    command += ["--classifier.normalizer", "all", "--classifier.max-positives", "16"]
    command += [
        "--classifier.kd-loc-weight",
        str(ALL_TERMS.kd_loc_weight),
        "--classifier.loc-weight",
        str(ALL_TERMS.loc_weight),
    ]
    command += ["--encoder", str(two / "teacher-of-ssd_compact.pt"), "--term-weights", "auto"]
    command += [
        "--distillers",
        "classifier",
        "regions",
        *FITS["ssd_compact"],
        "--detector-teacher",
        str(two / "detector-ssd_compact.pt"),
    ]
    command += ["--optim.steps", "2", "--optim.batch-size", "2", "--optim.learning-rate", "1e-4", "--run.device", "cpu"]
    command += ["--run.devices", "2", "--run.checkpoint-every", "2", "--run.log-every", "1", "--run.validate-every", "1"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("parameters") == 1 and "Traceback" not in done.stderr  # the second process is silent
    check_run(tmp_path)
    weights, expected = (weights_in(folder / "weights.pt") for folder in (tmp_path, two / "ssd_compact"))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    report, expected_report = (json.loads((folder / "report.json").read_text()) for folder in (tmp_path, two / "ssd_compact"))
    assert (
        report.pop("seconds") > 0 and expected_report.pop("seconds") > 0 and report == expected_report and report["steps"] == 2
    )
    assert (tmp_path / "val" / "evaluation.json").is_file()


def test_all_reduced_normalizer_makes_the_split_irrelevant(two, scenes, teacher_weights):
    """Two unequal shares, averaged as DDP does, equal the whole batch in one process; "process" does not."""
    terms, gradients = ddp_students.distilled(teacher_weights, "all", *batch(scenes, 6))
    split, by_process = (torch.load(two / f"{name}.pt", weights_only=True) for name in ("all", "process"))
    for name, term in terms.items():
        torch.testing.assert_close(split["terms"][name], term, rtol=1e-4, atol=1e-6)
        assert abs(by_process["terms"][name] - term) > 1e-3 * term, "the shares do not differ enough to show anything"
    assert gradients.keys() == split["gradients"].keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(split["gradients"][name], gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item())
