"""cls2det look: what it prints, what it writes, and that what it proposes can be pasted."""

import dataclasses
import json
import shlex
import warnings

import pytest
from PIL import Image

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from other_layouts import LAYOUTS

from cls2det.cli import main
from cls2det.commands import proposal
from cls2det.commands.look import chosen_pictures
from cls2det.commands.options import DistillOptions, LookOptions, TeacherOptions
from cls2det.commands.parsing import parse_words
from cls2det.data.dataset import DetectionData
from cls2det.data.overview import overview, shares_below
from cls2det.models.students import STUDENTS
from rectangles import annotation_file, change_annotations, make_rectangles


@pytest.fixture
def data(tmp_path):
    """Twelve pictures of 96 x 72 with two objects each, one of them made a crowd, and one picture without an object."""

    def change(content):
        content["annotations"][0]["iscrowd"] = 1
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 12]

    root = make_rectangles(tmp_path / "data")
    change_annotations(root, "train", change)
    return root


def look(root, *words) -> None:
    assert main(["look", "--data-root", str(root), *words]) == 0


def shrink(root, side: int):
    def change(content):
        for annotation in content["annotations"]:
            annotation |= {"bbox": [*annotation["bbox"][:2], side, side], "area": side * side}

    change_annotations(root, "train", change)
    return root


def test_the_screen_is_short_and_says_what_is_there(data, capsys):
    look(data)
    text = capsys.readouterr().out
    assert "pictures  12, 1 of them without objects; 96 x 72 pixels" in text
    assert "objects   21 and 1 crowds; 1.8 per picture, at most 2" in text
    assert "classes   3: " in text
    assert "doubtful  fewer than 10 objects of class" in text
    assert "Objects with an anchor of ssdlite_mobilenet_v2 at 224 pixels at IoU 0.5" in text
    assert "cls2det teacher --config teacher-own-small" in text and len(text.splitlines()) < 30
    assert not (data.parent / "look.json").exists()


def test_what_is_written(data, tmp_path, capsys):
    out = tmp_path / "look"
    look(data, "--student", "ssd_compact", "--out", str(out), "--pictures", "5")
    report = json.loads((out / "look.json").read_text())
    numbers = report["data"]
    assert numbers["images"] == 12 and numbers["images without objects"] == 1
    assert numbers["objects"] == 21 and numbers["crowds"] == 1 and sum(numbers["classes"].values()) == 21
    assert numbers["image size"] == {"smallest": [96, 72], "median": [96, 72], "largest": [96, 72]}
    assert report["student"]["name"] == "ssd_compact" and report["student"]["image_size"] == 96
    own, fitted, rows = (report["anchors"][name] for name in ("own", "fitted", "by size"))
    assert own["objects"] == 21 == sum(row["objects"] for row in rows) and fitted["mean_iou"] > own["mean_iou"]
    for name, fit in (("own", own), ("fitted", fitted)):
        assert sum(row["objects"] * row[name]["share"] for row in rows) == pytest.approx(21 * fit["share"])
    # the height of 72 is brought to 96
    assert report["student"]["object size"]["50 %"] == pytest.approx(
        (96 / 72) ** 0.5 * numbers["object size"]["50 %"], rel=1e-4
    )
    assert [len(level) for level in report["proposal"]["anchors"]] == [4, 4, 4]
    with Image.open(out / "pictures.jpg") as sheet:
        assert sheet.size[0] > 4 * 96 and sheet.size[1] > 2 * 72  # five pictures in rows of four
    assert "written to" in capsys.readouterr().out


def test_doubts_of_the_data_are_told_once_and_not_as_warnings(data, capsys):
    def change(content):
        content["annotations"][3]["bbox"] = [1, 2, 3]
        content["categories"].append({"id": 4, "name": "Red"})

    change_annotations(data, "train", change)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look(data)
    text = capsys.readouterr().out
    assert text.count("with a bbox that is not four finite numbers") == 1
    assert "no object of class 'Red'" in text


def test_nothing_to_look_at(tmp_path, capsys):
    root = make_rectangles(tmp_path / "data")
    change_annotations(root, "train", lambda content: content.update(annotations=[]))
    look(root, "--out", str(tmp_path / "out"))
    text = capsys.readouterr().out
    assert "objects   0 and 0 crowds" in text and "Proposal" not in text
    assert json.loads((tmp_path / "out" / "look.json").read_text())["data"]["object size"] is None
    assert main(["look", "--data-root", str(tmp_path / "none")]) == 2
    assert "no folder of data at" in capsys.readouterr().err


def test_options_that_cannot_be(data, capsys):
    assert main(["look", "--data-root", str(data), "--student", "yolo"]) == 2
    assert "no student 'yolo'" in capsys.readouterr().err
    assert main(["look", "--data-root", str(data), "--pictures", "-1"]) == 2
    assert "pictures: expected 0 or more, found -1" in capsys.readouterr().err
    assert main(["look", "--data-root", str(data), "--student", "ssd300_vgg16", "--image-size", "96"]) == 2
    assert "takes images of size 300" in capsys.readouterr().err


def test_a_split_by_another_name(data, tmp_path, capsys):
    annotation_file(data, "train").rename(annotation_file(data, "all"))
    (data / "train").rename(data / "all")
    look(data, "--split", "all")
    text = capsys.readouterr().out
    assert "--train-split all --val-split val " in text
    annotation_file(data, "val").unlink()
    look(data, "--split", "all")
    text = capsys.readouterr().out
    assert "There is no second split" in text and "--train-split 'all[:80%]' --val-split 'all[80%:]' " in text
    look(data, "--split", "all[20%:60%]")
    assert "--train-split 'all[20%:60%]' --val-split 'all[60%:]' " in capsys.readouterr().out


def proposed(text: str) -> list[list[str]]:
    """Words of the commands on the screen."""
    return [shlex.split(line) for line in text.splitlines() if line.startswith("    cls2det ")]


@pytest.mark.parametrize("student", ["ssdlite_mobilenet_v2", "retinanet_compact", "fcos_compact", "ssd300_vgg16"])
def test_the_proposal_can_be_pasted(tmp_path, capsys, student):
    """Every word is an option of its command, and teacher and student agree."""
    root = make_rectangles(tmp_path / "folder with blanks")
    look(root, "--student", student)
    teacher, distill, train = proposed(capsys.readouterr().out)
    assert [words[:2] for words in (teacher, distill, train)] == [
        ["cls2det", name] for name in ("teacher", "distill", "train")
    ]
    baseline = parse_words(DistillOptions, train[2:], "distill", takes_recipe=True).without_distillation()
    teaching = parse_words(TeacherOptions, teacher[2:], "teacher", takes_recipe=True)
    learning = parse_words(DistillOptions, distill[2:], "distill", takes_recipe=True)
    assert teaching.data_root == learning.data_root == root and teaching.val_split == learning.val_split == "val"
    assert teaching.student == learning.student == student and teaching.image_size == learning.image_size
    assert learning.teacher == teaching.out / "weights.pt"
    assert dataclasses.replace(learning.without_distillation(), out=baseline.out) == baseline  # alike but for the teacher
    assert teaching.loss == ("joint" if STUDENTS[student].head == "sigmoid" else "ce")
    assert learning.optim.steps is None and learning.optim.epochs * 12 / learning.optim.batch_size >= proposal.STEPS


def test_small_objects_want_larger_images(tmp_path, capsys):
    root = shrink(make_rectangles(tmp_path / "data"), 5)
    look(root)
    text = capsys.readouterr().out
    teacher, distill, _ = proposed(text)
    size = distill[distill.index("--image-size") + 1]
    assert int(size) > 224 and f"Images at {size} pixels, not 224" in text
    assert teacher[teacher.index("--image-size") + 1] == size
    assert "Anchors from the data" in text and "--fit-anchors" not in distill  # the recipe has it
    look(root, "--image-size", "224")
    _, distill, _ = proposed(capsys.readouterr().out)
    assert distill[distill.index("--image-size") + 1] == "224"
    look(root, "--student", "ssd300_vgg16")  # of one size
    assert "--image-size" not in proposed(capsys.readouterr().out)[1]


def test_small_pictures_are_not_blown_up(tmp_path, capsys):
    """A Faster R-CNN's own 800 pixels show no more of pictures of 72 than 160 do."""
    look(make_rectangles(tmp_path / "data"), "--student", "fasterrcnn_mobilenet_v2_fpn")
    text = capsys.readouterr().out
    assert "Images at 160 pixels, not 800: the pictures show no more" in text and "0.04 times as long" in text
    teacher, distill, _ = proposed(text)
    assert teacher[teacher.index("--image-size") + 1] == distill[distill.index("--image-size") + 1] == "160"


def test_pictures_far_larger_than_the_input_are_to_be_reduced(tmp_path, capsys):
    look(make_rectangles(tmp_path / "large", splits={"train": 3, "val": 1}, size=(673, 504)), "--image-size", "224")
    text = capsys.readouterr().out
    words = (
        "Pictures are 3.0 times as large as the input: --max-image-side 448 reads them at twice the input, which trains faster"
    )
    assert words in text
    teacher, distill, train = proposed(text)
    assert parse_words(TeacherOptions, teacher[2:], "teacher", takes_recipe=True).max_image_side == 448
    assert parse_words(DistillOptions, distill[2:], "distill", takes_recipe=True).max_image_side == 448
    assert parse_words(DistillOptions, train[2:], "distill", takes_recipe=True).max_image_side == 448
    look(make_rectangles(tmp_path / "small", splits={"train": 3, "val": 1}, size=(672, 504)), "--image-size", "224")
    assert "max-image-side" not in capsys.readouterr().out  # three times as large


def test_the_size_of_most_pictures_counts(tmp_path, capsys):
    """One large picture among small ones is no reason to reduce them."""
    root = make_rectangles(tmp_path / "data", splits={"train": 3}, size=(600, 450))
    change_annotations(root, "train", lambda content: content["images"][0].update(width=4000, height=3000))
    Image.new("RGB", (4000, 3000)).save(root / "train" / "001.png")
    look(root, "--image-size", "224")
    assert "max-image-side" not in capsys.readouterr().out
    look(root, "--image-size", "192")
    assert "Pictures are 3.1 times as large as the input: --max-image-side 384" in capsys.readouterr().out


def test_tiny_objects_are_said_to_be_too_small(tmp_path, capsys):
    look(shrink(make_rectangles(tmp_path / "data", size=(960, 720)), 6), "--image-size", "224")
    text = capsys.readouterr().out
    assert "are too small for this student all the same" in text and "--crop-size 64" in text


def test_a_rare_class_of_small_objects_counts_as_much_as_a_common_one(tmp_path, capsys):
    """One in seventeen objects is too small at 224 pixels: all together nothing seems amiss."""

    def change(content):
        for annotation in content["annotations"]:
            if annotation["category_id"] == 1:
                annotation |= {"bbox": [*annotation["bbox"][:2], 60, 50], "area": 3000}
        content["annotations"] = [
            entry for entry in content["annotations"] if entry["category_id"] != 1 or entry["id"] % 8 == 0
        ]

    root = make_rectangles(tmp_path / "data", size=(1280, 960), objects=4)
    change_annotations(root, "train", change)
    look(root)
    text = capsys.readouterr().out
    assert "Images at" in text and "not 224: small objects" in text
    look(root, "--image-size", "224")
    assert "less than 90% of the objects get a fitted anchor at 224 pixels: red (" in capsys.readouterr().out


def test_much_data_has_the_students_own_recipe(data, monkeypatch, capsys):
    monkeypatch.setattr(proposal, "MANY", 12)
    look(data, "--student", "ssd300_vgg16")
    distill, _ = proposed(capsys.readouterr().out)
    assert distill[2:4] == ["--config", "ssd300"] and "--fit-anchors" in distill
    assert proposal.recipe_for("ssd_compact", 12) == (None, None)


def test_few_pictures_have_more_epochs():
    assert proposal.recipe_for("ssdlite_mobilenet_v2", 240) == ("own-small", None)
    assert proposal.recipe_for("ssdlite_mobilenet_v2", 50) == ("own-small", 224)
    assert proposal.recipe_for("ssdlite_mobilenet_v2", 3000) == ("own-small", 24)  # steps enough


def test_the_sheet_has_every_class(tmp_path):
    """A class of one object stands on it, however few pictures there are."""

    def change(content):
        for annotation in content["annotations"]:
            annotation["category_id"] = 1
        content["annotations"][17]["category_id"] = 3

    root = make_rectangles(tmp_path / "data")
    change_annotations(root, "train", change)
    split = DetectionData(root, "train")
    chosen = chosen_pictures(split, 2)
    assert len(chosen) == 2 and any(3 in split.targets[index]["labels"] for index in chosen)
    assert len(chosen_pictures(split, 40)) == 12


def test_numbers_of_a_split(tmp_path):
    root = make_rectangles(tmp_path / "data", size=(100, 50), objects=3)
    numbers = overview(DetectionData(root, "train"))
    assert numbers["objects per image"] == {"mean": 3.0, "most": 3}
    assert 25 * 12 <= numbers["object size"]["50 %"] ** 2 <= 50 * 25 and numbers["height over width"]["95 %"] < 1.0
    assert shares_below(DetectionData(root, "train").targets[0]["boxes"][:0, 0]) is None


def test_options_are_those_of_the_trainings(data):
    """The student that is looked at by default is the recipe's."""
    words = ["--config", "own-small", "--data-root", str(data), "--out", "x"]
    assert parse_words(DistillOptions, words, "distill", takes_recipe=True).student == LookOptions(data).student
    words[1] = "teacher-own-small"
    assert parse_words(TeacherOptions, words, "teacher", takes_recipe=True).student == LookOptions(data).student


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_are_looked_at_and_their_validation_split_is_known(layout, data, tmp_path, capsys):
    look(LAYOUTS[layout](make_rectangles(tmp_path / "coco"), tmp_path / layout))
    printed = capsys.readouterr().out
    assert "pictures  12" in printed and "--val-split val" in printed


def test_neither_the_test_split_nor_the_same_pictures_are_proposed_for_validation(data, tmp_path):
    annotation_file(data, "val").rename(annotation_file(data, "test"))
    (data / "val").rename(data / "test")
    assert proposal.other_split(data, "train") is None
    voc = LAYOUTS["voc"](make_rectangles(tmp_path / "coco"), tmp_path / "voc")
    lists = voc / "ImageSets" / "Main"
    both = (lists / "train.txt").read_text() + (lists / "val.txt").read_text()
    (lists / "trainval.txt").write_text(both)
    assert proposal.other_split(voc, "train") == "val" and proposal.other_split(voc, "trainval") is None
