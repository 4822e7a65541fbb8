"""Every recipe that comes with the package runs as it is: its keys and values fit the command that reads it."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from torchvision.io import write_png

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from cls2det.cli import main
from cls2det.models.students import STUDENTS
from cls2det.recipes import find_recipe, recipe_names
from cls2det.teachers.crop_classifier import CropClassifier
from training_cases import DIGITS, coco_layout

RECIPES = {name: find_recipe(name).read_text() for name in recipe_names()}
SWEEPS = [name for name, text in RECIPES.items() if text.startswith("# Sweep")]
SHORT = ["--optim.steps", "2", "--optim.batch-size", "2"]


def command_of(name: str) -> str:
    return {"teacher": "teacher", "pretrain": "pretrain"}.get(name.split("-")[0], "distill")


SINGLE = {name: command_of(name) for name in RECIPES if name not in SWEEPS}


def root_of(name: str, scenes: Path, place: Path) -> Path:
    """The data under the names of splits that the recipe has: COCO's, or those of one's own data."""
    return scenes if "own" in name else coco_layout(scenes, place / "coco")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, command in SINGLE.items() if command == "distill"])
def test_a_detectors_recipe_runs(scenes, tmp_path, name):
    """Two steps on a small COCO, and the evaluation; with a teacher of the student's normalisation that was not trained."""
    student_name = yaml.safe_load(RECIPES[name])["student"]
    student = STUDENTS[student_name]
    size = [] if student.fixed_size else ["--image-size", "128"]
    torch.manual_seed(0)
    CropClassifier(DIGITS, student=student_name, image_size=None if student.fixed_size else 128).save(tmp_path / "teacher.pt")
    root, out = root_of(name, scenes, tmp_path), tmp_path / "run"
    command = ["distill", "--config", name, "--data-root", str(root), "--out", str(out), "--backbone-weights", "none", *size]
    assert main([*command, "--teacher", str(tmp_path / "teacher.pt"), "--allow-poor-teacher", *SHORT]) == 0
    with open(out / "log" / "metrics.csv", newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["loss"]]
    options = json.loads((out / "options.json").read_text())
    terms = [term for term in ("kd_cls", "kd_loc", "loc") if options["classifier"][f"{term}_weight"]]
    assert terms == (["kd_cls"] if name.startswith("own") else ["kd_cls", "kd_loc", "loc"])
    for term in ("loss", *terms):
        assert 0 < float(row[term]) < 1e3, (term, row[term])
    if "kd_loc" in terms:
        assert options["classifier"]["feature_layers"] == ["maxpool"]
    assert options["optim"]["steps"] == 2 and (out / options["val_split"] / "evaluation.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, command in SINGLE.items() if command == "teacher"])
def test_a_teachers_recipe_runs(scenes, tmp_path, name):
    root, out = root_of(name, scenes, tmp_path), tmp_path / "run"
    student = STUDENTS[yaml.safe_load(RECIPES[name])["student"]]
    size = [] if student.fixed_size else ["--image-size", "128"]
    command = ["teacher", "--config", name, "--data-root", str(root), "--out", str(out), "--backbone-weights", "none", *size]
    assert main([*command, *SHORT]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["steps"] == 2 and 0 <= report["accuracy"] <= 100 and (out / "reliability.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, command in SINGLE.items() if command == "pretrain"])
def test_a_pretraining_recipe_runs(tmp_path, name):
    for path in (tmp_path / "images" / split / kind for split in ("train", "val") for kind in ("one", "other")):
        path.mkdir(parents=True)
        for number in range(2):
            write_png(torch.randint(256, (3, 40, 48), dtype=torch.uint8), str(path / f"{number}.png"))
    out = tmp_path / "run"
    assert main(["pretrain", "--config", name, "--data-root", str(tmp_path / "images"), "--out", str(out), *SHORT]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["steps"] == 2 and 0 <= report["accuracy"] <= 100


def test_every_recipe_is_run_by_one_of_these():
    assert set(SINGLE.values()) == {"distill", "teacher", "pretrain"} and len(SINGLE) + len(SWEEPS) == len(RECIPES)
