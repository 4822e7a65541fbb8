"""Large pictures that are reduced as they are read: with their boxes, before the cache, and for training alone."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from cls2det.cli import main
from cls2det.commands.data import training_data, validation_data
from cls2det.commands.options import TrainOptions
from cls2det.data.dataset import DetectionData
from cls2det.evaluation.coco import evaluate_detector
from cls2det.models.students import build_student, load_student, save_student
from cls2det.teachers import bank_file
from cls2det.training.settings import Run
from rectangles import COLOURS, change_annotations, make_rectangles, silently

SIZE, SIDE, REDUCED = (300, 200), 64, (64, 43)  # 42.67 is rounded, so width and height have ratios of their own


@pytest.fixture
def root(tmp_path):
    return make_rectangles(tmp_path / "data", size=SIZE, objects=1)


def assert_boxes_hold_the_colours(data):
    """A pixel inside of a box's border has the colour of its class, and one outside has not: what no formula decides."""
    for image, target in (data[index] for index in range(len(data))):
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            colour = torch.tensor(COLOURS[data.classes[label - 1]])
            is_coloured = ((image.int() - colour[:, None, None]).abs() < 60).all(0)
            left, top, right, bottom = box
            x, y = torch.meshgrid(torch.arange(image.shape[2]) + 0.5, torch.arange(image.shape[1]) + 0.5, indexing="xy")
            inside = (x > left + 1) & (x < right - 1) & (y > top + 1) & (y < bottom - 1)
            outside = (x < left - 1) | (x > right + 1) | (y < top - 1) | (y > bottom + 1)
            assert inside.any() and is_coloured[inside].all() and not is_coloured[outside].any()


def test_boxes_and_sizes_are_those_of_the_reduced_picture(root):
    whole, data = silently(root), silently(root, max_image_side=SIDE)
    ratios = torch.tensor([64 / 300, 43 / 200] * 2, dtype=torch.float64)
    assert_boxes_hold_the_colours(whole)
    assert_boxes_hold_the_colours(data)
    for index in range(len(data)):
        image, target = data[index]
        assert image.dtype == torch.uint8 and tuple(image.shape[:0:-1]) == REDUCED == data.size_of(index)
        assert target["boxes"].dtype == torch.float32
        torch.testing.assert_close(target["boxes"].double(), whole[index][1]["boxes"] * ratios, rtol=1e-6, atol=0)
        assert all(torch.equal(target[name], whole[index][1][name]) for name in ("labels", "image_id"))
    assert data.targets.sizes().tolist() == [list(REDUCED)] * 12
    assert torch.equal(data.targets.boxes(), torch.cat([target["boxes"] for target in data.targets]))


def test_a_part_of_the_pictures_and_another_order_of_classes(root):
    change_annotations(root, "train", lambda content: content["annotations"].pop(0))
    classes = [*COLOURS][::-1]
    data = silently(root, max_image_side=SIDE, keep=[3, 7], labelled_only=True, classes=classes)
    assert_boxes_hold_the_colours(data)
    assert [data.size_of(index) for index in range(2)] == [REDUCED] * 2
    boxes = data.targets.boxes()
    assert torch.equal(boxes, torch.cat([data[index][1]["boxes"] for index in range(2)])) and boxes.max() <= SIDE


def test_pictures_that_are_small_enough_stay_to_the_bit(root):
    whole = silently(root)
    for side in (300, 1000):
        data = silently(root, max_image_side=side)
        assert torch.equal(data[0][0], whole[0][0]) and torch.equal(data[0][1]["boxes"], whole[0][1]["boxes"])
        assert data.size_of(0) == whole.size_of(0) == SIZE


def test_a_strip_keeps_a_pixel(tmp_path):
    root = make_rectangles(tmp_path / "data", splits={"train": 1}, size=(600, 8))
    image, target = silently(root, max_image_side=20)[0]
    assert image.shape == (3, 1, 20)
    assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all() and target["boxes"][:, 3].max() <= 1


def test_fine_patterns_become_grey(root):
    """Without antialiasing, lines of a pixel would come out as they happen to be met."""
    lines = np.zeros((200, 300, 3), dtype=np.uint8)
    lines[:, ::2] = 255
    Image.fromarray(lines).save(root / "train" / "001.png")
    image, _ = silently(root, max_image_side=SIDE)[0]
    assert image[:, :, 1:-1].min() > 110 and image[:, :, 1:-1].max() < 145


def test_a_picture_that_is_turned(root):
    """The annotations mean the turned picture, and the side is that of the turned one."""
    expected = silently(root, max_image_side=SIDE)[1][0]
    exif = Image.Exif()
    exif[0x0112] = 6
    file = root / "train" / "002.png"
    Image.open(file).transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)
    with pytest.warns(UserWarning, match=r"1 of 12 pictures .*turned by their EXIF"):
        data = DetectionData(root, "train", max_image_side=SIDE)
    assert data[1][0].shape == (3, *REDUCED[::-1]) and data.size_of(1) == REDUCED
    assert_boxes_hold_the_colours(data)
    assert (data[1][0].int() - expected.int()).abs().max() <= 1  # a turned picture lies otherwise in memory


def test_a_picture_of_another_size_than_its_annotations_is_still_found(root):
    Image.new("RGB", REDUCED).save(root / "train" / "002.png")
    with pytest.raises(ValueError, match=r"image 2 is 300 x 200 pixels there, but .* is 64 x 43"):
        silently(root, max_image_side=SIDE)


def test_the_cache_holds_the_reduced_picture(root):
    options = TrainOptions(root, root.parent / "run", max_image_side=SIDE, run=Run(cache=True))
    data = training_data(options)
    first, _ = data[0, 5]
    assert first.shape == data.cache[0].shape == (3, 43, 64)
    assert data.cache[0].untyped_storage().nbytes() == 3 * 43 * 64  # no view of the large one
    (root / "train" / "001.png").unlink()
    assert torch.equal(data[0, 5][0], first)


def test_evaluation_reads_pictures_as_they_are(root):
    options = TrainOptions(root, root.parent / "run", val_split="val", max_image_side=SIDE)
    training = training_data(options)
    validation = validation_data(options, training)
    assert validation.size_of(0) == SIZE and validation[0][0].shape == (3, 200, 300)
    assert torch.equal(validation[0][1]["boxes"], silently(root, "val")[0][1]["boxes"])
    with pytest.raises(ValueError, match=r"expected images as they are for an evaluation, found max_image_side 64"):
        evaluate_detector(build_student("ssd_compact", 3), training)


@pytest.mark.parametrize("side", [0, -5])
def test_sides_of_no_pixel(root, side, capsys):
    expected = f"max_image_side: expected a side of at least 1 pixel, or null, found {side}"
    with pytest.raises(ValueError, match=expected):
        DetectionData(root, "train", max_image_side=side)
    words = ["--data-root", str(root), "--out", str(root.parent / "out"), "--max-image-side", str(side)]
    for command in (["teacher"], ["train"], ["distill"], ["bank", "--encoder", "resnet18", "--student", "ssd_compact"]):
        assert main([*command, *words]) == 2
        assert expected in capsys.readouterr().err
    assert not (root.parent / "out").exists()


def test_the_commands(root, tmp_path, monkeypatch, capsys):
    """Each reads training pictures reduced and others whole, says so in options.json, and keeps to it in its folder."""
    read, shapes = DetectionData._image, set()

    def recorded(data, index):
        image = read(data, index)
        shapes.add((data.folder.name, *image.shape[:0:-1]))
        return image

    monkeypatch.setattr(DetectionData, "_image", recorded)
    teacher, bank = tmp_path / "teacher", tmp_path / "bank.safetensors"
    short = ["--val-split", "val", "--optim.steps", "2", "--run.device", "cpu"]
    student = [*short, "--backbone-weights", "none", "--allow-poor-teacher"]
    commands = {
        "teacher": ["teacher", *short, "--width", "4", "--crop-size", "16", "--out", str(teacher)],
        "bank": [
            "bank",
            "--val-split",
            "val",
            "--device",
            "cpu",
            "--teacher",
            str(teacher / "weights.pt"),
            "--out",
            str(bank),
        ],
        "distill": ["distill", *student, "--bank", str(bank), "--out", str(tmp_path / "distill")],
        "train": ["train", *student[:-1], "--out", str(tmp_path / "train")],
    }
    for name, words in commands.items():
        shapes.clear()
        command = [*words, "--data-root", str(root), "--max-image-side"]
        assert main([*command, "64"]) == 0, capsys.readouterr().err
        assert shapes == {("train", *REDUCED), ("val", *SIZE)}, name
        capsys.readouterr()
        assert main([*command, "80"]) == 2
        refused = capsys.readouterr().err
        if name == "bank":
            assert "is a bank with other options or data" in refused
        else:
            assert "max_image_side was 64, is 80" in refused
            assert json.loads((tmp_path / name / "options.json").read_text())["max_image_side"] == 64
        if name in ("distill", "train"):
            assert load_student(tmp_path / name / "weights.pt").detector.transform.max_image_side == 64
    with pytest.warns(UserWarning, match=r"crops of pictures with max_image_side 64, and this run has null"):
        assert main([*commands["distill"][:-1], str(tmp_path / "other"), "--data-root", str(root)]) == 0
    about = bank_file.read_header(bank).about
    assert about["max_image_side"] == 64
    older = {name: value for name, value in about.items() if name != "max_image_side"}
    assert bank_file.is_same(older, older | {"max_image_side": None}) and not bank_file.is_same(older, about)


def with_lines(root):
    """A picture with lines of a pixel, which torchvision's resizing skips or hits, whole and reduced, in [0, 1]."""
    lines = np.zeros((200, 300, 3), dtype=np.uint8)
    lines[:, ::3] = 255
    Image.fromarray(lines).save(root / "train" / "001.png")
    return silently(root)[0][0] / 255, silently(root, max_image_side=SIDE)[0][0] / 255


@pytest.mark.parametrize("student", ["ssd_compact", "fasterrcnn_compact"])
def test_the_detector_sees_whole_pictures_as_it_saw_reduced_ones(root, student):
    whole, reduced = with_lines(root)
    transform = build_student(student, 3, 96).transform.eval()

    def seen(image):
        return transform([image])[0].tensors

    tolerance = 0.6 / 255 / min(transform.image_std)  # of rounding to whole levels
    assert (seen(whole) - seen(reduced)).abs().max() > 10 * tolerance
    transform.max_image_side = SIDE
    torch.testing.assert_close(seen(whole), seen(reduced), rtol=0, atol=tolerance)
    transform.train()  # where pictures were reduced already, and augmentation may have enlarged them since
    transform.max_image_side = None
    expected = seen(whole)
    transform.max_image_side = SIDE
    assert torch.equal(seen(whole), expected)


def test_boxes_are_in_pixels_of_the_whole_picture_and_weights_remember_the_side(root, tmp_path):
    whole, reduced = with_lines(root)
    detector = build_student("ssd_compact", 3, 96).eval()
    detector.score_thresh = 0.0
    detector.transform.max_image_side = SIDE
    save_student(tmp_path / "weights.pt", detector, name="ssd_compact", classes=["red", "green", "blue"], image_size=96)
    loaded = load_student(tmp_path / "weights.pt").detector
    loaded.score_thresh = 0.0
    for model in (detector, loaded):
        with torch.no_grad():
            boxes, expected = model([whole])[0]["boxes"], model([reduced])[0]["boxes"]
        assert boxes[:, 2].max() > SIDE and len(boxes) == 100
        ratios = torch.tensor([300 / 64, 200 / 43] * 2)
        near = ((boxes[:50, None] - expected * ratios).abs().amax(2) < 2).any(
            1
        )  # an untrained detector's order hangs on digits
        assert near.float().mean() > 0.9


def test_an_exported_detector_leaves_the_reduction_to_its_user(root, tmp_path):
    detector = build_student("ssd_compact", 3, 96)
    detector.transform.max_image_side = SIDE
    save_student(tmp_path / "weights.pt", detector, name="ssd_compact", classes=["red", "green", "blue"], image_size=96)
    words = ["--weights", str(tmp_path / "weights.pt"), "--out", str(tmp_path / "out"), "--formats", "state_dict"]
    assert main(["export", *words]) == 0
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["max_image_side"].startswith(f"{SIDE}: reduce larger pictures to it first")
