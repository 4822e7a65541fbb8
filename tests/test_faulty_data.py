"""Data that lies: what it holds is told in one line, and each kind of fault is mended, warned of, or an error before a run."""

import ast
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("pycocotools")

from PIL import Image, ImageOps

from cls2det.commands.data import training_data
from cls2det.commands.evaluate import evaluate
from cls2det.commands.options import EvaluateOptions, TrainOptions
from cls2det.data.coco import read_annotations
from cls2det.data.conventions import suspect_convention
from cls2det.data.dataset import DetectionData
from cls2det.data.images import read_header, read_image
from cls2det.evaluation.coco import coco_table
from cls2det.settings import MAX_PIXELS
from rectangles import annotation_file, change_annotations, make_rectangles, silently

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def root(tmp_path):
    return make_rectangles(tmp_path / "data")


def change_boxes(root, change, split="train"):
    def apply(content):
        for annotation in content["annotations"]:
            image = content["images"][annotation["image_id"] - 1]
            annotation["bbox"] = change(*annotation["bbox"], image["width"], image["height"])

    change_annotations(root, split, apply)


def change_each(root, **values):
    def apply(content):
        for annotation in content["annotations"]:
            annotation.update(values)

    change_annotations(root, "train", apply)


# --- iscrowd, and the summary


@pytest.mark.parametrize("value", [0, False, 0.0, "0", "false", "False", None])
def test_no_crowd_in_every_form_is_trained_on(value, root):
    change_each(root, iscrowd=value)
    assert sum(silently(root).class_counts().values()) == 24


@pytest.mark.parametrize("value", [1, True, "1", "true"])
def test_a_crowd_in_every_form_is_a_crowd(value, root):
    change_annotations(root, "train", lambda content: content["annotations"][0].update(iscrowd=value))
    data = silently(root)
    assert sum(data.class_counts().values()) == 23 and data.coco.anns[1]["iscrowd"] == 1


@pytest.mark.parametrize("value", [2, -1, 0.5, "no", "", [0], {}, math.nan])
def test_an_iscrowd_that_is_neither_0_nor_1_is_an_error(value, root):
    change_each(root, iscrowd=value)
    with pytest.raises(
        ValueError, match=r"instances_train.json: 24 annotations with an iscrowd .*annotation 1 .* and 21 more"
    ):
        silently(root)


def test_crowds_in_the_majority_are_warned_of(root):
    change_annotations(root, "train", lambda content: [one.update(iscrowd=1) for one in content["annotations"][:15]])
    with pytest.warns(UserWarning, match=r"15 of 24 annotations are crowds"):
        DetectionData(root, "train")
    change_each(root, iscrowd=1)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"no image to use: 12 images are listed, and 0 boxes"):
        DetectionData(root, "train", labelled_only=True)


def spoil_a_few(content):
    first, second, third, fourth, *_ = content["annotations"]
    first["iscrowd"] = 1
    second["image_id"] = 99
    third.update(bbox=[5, 5, 0.5, 9], area=4.5)
    fourth["bbox"] = [90, 2, 20, 20]


def test_what_a_split_holds_is_logged_once(root, caplog):
    change_annotations(root, "train", spoil_a_few)
    with caplog.at_level(logging.INFO, logger="cls2det"), pytest.warns(UserWarning, match="not listed"):
        training_data(TrainOptions(root, root / "out", images=5))  # opens the split twice
    lines = [record.getMessage() for record in caplog.records if "instances_train.json" in record.getMessage()]
    assert len(lines) == 1 and lines[0].endswith(
        "12 images (11 with objects), 22 boxes, 3 classes; crowds: 1, annotations of images that are not listed: 1, "
        "tiny boxes (a side below 1 pixel): 1, boxes clipped at the border: 1"
    )


# --- EXIF orientation


def store_turned(path, orientation):
    """Let the picture look as before, but stored in another orientation."""
    back = {6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180, 2: Image.Transpose.FLIP_LEFT_RIGHT}
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).transpose(back[orientation]).save(path, exif=exif)


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_applied_on_demand_as_pillow_does(suffix, orientation, tmp_path):
    pixels, path, exif = (
        np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8),
        tmp_path / f"a.{suffix}",
        Image.Exif(),
    )
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(read_image(path).permute(1, 2, 0), pixels)
    assert np.array_equal(read_image(path, turned=True).permute(1, 2, 0), np.array(ImageOps.exif_transpose(Image.open(path))))
    assert read_header(path) == (6, 4, orientation)


def test_pictures_are_turned_where_the_annotations_mean_that(root):
    plain = silently(root)
    upright = [plain[index][0] for index in range(12)]
    for number in (2, 5, 6, 7):
        store_turned(root / "train" / f"{number:03}.png", 6)
    with pytest.warns(UserWarning, match=r"4 of 12 pictures .*turned by their EXIF.*002\.png, .* and 1 more") as caught:
        data = DetectionData(root, "train")
        assert all(torch.equal(data[index][0], upright[index]) for index in range(12))
    assert len(caught) == 1


def test_pictures_whose_size_fits_both_ways_stay_as_stored(root):
    for number, orientation in ((2, 3), (5, 2)):
        store_turned(root / "train" / f"{number:03}.png", orientation)
    with pytest.warns(UserWarning, match=r"2 of 12 pictures .*EXIF.*002\.png, 005\.png\. They are taken as stored") as caught:
        data = DetectionData(root, "train")
        stored = data[1][0]
    assert len(caught) == 1
    assert torch.equal(stored, read_image(root / "train" / "002.png"))


def test_a_turned_picture_beyond_those_looked_at_is_told_of_when_met(root, monkeypatch):
    monkeypatch.setattr("cls2det.data.pictures.EXAMINED", 3)
    for number in (2, 3):
        store_turned(root / "train" / f"{number:03}.png", 6)
    data = silently(root)
    with pytest.warns(UserWarning, match=r"some pictures .*turned by their EXIF.*002\.png") as caught:
        assert data[1][0].shape == data[2][0].shape == (3, 72, 96)
    assert len(caught) == 1


# --- area


@pytest.mark.parametrize("area", [-5, 0, math.nan, math.inf, 1e9, "120", [3], -0.0])
def test_an_area_that_cannot_be_is_width_times_height(area, root):
    expected = {number: one["area"] for number, one in silently(root).coco.anns.items()}
    table = coco_table(silently(root), perfect(silently(root)))
    change_each(root, area=area)
    with pytest.warns(UserWarning, match=r"24 annotations with an area .*annotation 1 .* and 21 more") as caught:
        data = DetectionData(root, "train")
    assert len(caught) == 1
    assert {number: one["area"] for number, one in data.coco.anns.items()} == expected
    assert coco_table(data, perfect(data)) == table and table["mAP"] == pytest.approx(100)


def perfect(data):
    return [
        {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": one["bbox"], "score": 1.0}
        for one in data.coco.anns.values()
    ]


def test_areas_of_segmentations_stay(root):
    def apply(content):
        for number, one in enumerate(content["annotations"]):
            one["area"] = one["bbox"][2] * one["bbox"][3] * (0.05, 0.6, 1.0, 1.2)[number % 4]

    change_annotations(root, "train", apply)
    areas = [one["area"] for one in json.loads(annotation_file(root, "train").read_text(encoding="utf-8"))["annotations"]]
    assert [one["area"] for one in silently(root).coco.anns.values()] == areas


# --- conventions


CONVENTIONS = {
    "two corners": lambda x, y, w, h, *_: [x, y, x + w, y + h],
    "of the centre": lambda x, y, w, h, *_: [x + w / 2, y + h / 2, w, h],
    "from 0 to 1": lambda x, y, w, h, width, height: [x / width, y / height, w / width, h / height],
    "from 0 to 1, and as .x, y, width, height. with x and y of the centre": lambda x, y, w, h, width, height: [
        (x + w / 2) / width,
        (y + h / 2) / height,
        w / width,
        h / height,
    ],
    "annotated at another size": lambda x, y, w, h, *_: [x / 2, y / 2, w / 2, h / 2],
    "were annotated at another size": lambda x, y, w, h, *_: [2 * x, 2 * y, 2 * w, 2 * h],
}


@pytest.mark.parametrize("words", CONVENTIONS)
def test_boxes_in_another_convention_are_warned_of(words, tmp_path):
    root = make_rectangles(tmp_path, splits={"train": 30})
    silently(root)
    change_boxes(root, CONVENTIONS[words])
    with pytest.warns(UserWarning, match=rf"instances_train.json: .*{words}"):
        DetectionData(root, "train")


def draw(kind, random, count):
    """Right boxes of one kind on images of several sizes."""
    smallest, largest = {"small": (0.01, 0.05), "middle": (0.05, 0.3), "large": (0.5, 0.95), "whole": (1, 1)}.get(
        kind, (0.05, 0.5)
    )
    sizes = random.choice([[640, 480], [480, 640], [1000, 500]], count).astype(float)
    shares = random.uniform(smallest, largest, (count, 2))
    places = random.random((count, 2))
    places = (places.round() if kind == "at the border" else places) * (1 - shares)
    if kind == "in the middle":
        places = ((1 - shares) / 2 + random.normal(0, 0.03, (count, 2))).clip(0, 1 - shares)
    if kind == "over the border":
        places = random.uniform(-0.2, 0.9, (count, 2))
    return np.concatenate([places * sizes, shares * sizes], 1), sizes


@pytest.mark.parametrize("kind", ["small", "middle", "large", "whole", "at the border", "in the middle", "over the border"])
@pytest.mark.parametrize("count", [9, 20, 100, 2000])
def test_right_boxes_of_many_shapes_raise_no_suspicion(kind, count):
    for seed in range(30):
        assert suspect_convention(*draw(kind, np.random.default_rng(seed), count)) is None


def test_boxes_that_stand_twice_are_counted(root):
    def repeat(content):
        content["annotations"] += [{**one, "id": 100 + number} for number, one in enumerate(content["annotations"][:5])]

    change_annotations(root, "train", repeat)
    with pytest.warns(UserWarning, match=r"5 annotations .* of an earlier one.*: annotation 100, .* and 2 more"):
        DetectionData(root, "train")


def test_a_file_listed_as_two_images_is_warned_of(root):
    change_annotations(root, "train", lambda content: content["images"][3].update(file_name="001.png"))
    with pytest.warns(UserWarning, match=r"1 file name of more than one image.*: 001\.png"):
        DetectionData(root, "train")


# --- image files


def replaced_by_a_broken_link(path):
    path.unlink()
    path.symlink_to("gone.png")


def replaced_by_a_folder(path):
    path.unlink()
    path.mkdir()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
NO_PICTURES = {
    "a broken link to gone.png": replaced_by_a_broken_link,
    "a folder": replaced_by_a_folder,
    "an empty file": lambda path: path.write_bytes(b""),
    "a pointer of Git LFS": lambda path: path.write_text(POINTER, encoding="utf-8"),
}


@pytest.mark.parametrize("reason", NO_PICTURES)
@pytest.mark.parametrize("count", [12, 60])  # 60: by threads
def test_what_cannot_be_a_picture_is_found_before_the_run(reason, count, tmp_path):
    root = make_rectangles(tmp_path, splits={"train": count})
    for number in (3, count):
        NO_PICTURES[reason](root / "train" / f"{number:03}.png")
    with pytest.raises(
        ValueError, match=rf"names 2 of {count} images that cannot be read: .*003\.png \({reason}.*0{count}\.png"
    ):
        silently(root)
    with pytest.warns(UserWarning, match=rf"2 of {count} images .*\({reason}.*; other images take their place") as caught:
        data = DetectionData(root, "train", on_bad_image="skip")
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"cannot read"):
        assert int(data[2, 0][1]["image_id"]) == 4


def test_pages_and_pictures_of_another_size_are_found_before_the_run(root):
    (root / "train" / "002.png").write_text("<html>404 Not Found</html>" * 100, encoding="utf-8")
    Image.new("RGB", (48, 36)).save(root / "train" / "004.png")
    with pytest.raises(
        ValueError, match=r"2 images that cannot be used, of 12 looked at: image 2: cannot read .*, image 4 is 96 x 72"
    ):
        silently(root)


def rename_files(change):
    return lambda content: [image.update(file_name=change(image["file_name"])) for image in content["images"]]


HINTS = {
    "001.PNG is there, in other letter case": lambda root: rename(root, "001.png", "001.PNG"),
    "001.jpg is there, with another suffix": lambda root: rename(root, "001.png", "001.jpg"),
    "001.png is there: leave out train/": lambda root: change_annotations(root, "train", rename_files("train/{}".format)),
    "001.png is there: leave out C:/data/": lambda root: change_annotations(
        root, "train", rename_files("C:\\data\\{}".format)
    ),
    "file_name is an address": lambda root: change_annotations(root, "train", rename_files("https://host/{}".format)),
    "there are blanks around the name": lambda root: change_annotations(root, "train", rename_files("{} ".format)),
}


def rename(root, old, new):
    (root / "train" / old).rename(root / "train" / new)


@pytest.mark.parametrize("words", HINTS)
def test_missing_files_come_with_the_likely_cause(words, root):
    HINTS[words](root)
    with pytest.raises(FileNotFoundError, match=rf"images that are not there: .*001\.\w+ *\(.*{words}"):
        silently(root)


def test_missing_files_hint_at_unicode_forms_and_quoted_names(root):
    rename(root, "001.png", unicodedata.normalize("NFD", "Köln.png"))
    change_annotations(
        root, "train", lambda content: content["images"][0].update(file_name=unicodedata.normalize("NFC", "Köln.png"))
    )
    with pytest.raises(FileNotFoundError, match=r"is there, in other Unicode form"):
        silently(root)
    change_annotations(root, "train", lambda content: content["images"][0].update(file_name="K%C3%B6ln.png"))
    rename(root, unicodedata.normalize("NFD", "Köln.png"), "Köln.png")
    with pytest.raises(FileNotFoundError, match=r"written as in an address; Köln\.png is there"):
        silently(root)


def test_backslashes_are_read_as_slashes_with_a_warning(root):
    (root / "train" / "day").mkdir()
    for path in (root / "train").glob("*.png"):
        path.rename(root / "train" / "day" / path.name)
    change_annotations(root, "train", rename_files("day\\{}".format))
    with pytest.warns(UserWarning, match=r"12 file names with backslashes, .*day\\001\.png.* and 9 more") as caught:
        data = DetectionData(root, "train")
    assert len(caught) == 1 and data[11][0].shape == (3, 72, 96)


# --- limits and text


def test_large_pictures_need_leave(root):
    with pytest.raises(
        ValueError, match=r"001\.png: it has 96 x 72 = 6912 pixels, more than the limit of 6911\..*--max-pixels"
    ):
        silently(root, max_pixels=6911)
    assert len(silently(root, max_pixels=6912)) == 12


def test_a_picture_beyond_pillows_own_limits_is_read_without_its_warning(tmp_path, monkeypatch):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").shape == (3, 30, 40)
    assert Image.MAX_IMAGE_PIXELS == 100 and MAX_PIXELS == 178_956_970


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_annotations_in_other_unicode_encodings(encoding, root):
    file = annotation_file(root, "train")
    file.write_text(file.read_text(encoding="utf-8").replace("red", "红"), encoding=encoding)
    assert silently(root).classes[0] == "红"


def test_annotations_in_a_code_page_or_packed(root):
    file = annotation_file(root, "train")
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("red", "größe"), encoding="latin-1")
    with pytest.raises(ValueError, match=r"is not COCO-format json in UTF-8: .*; save it as UTF-8"):
        read_annotations(file)
    shutil.move(file, f"{file}.gz")
    with pytest.raises(FileNotFoundError, match=r"instances_train\.json\.gz is there: unpack it"):
        read_annotations(file)


def test_boxes_that_are_missing_beside_a_segmentation_are_named(root):
    change_annotations(root, "train", lambda content: content["annotations"][0].update(segmentation=[[1, 1, 9, 1, 9, 9]]))
    change_annotations(root, "train", lambda content: content["annotations"][0].pop("bbox"))
    with pytest.warns(UserWarning, match=r"annotation 1 of image 1 \(no bbox, but a segmentation\)"):
        DetectionData(root, "train")


def text_calls_without_encoding(file):
    """Lines where a text file is opened in the encoding of the system: ``read_text``, ``write_text`` and ``open``."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            values = [
                value.value
                for value in (*node.args, *(word.value for word in node.keywords))
                if isinstance(value, ast.Constant)
            ]
            is_binary = any(isinstance(value, str) and "b" in value and set(value) <= set("rwaxb+") for value in values)
            is_image = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in ("Image", "os", "webbrowser")
            keywords = {word.arg for word in node.keywords}
            if name in ("read_text", "write_text", "open") and "encoding" not in keywords and not is_binary and not is_image:
                yield f"{file.relative_to(REPOSITORY)}:{node.lineno}"


def test_every_text_file_is_read_and_written_as_utf_8():
    """ruff's PLW1514 does not see a call on a value whose type it does not know."""
    folders = [REPOSITORY / name for name in ("cls2det", "cls2det_ops", "benchmarks", "docs")]
    files = [path for folder in folders for path in folder.rglob("*.py")] + [REPOSITORY / "setup.py"]
    assert len(files) > 100
    assert [line for file in files for line in text_calls_without_encoding(file)] == []


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # of a terminal that knows no other letters


def run_in_ascii(*words):
    environment = {**os.environ, **ASCII}
    environment.pop("PYTHONIOENCODING", None)
    command = [sys.executable, "-c", "import sys; from cls2det.cli import main; sys.exit(main())", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, cwd=REPOSITORY, check=False)


def test_recipes_are_printed_on_a_terminal_of_ascii():
    for words in (("recipes",), ("recipes", "--name", "ssd300")):
        result = run_in_ascii(*words)
        assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout.decode("ascii"))["student"] == "ssd300_vgg16"


def test_class_names_and_results_on_a_terminal_of_ascii(root):
    """A split with Chinese classes is trained on and evaluated; what the terminal lacks is written as an escape."""

    def rename_classes(content):
        for category, name in zip(content["categories"], ("红", "grün", "·"), strict=True):
            category["name"] = name

    for split in ("train", "val"):
        change_annotations(root, split, rename_classes)
    words = (
        "--run.device",
        "cpu",
        "--optim.steps",
        "1",
        "--optim.batch-size",
        "2",
        "--backbone-weights",
        "none",
        "--run.pictures",
        "0",
    )
    result = run_in_ascii("train", "--data-root", root, "--val-split", "val", "--out", root / "out", *words)
    assert result.returncode == 0, result.stderr
    assert b"mAP" in result.stdout
    change_annotations(root, "train", lambda content: content["images"][0].update(file_name="größe.png"))
    rename(root, "001.png", "größe.png")
    result = run_in_ascii("train", "--data-root", root, "--out", root / "other", *words)
    assert b"encoding of file names" in result.stderr and result.returncode == 2
    options = EvaluateOptions(root / "out" / "weights.pt", root, "val", device="cpu", max_pixels=100)
    with pytest.raises(ValueError, match=r"more than the limit of 100\."):
        evaluate(options, lambda *_: None)
