"""Faults of VOC's and YOLO's layouts: each is mended, warned of, or an error before a run."""

import logging
import shutil

import pytest

pytest.importorskip("pycocotools")

from other_layouts import make_voc, make_yolo, page
from PIL import Image

from cls2det.data.coco import read_annotations
from cls2det.data.dataset import DetectionData
from cls2det.evaluation.coco import coco_table
from rectangles import annotation_file, make_rectangles, silently


@pytest.fixture
def root(tmp_path):
    return make_rectangles(tmp_path / "data")


def perfect(data):
    return [
        {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": one["bbox"], "score": 1.0}
        for one in data.coco.anns.values()
    ]


# ---------------------------------------------------------------- VOC


def voc_objects(root, objects, name="train_001", **options):
    """Objects of one VOC file: class, corners, difficult."""
    size = options.get("size", (96, 72))
    (root / "Annotations" / f"{name}.xml").write_text(page(f"{name}.png", size, objects), encoding="utf-8")


@pytest.fixture
def voc(root, tmp_path):
    return make_voc(root, tmp_path / "voc")


@pytest.fixture
def yolo(root, tmp_path):
    return make_yolo(root, tmp_path / "yolo", form="folders")


def labels_of(yolo, number=1):
    return yolo / "labels" / "train" / f"{number:03}.txt"


def test_voc_files_that_are_cut_off(voc):
    file = voc / "Annotations" / "train_002.xml"
    for content, reason in (
        (file.read_bytes()[:200], "no whole XML"),
        (b"", "no whole XML"),
        (b"<html></html>", "expected VOC's <annotation>"),
        (b"<annotation><object><name> </name></object></annotation>", "object 1 has no name"),
        (
            b"<annotation><object><name>red</name><difficult>2</difficult></object></annotation>",
            "difficult '2', expected 0 or 1",
        ),
    ):
        file.write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"train\.txt: 1 annotation file that cannot be used: .*train_002\.xml \(.*{reason}"
        ):
            DetectionData(voc, "train")
        silently(voc, "val")  # not of its concern
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"lists 1 of 12 pictures without an annotation file: .*train_002\.xml"):
        DetectionData(voc, "train")


def test_voc_classes_that_are_not_listed(voc):
    (voc / "classes.txt").write_text("red\ngreen\nblue\nyellow\n")
    assert silently(voc).classes == ["red", "green", "blue", "yellow"]  # in the file's order
    voc_objects(voc, [("reed", (1, 1, 20, 20), 0)])
    with pytest.raises(
        ValueError, match=r"1 object of a class that .*classes\.txt does not list: train_001\.xml, object 1 \('re"
    ):
        DetectionData(voc, "train")
    (voc / "classes.txt").unlink()
    assert silently(voc, "val").classes == [
        "blue",
        "green",
        "red",
        "reed",
    ]  # without a list, every name of every split is a class


def test_voc_corners_count_from_1(voc, caplog):
    voc_objects(voc, [("red", (1, 1, 96, 72), 0), ("red", (5, 7, 5, 7), 0)])
    with caplog.at_level(logging.INFO, "cls2det"):
        assert silently(voc).targets[0]["boxes"].tolist() == [[0, 0, 96, 72], [4, 6, 5, 7]]
        assert "counted from 0" not in caplog.text
        voc_objects(voc, [("red", (0, 0, 96, 72), 0), ("red", (5, 7, 6, 8), 0)])
        assert silently(voc).targets[0]["boxes"].tolist() == [[0, 0, 96, 72], [5, 7, 6, 8]]
    assert "pixels are counted from 0 and not from 1" in caplog.text
    with caplog.at_level(logging.INFO, "cls2det"):
        boxes = silently(voc, "val").targets[0]["boxes"]  # all splits alike
    x, y, w, h = read_annotations(annotation_file(voc.parent / "data", "val"))["annotations"][0]["bbox"]
    assert boxes[0].tolist() == [x + 1, y + 1, x + w, y + h] and caplog.text.count("counted from 0") == 1


def test_voc_objects_that_are_difficult(voc):
    """Not trained on; neither a detection of one nor a miss counts."""
    voc_objects(voc, [("red", (10, 10, 40, 40), 0), ("red", (50, 10, 90, 60), 1)])
    data = silently(voc)
    assert len(data.targets[0]["labels"]) == 1
    objects = [entry for entry in perfect(data)]
    difficult = [entry for entry in objects if entry["image_id"] == 1 and entry["bbox"][0] > 45]
    assert len(difficult) == 1
    assert coco_table(data, objects)["mAP"] == coco_table(data, [entry for entry in objects if entry not in difficult])["mAP"]
    assert coco_table(data, objects)["mAP"] == pytest.approx(100)


def test_voc_lists_with_suffixes(voc):
    """A list may name pictures; where a.jpg.xml is there, a.jpg is a stem."""
    file = voc / "ImageSets" / "Main" / "train.txt"
    for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".png")):
        (voc / folder / f"train_002{suffix}").rename(voc / folder / f"train_002.jpg{suffix}")
    file.write_text(file.read_text().replace("001\n", "001.png\n").replace("002\n", "002.jpg\n") + "train_003\n\n")
    with pytest.warns(UserWarning, match="lists 1 picture twice"):
        assert [image.name for image in DetectionData(voc, "train").files.values()][:2] == [
            "train_001.png",
            "train_002.jpg.png",
        ]


def test_voc_boxes_that_are_none(voc):
    voc_objects(voc, [("red", (40, 10, 20, 30), 0), ("red", ("x", 1, 5, 5), 0), ("red", (1, 1, 9, 9), 0)])
    with pytest.warns(UserWarning, match=r"2 objects left out.*xmin ≤ xmax.*train_001\.xml, object 1 .*object 2 \(no bndbox"):
        assert len(DetectionData(voc, "train").targets[0]["labels"]) == 1


def test_voc_files_without_a_size(voc):
    voc_objects(voc, [("red", (1, 1, 9, 9), 0)], size=None)
    with pytest.warns(
        UserWarning, match=r"1 picture without <size> .*the size of the picture as stored is taken: train_001\.png"
    ):
        assert DetectionData(voc, "train").files[1].width == 96
    voc_objects(voc, [("red", (1, 1, 9, 9), 0)], size=(72, 96))
    with pytest.raises(ValueError, match=r"is 72 x 96 pixels there.*are width and height swapped"):
        DetectionData(voc, "train")


def test_voc_pictures_and_files_apart(root, tmp_path):
    flat = make_voc(root, tmp_path / "flat", flat=True)
    (flat / "train" / "003.xml").unlink()
    with pytest.warns(UserWarning, match=r"1 picture left out, without an annotation file; .*: 003"):
        assert len(DetectionData(flat, "train")) == 11
    (flat / "train" / "004.png").unlink()
    with pytest.warns(UserWarning), pytest.raises(FileNotFoundError, match=r"1 of 11 images that are not there: .*004"):
        DetectionData(flat, "train")


# ---------------------------------------------------------------- YOLO


def test_yolo_lines_that_are_no_labels(yolo):
    for line, reason in (
        ("0 0.5 0.5 0.2", r"001\.txt, line 1 \(4 numbers\)"),
        ("0 0.5 0.5 0.2 0.2 0.9", r"\(6 numbers\)"),
        ("red 0.5 0.5 0.2 0.2", "not all are numbers"),
        ("0 0,5 0,5 0,2 0,2", "not all are numbers"),
    ):
        labels_of(yolo).write_text(f"{line}\n")
        with pytest.raises(
            ValueError, match=rf"data\.yaml: 1 label line that cannot be read: .*{reason}.*Expected class, x, y"
        ):
            DetectionData(yolo, "train")
    labels_of(yolo).write_text("\n0 0.5 0.5 0.25 0.5 \n", encoding="utf-16")
    assert silently(yolo).targets[0]["boxes"].tolist() == [[36, 18, 60, 54]]


def test_yolo_classes_that_are_not_listed(yolo):
    for label in ("3", "-1", "0.5"):
        labels_of(yolo).write_text(f"{label} 0.5 0.5 0.2 0.2\n")
        with pytest.raises(
            ValueError, match=rf"1 label line of a class that is not listed: .*\(class {label}\); there are 3 \(0"
        ):
            DetectionData(yolo, "train")
    config = yolo / "data.yaml"
    text = config.read_text()
    config.write_text(f"{text}nc: 4\n")
    with pytest.raises(ValueError, match=r"data\.yaml: nc is 4, and names has 3"):
        DetectionData(yolo, "train")
    labels_of(yolo).write_text("0.0 0.5 0.5 0.2 0.2\n")  # as numpy writes it
    config.write_text(text.replace("red", "no"))
    assert silently(yolo).classes == ["no", "green", "blue"]  # in YAML 1.1 no is false


def test_yolo_numbers_that_are_no_shares(yolo):
    labels_of(yolo).write_text("0 48 36 20 20\n")
    with pytest.raises(
        ValueError, match=r"1 label line with numbers that are no shares.*line 1 \(48 36 20 20\)\. If they are"
    ):
        DetectionData(yolo, "train")
    labels_of(yolo).write_text("0 1.05 0.5 0.2 0.2\n1 0.9 0.5 0.4 0.2\n")  # the second reaches over the border: as with COCO
    with pytest.warns(UserWarning, match=r"1 label line with shares outside of 0 to 1; .*line 1 \(1\.05 0\.5"):
        boxes = DetectionData(yolo, "train").targets[0]["boxes"]
    assert boxes[:, 2].tolist() == [96, 96] and boxes[0, 0] == pytest.approx(0.95 * 96)
    labels_of(yolo).write_text("0 nan 0.5 0.2 0.2\n1 0.5 0.5 -0.4 0.2\n1 0.5 0.5 0.5 0.5\n")
    with pytest.warns(UserWarning, match=r"2 label lines left out, of the evaluation too, with numbers that are not finite"):
        assert len(DetectionData(yolo, "train").targets[0]["labels"]) == 1


def test_yolo_polygons(yolo):
    labels_of(yolo).write_text("2 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75\n")
    target = silently(yolo).targets[0]
    assert target["boxes"].tolist() == [[24, 18, 72, 54]] and target["labels"].tolist() == [3]
    with (yolo / "data.yaml").open("a") as file:
        file.write("kpt_shape: [2, 2]\n")
    labels_of(yolo).write_text("2 0.5 0.5 0.25 0.5 0.1 0.1 0.2 0.2\n")
    for number in range(2, 13):
        labels_of(yolo, number).unlink()
    with pytest.warns(UserWarning, match="11 pictures without a label file"):  # of poses, the box stands first
        assert DetectionData(yolo, "train").targets[0]["boxes"].tolist() == [[36, 18, 60, 54]]


def test_yolo_label_files_that_are_missing(yolo):
    labels_of(yolo).unlink()
    assert len(silently(yolo)) == 12 and len(silently(yolo, labelled_only=True)) == 11  # a picture without objects
    labels_of(yolo).with_name("other.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.warns(UserWarning, match=r"1 label file left out, without a picture: .*other\.txt"):
        DetectionData(yolo, "train")
    shutil.rmtree(yolo / "labels")
    with pytest.raises(ValueError, match=r"none of 12 pictures has a label file; expected .*001\.txt for .*001\.png"):
        DetectionData(yolo, "train")


def test_yolo_pictures_that_are_turned_or_unreadable(yolo):
    """Shares are of the picture as YOLO's trainers see it: turned by its EXIF orientation."""
    picture = yolo / "images" / "train" / "001.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(picture).save(picture.with_suffix(".jpg"), exif=exif)
    picture.unlink()
    labels_of(yolo).write_text("0 0.5 0.25 1 0.5\n")
    with pytest.warns(UserWarning, match=r"1 of 12 pictures looked at .*turned"):
        data = DetectionData(yolo, "train")
    assert data[0][0].shape == (3, 96, 72) and data.targets[0]["boxes"].tolist() == [[0, 0, 72, 48]]
    picture.with_suffix(".jpg").write_bytes(b"no picture, but more than nothing")
    with pytest.raises(ValueError, match=r"1 image that cannot be used, of 12 looked at: image 1: cannot read .*001\.jpg"):
        DetectionData(yolo, "train")
    data = DetectionData(yolo, "train", on_bad_image="skip")
    with pytest.warns(UserWarning, match="skipped"):
        assert data[0, 0][0].shape == (3, 72, 96)


def test_a_split_in_two_layouts_or_in_none(voc, yolo, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no split test in .*voc; there are train, val"):
        DetectionData(voc, "test")
    with pytest.raises(FileNotFoundError, match=r"no split test in .*yolo; there are train, val"):
        DetectionData(yolo, "test")
    (tmp_path / "archive").mkdir()
    shutil.copytree(voc, tmp_path / "archive" / "VOC2012")
    with pytest.raises(FileNotFoundError, match=r"archive/VOC2012 has a split train: is that the folder"):
        DetectionData(tmp_path / "archive", "train")
    shutil.rmtree(tmp_path / "archive" / "VOC2012" / "ImageSets")
    with pytest.raises(
        FileNotFoundError, match=r"no split train .*; there is all alone, which can be taken in parts: 'all\[:80%\]'"
    ):
        DetectionData(tmp_path / "archive" / "VOC2012", "train")
    shutil.copytree(voc, yolo, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"train is there twice, with XML files as of VOC and with labels as of YOLO"):
        DetectionData(yolo, "train")
    assert len(silently(yolo / "data.yaml")) == 12  # the way out
    with pytest.raises(FileNotFoundError, match=r"no folder of data at .*none$"):
        DetectionData(tmp_path / "none", "train")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no annotation file .*instances_train\.json.*VOC's and YOLO's folders"):
        DetectionData(tmp_path / "none", "train")


def test_a_place_that_is_not_the_folder_of_the_data(tmp_path):
    root = make_rectangles(tmp_path / "coco")
    with pytest.raises(NotADirectoryError, match=r"instances_train\.json is a file; expected .*, perhaps .*coco$"):
        DetectionData(root / "annotations" / "instances_train.json", "train")
    with pytest.raises(NotADirectoryError, match=r"is a file; expected the folder of the data, perhaps .*train$"):
        DetectionData(next((root / "train").iterdir()), "train")
    archive = tmp_path / "home" / "archive"
    for split in ("train", "valid"):
        shutil.copytree(root / "train", archive / split)
        shutil.copy(root / "annotations" / "instances_train.json", archive / split / "_annotations.coco.json")
    for place in (archive / "train", archive / "train" / "_annotations.coco.json"):
        with pytest.raises(
            NotADirectoryError, match=r"train is one split; expected the folder of the data, perhaps .*archive$"
        ):
            DetectionData(place, "train")
    with pytest.raises(FileNotFoundError, match=r"archive has a split train: is that the folder of the data"):
        DetectionData(archive.parent, "train")  # whose pictures, taken together, would mix the splits
    assert len(DetectionData(archive, "valid")) == 12
