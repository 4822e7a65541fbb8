"""Runs that were wrong without a word: on changed data, with half of a checkpoint, or with losses that are no numbers."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

import cls2det
from cls2det import files
from cls2det.cli import main
from rectangles import annotation_file, change_annotations, make_rectangles
from training_cases import weights_in

HERE = Path(__file__).parent
SMALL = [
    "--backbone-weights",
    "none",
    "--image-size",
    "96",
    "--run.device",
    "cpu",
    "--run.cache",
    "true",
    "--run.log-every",
    "1",
]
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(map(str, (HERE, Path(cls2det.__file__).parents[1]))),
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


@pytest.fixture
def rectangles(tmp_path):
    return make_rectangles(tmp_path / "rectangles")


def words(command: str, root: Path, out: Path, *more: str, steps: int = 2, every: int = 1) -> list[str]:
    """Of a short run of train, distill, teacher or pretrain."""
    small = SMALL if command in ("train", "distill") else ["--run.device", "cpu", "--run.log-every", "1"]
    optim = ["--optim.steps", str(steps), "--optim.batch-size", "2", "--run.checkpoint-every", str(every)]
    return [command, "--data-root", str(root), "--out", str(out), *small, *optim, *more]


def teacher_words(root: Path, out: Path, *more: str, **steps: int) -> list[str]:
    return words("teacher", root, out, "--width", "4", "--crop-size", "32", *more, **steps)


def run_fails(arguments: list[str], capsys) -> str:
    """The one line that it prints."""
    capsys.readouterr()
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"cls2det {arguments[0]}: ") and message.count("\n") == 1, message
    return message


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------- other data or weights under the same --out


def rename_a_class(content):
    content["categories"][0]["name"] = "crimson"


def move_a_box(content):
    content["annotations"][3]["bbox"][0] += 1


def make_a_crowd(content):
    content["annotations"][3]["iscrowd"] = 1


def drop_a_box(content):
    del content["annotations"][3]


def drop_an_image(content):
    del content["images"][0]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 1]


CHANGES = [
    (rename_a_class, r"train have other classes \(3 as then, but others\)"),
    (move_a_box, r"train have other boxes \(24 as then, but others\)"),
    (make_a_crowd, r"train have other boxes \(24 as then, but others\)"),
    (drop_a_box, r"train have other boxes \(24 then, 23 now\)"),
    (drop_an_image, r"train have other images \(12 then, 11 now\), boxes \(24 then, 22 now\)"),
]


def test_data_that_changed_under_the_same_out_are_refused(rectangles, tmp_path, capsys):
    """Of a finished run, whose weights stay as they are."""
    command = words("train", rectangles, tmp_path / "run", steps=1)
    assert main(command) == 0
    before, annotations = files_in(tmp_path / "run"), annotation_file(rectangles, "train").read_bytes()
    for change, text in CHANGES:
        change_annotations(rectangles, "train", change)
        message = run_fails(command, capsys)
        assert re.search(text, message) and "Give another --out" in message, message
        assert files_in(tmp_path / "run") == before
        annotation_file(rectangles, "train").write_bytes(annotations)
    assert main(command) == 0


@pytest.mark.parametrize("command", ["teacher", "train"])
def test_a_half_done_run_does_not_go_on_with_other_labels(rectangles, tmp_path, capsys, command):
    make = teacher_words if command == "teacher" else lambda *arguments, **steps: words("train", *arguments, **steps)
    arguments = make(rectangles, tmp_path / "run", "--val-split", "val", steps=2)
    assert main(arguments) == 0
    (tmp_path / "run" / "weights.pt").unlink()  # as if it had been stopped
    change_annotations(rectangles, "val", drop_a_box)
    assert "the data of val have other boxes (12 then, 11 now)" in run_fails(arguments, capsys)
    assert not (tmp_path / "run" / "weights.pt").exists()


def test_the_same_data_written_otherwise_go_on(rectangles, tmp_path):
    """Other ids of annotations and categories, another order of images, other fields."""
    arguments = words("train", rectangles, tmp_path / "run", steps=1)
    assert main(arguments) == 0

    def write_otherwise(content):
        content["images"].reverse()
        content["info"] = {"description": "again"}
        for entry in (*content["annotations"], *content["categories"]):
            entry["id"] += 100
        for entry in content["annotations"]:
            entry["category_id"] += 100

    change_annotations(rectangles, "train", write_otherwise)
    assert main(arguments) == 0


def test_a_run_of_an_older_version_has_no_fingerprint_and_goes_on(rectangles, tmp_path):
    arguments = words("train", rectangles, tmp_path / "run", steps=1)
    assert main(arguments) == 0
    file = tmp_path / "run" / "options.json"
    record = json.loads(file.read_text())
    assert record.pop("data").keys() == {"train"} and record.pop("weights") == {}
    file.write_text(json.dumps(record))
    change_annotations(rectangles, "train", move_a_box)
    assert main(arguments) == 0 and json.loads(file.read_text()) == record


@pytest.mark.parametrize("option", ["teacher", "start", "detector-teacher"])
def test_weights_that_changed_under_the_same_path_are_refused(rectangles, tmp_path, capsys, option):
    def write(seed):
        make = words if option == "detector-teacher" else teacher_words
        first = ["train"] if make is words else []
        more = [] if make is words else ["--image-size", "96"]
        more += ["--architecture", "compact", "--width", "16"] if option == "start" else []
        out = tmp_path / f"{option}-{seed}"
        assert main(make(*first, rectangles, out, "--seed", str(seed), *more, steps=1)) == 0
        shutil.copy(out / "weights.pt", tmp_path / "given.pt")

    write(1)
    more = ["--distillers", "fkd"] if option == "detector-teacher" else []
    more += ["--allow-poor-teacher"] if option == "teacher" else []
    if option == "start":
        more += ["--classifier.kd-cls-weight", "0", "--classifier.kd-loc-weight", "0", "--classifier.loc-weight", "0"]
    arguments = words("distill", rectangles, tmp_path / "run", f"--{option}", str(tmp_path / "given.pt"), *more, steps=1)
    assert main(arguments) == 0
    assert main(arguments) == 0
    write(2)
    message = run_fails(arguments, capsys)
    assert f"the file of {option.replace('-', '_')} holds other weights than then" in message


def test_images_by_class_that_changed_are_refused(tmp_path, capsys):
    root = make_rectangles(tmp_path / "rectangles", splits={"train": 6})
    for number, file in enumerate(sorted((root / "train").glob("*.png"))):
        (tmp_path / "images" / "train" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "images" / "train" / str(number % 2))
    more = ["--val-split", "null", "--architecture", "resnet18", "--width", "4", "--image-size", "32"]
    arguments = words("pretrain", tmp_path / "images", tmp_path / "run", *more, steps=1)
    assert main(arguments) == 0
    assert main(arguments) == 0
    next((tmp_path / "images" / "train" / "0").iterdir()).unlink()
    assert "the data of train have other images (6 then, 5 now)" in run_fails(arguments, capsys)


def test_a_sweep_whose_data_changed_is_refused(rectangles, tmp_path, capsys):
    """One that is done, and whose trainings would have been skipped."""
    config = tmp_path / "sweep.yaml"
    optim = {"optim": {"steps": 1, "batch_size": 2}, "run": {"checkpoint_every": 1}}
    train = {"backbone_weights": "none", "image_size": 96, **optim}
    config.write_text(json.dumps({"train": train, "arms": {"baseline": {}}, "seeds": [1], "split": "val"}))
    arguments = ["sweep", "--config", str(config), "--data-root", str(rectangles), "--out", str(tmp_path / "sweep")]
    arguments += ["--device", "cpu", "--workers", "1"]
    assert main(arguments) == 0
    assert main(arguments) == 0
    for split, text in (("val", "evaluation.json is of other data: val has other boxes"), ("train", "the data of train have")):
        change_annotations(rectangles, split, move_a_box)
        assert text in run_fails(arguments, capsys)


def test_a_run_among_its_data_is_refused(rectangles, capsys):
    for out in (rectangles, rectangles / "train" / "run", rectangles / "annotations"):
        assert "lies among the data of" in run_fails(words("train", rectangles, out), capsys)
    assert not (rectangles / "options.json").exists()
