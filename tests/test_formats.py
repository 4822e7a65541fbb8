"""VOC's and YOLO's layouts give the images, boxes, classes and numbers of the same data in COCO's."""

import json
import re
import shutil
import warnings

import pytest
import torch

pytest.importorskip("pycocotools")

from other_layouts import LAYOUTS, make_yolo, page
from PIL import Image

from cls2det.data import pictures
from cls2det.data.dataset import DetectionData
from cls2det.data.fingerprint import changes, fingerprint
from cls2det.data.layouts import list_splits, load_truth, read_split
from cls2det.data.truth import lists
from cls2det.evaluation.coco import coco_table
from rectangles import annotation_file, change_annotations, make_rectangles

SIZE = (96, 72)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = make_rectangles(tmp_path_factory.mktemp("formats") / "coco")

    def empty_the_last(content):
        last = content["images"][-1]["id"]
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != last]

    change_annotations(root, "train", empty_the_last)  # an image without objects
    return root


def silently(root, split="train", **options):
    """The data, which must not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return DetectionData(root, split, **options)


def names_of(data, target):
    return [data.classes[label - 1] for label in target["labels"]]


def perfect(data):
    return [
        {name: entry[name] for name in ("image_id", "category_id", "bbox")} | {"score": 1.0 - entry["id"] / 1000}
        for entry in data.coco.dataset["annotations"]
    ]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_as_the_same_data(name, coco, tmp_path):
    root = LAYOUTS[name](coco, tmp_path / "data")
    for split in ("train", "val"):
        expected, data = silently(coco, split), silently(root, split)
        order = sorted if name.startswith("voc") else list
        assert data.classes == order(expected.classes) and len(data) == len(expected)
        for index in range(len(data)):
            (image, target), (other_image, other) = data[index], expected[index]
            assert torch.equal(image, other_image)
            torch.testing.assert_close(target["boxes"], other["boxes"])
            assert names_of(data, target) == names_of(expected, other)
        table, expected_table = (coco_table(which, perfect(which)) for which in (data, expected))
        assert table["mAP"] == pytest.approx(100) == expected_table["mAP"]
        assert len(load_truth(root, split).dataset["images"]) == len(expected)
    assert len(silently(root, "train", labelled_only=True)) == 11
    splits = ["train", "val"] if name != "yolo, archive" else ["train", "val", "valid"]
    assert list_splits(root) == splits


@pytest.mark.parametrize("name", ["voc", "yolo, archive"])
def test_the_fingerprint_notices_changes(name, coco, tmp_path):
    root = LAYOUTS[name](coco, tmp_path / "data")
    then = fingerprint(silently(root))
    assert changes(then, fingerprint(silently(root))) == []
    if name == "voc":
        objects = [("red", (3, 4, 40, 50), 0), ("red", (5, 5, 60, 60), 0)]
        (root / "Annotations" / "train_002.xml").write_text(page("train_002.png", SIZE, objects))
    else:
        (root / "train" / "labels" / "002.txt").write_text("0 0.5 0.5 0.25 0.25\n0 0.5 0.5 0.5 0.5\n")
    assert changes(then, fingerprint(silently(root))) == ["boxes (22 as then, but others)"]
    if name == "voc":
        (root / "ImageSets" / "Main" / "train.txt").write_text("train_001\ntrain_002\n")
    else:
        (root / "train" / "images" / "012.png").unlink()
        config = root / "data.yaml"
        config.write_text(config.read_text().replace("green", "yellow"))
    assert [text.split()[0] for text in changes(then, fingerprint(silently(root)))][-2:] == ["images", "boxes"]


def test_files_are_read_once_per_process_unless_they_change(coco, tmp_path, monkeypatch):
    root, opened = make_yolo(coco, tmp_path / "data", form="folders"), []
    read = pictures.read_header
    monkeypatch.setattr(pictures, "read_header", lambda path, limit: opened.append(path) or read(path, limit))
    first = read_split(root, "train").columns
    assert len(opened) == 12 and lists(read_split(root, "train").columns) == lists(first) and len(opened) == 12
    picture = root / "images" / "train" / "003.png"
    Image.new("RGB", (200, 100)).save(picture)
    changed = lists(read_split(root, "train").columns)["images"]
    assert len(opened) == 13 and (changed[2]["width"], changed[2]["height"]) == (200, 100)


def test_coco_files_beside_their_pictures(coco, tmp_path):
    """As archives hold them: train/_annotations.coco.json."""
    root = tmp_path / "data"
    for split in ("train", "val"):
        shutil.copytree(coco / split, root / split)
        shutil.copyfile(annotation_file(coco, split), root / split / "_annotations.coco.json")
    assert fingerprint(silently(root)) == fingerprint(silently(coco)) and list_splits(root) == ["train", "val"]


@pytest.mark.parametrize("name", ["voc", "voc, flat", "yolo, archive"])
def test_teacher_student_and_report(name, coco, tmp_path, capsys):
    """Every command takes the folder; a run whose labels have changed does not go on."""
    pytest.importorskip("lightning")
    from cls2det.cli import main

    root = LAYOUTS[name](coco, tmp_path / "data")
    words = ["--data-root", str(root), "--val-split", "val", "--run.device", "cpu", "--optim.batch-size", "2"]
    short = ["--optim.steps", "2", "--run.checkpoint-every", "2"]
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    assert main(["teacher", *words, *short, "--width", "8", "--crop-size", "32", "--out", str(teacher)]) == 0
    assert re.search(r"accuracy +│ +\d+\.\d\d +│ % on val", capsys.readouterr().out)
    distil = [
        "distill",
        *words,
        "--teacher",
        str(teacher / "weights.pt"),
        "--backbone-weights",
        "none",
        "--allow-poor-teacher",
    ]
    distil += ["--image-size", "64", "--out", str(run)]
    assert main([*distil, *short]) == 0
    table = json.loads((run / "val" / "evaluation.json").read_text())
    assert sorted(table["AP by class"]) == ["blue", "green", "red"] and set(table["objects by class"].values()) == {4}
    assert re.search(r"mAP +│ +\d+\.\d\d +│ % on val", text := capsys.readouterr().out) and "AP by class" in text
    again = ["evaluate", "--data-root", str(root), "--split", "val", "--weights", str(run / "weights.pt"), "--device", "cpu"]
    assert main([*again, "--out", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again" / "evaluation.json").read_text())["AP by class"] == table["AP by class"]
    assert main(["report", str(run), "--out", str(tmp_path / "report")]) == 0
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert content["left out"] == [] and content["students"]["ssd_compact"]["errors"]
    changed = next(iter(sorted(root.rglob("*001.xml" if name.startswith("voc") else "*001.txt"))))
    changed.write_text(changed.read_text().replace("green", "red") if name.startswith("voc") else "0 0.5 0.5 0.3 0.3\n")
    capsys.readouterr()
    assert main([*distil, *short]) == 2 and "the data of train have other boxes" in capsys.readouterr().err


def test_a_yaml_file_of_something_else_is_not_read(coco, tmp_path):
    root = LAYOUTS["voc"](coco, tmp_path / "data")
    (root / "deploy.yaml").write_text("a: 1\n---\nb: 2\n")
    assert len(silently(root)) == len(silently(coco))
