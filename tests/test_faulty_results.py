"""Inputs that once ended in a wrong number, or in no result at all, when a student predicts, is exported or evaluated."""

import contextlib
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

from PIL import Image

from cls2det.commands.evaluate import evaluate as run_evaluate
from cls2det.commands.export import export as run_export
from cls2det.commands.options import EvaluateOptions, ExportOptions, PredictOptions, TrainOptions
from cls2det.commands.predict import predict as run_predict
from cls2det.commands.train import train as run_train
from cls2det.data.dataset import DetectionData
from cls2det.evaluation.coco import COCO_STATS, coco_eval, coco_table, evaluate_detector
from cls2det.models.students import STUDENTS, build_student, load_student, save_student
from cls2det.models.students.limits import allow_detections, most_detections
from cls2det.models.students.resizing import Transform
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.training.settings import Optim, Run
from coco_cases import random_world
from rectangles import change_annotations, make_rectangles

CLASSES = ["red", "green", "blue"]
COMPACT = [name for name in STUDENTS if name.endswith("compact")]
STRIPS = [(2, 1000), (5000, 3), (1, 400)]  # height, width: with a shorter side that torchvision's transform rounds to 0


def student(name: str = "ssd_compact", classes: int = len(CLASSES)) -> torch.nn.Module:
    if "detr" in name:
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    return build_student(name, classes, 96).eval()


def saved(folder, detector: torch.nn.Module | None = None, name: str = "ssd_compact"):
    """weights.pt of an untrained student, which finds much in noise."""
    path = folder / "weights.pt"
    save_student(path, detector or student(name), name=name, classes=CLASSES, image_size=96)
    return path


def predict(weights, images, out, **options) -> list[dict]:
    run_predict(PredictOptions(weights, images, out, **{"threshold": 0.0, "device": "cpu"} | options), lambda *_: None)
    return json.loads((out / "predictions.json").read_text())["images"]


def noise(height: int = 80, width: int = 120, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# A photograph as a phone stores it


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(tmp_path, orientation):
    upright = noise()
    undo = {  # what brings an upright picture to how it is stored with this orientation
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    upright.save(tmp_path / "upright.png")
    stored.save(tmp_path / "phone.png", exif=exif)
    phone, plain = predict(saved(tmp_path), [tmp_path / "phone.png", tmp_path / "upright.png"], tmp_path / "out")
    assert (phone["width"], phone["height"]) == (120, 80)
    assert len(plain["scores"]) > 10
    assert all(phone[name] == plain[name] for name in ("boxes", "scores", "classes"))
    drawn = [np.asarray(Image.open(tmp_path / "out" / image["picture"])) for image in (phone, plain)]
    assert np.array_equal(*drawn)


def test_pixels_of_16_bits_are_turned_upright_too(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (60, 90), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    Image.fromarray(pixels[::-1, ::-1].copy()).save(tmp_path / "phone.png", exif=exif)
    phone, plain = predict(saved(tmp_path), [tmp_path / "phone.png", tmp_path / "upright.png"], tmp_path / "out")
    assert phone["boxes"] == plain["boxes"] and phone["boxes"]


# Strips


@pytest.mark.parametrize("name", COMPACT)
def test_a_strip_keeps_one_pixel(name):
    detector = student(name)
    for height, width in STRIPS:
        detections = detector([torch.rand(3, height, width)])[0]
        boxes = detections["boxes"]
        assert torch.isfinite(boxes).all() and torch.isfinite(detections["scores"]).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all() and (boxes >= 0).all()


@pytest.mark.parametrize("name", STUDENTS)
def test_ordinary_pictures_are_resized_as_by_torchvision(name):
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    ours = Transform.of(student(name).transform) if "compact" in name else Transform(800, 1333, [0.5] * 3, [0.2] * 3)
    theirs = GeneralizedRCNNTransform(
        ours.min_size, ours.max_size, ours.image_mean, ours.image_std, ours.size_divisible, ours.fixed_size
    )
    for height, width in [(80, 120), (131, 97), (33, 1000), (1, 1), (300, 7)]:
        image, target = torch.rand(3, height, width), {"boxes": torch.tensor([[0.0, 0.0, width, height]])}
        for mode in (True, False):
            batch, targets = ours.train(mode)([image], [target])
            expected, expected_targets = theirs.train(mode)([image], [target])
            assert torch.equal(batch.tensors, expected.tensors) and batch.image_sizes == expected.image_sizes
            assert torch.equal(targets[0]["boxes"], expected_targets[0]["boxes"])


def test_a_student_and_a_teacher_train_on_strips():
    target = {"boxes": torch.tensor([[100.0, 0, 500, 2]]), "labels": torch.tensor([1])}
    losses = student("retinanet_compact").train()([torch.rand(3, 2, 1000)], [target])
    assert all(torch.isfinite(loss) for loss in losses.values())
    teacher = CropClassifier(CLASSES, architecture="compact", student="fasterrcnn_compact").eval()
    image = torch.randint(0, 256, (3, 2, 1000), dtype=torch.uint8)
    crops, classes = teacher.crops_of_batch(([image], [target]))
    assert crops.shape == (1, 3, 32, 32) and torch.isfinite(crops).all() and classes.tolist() == [0]


@pytest.mark.parametrize("name", ["retinanet_compact", "fasterrcnn_compact"])
def test_a_file_for_any_size_takes_strips(tmp_path, name):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    weights = saved(tmp_path, name=name)
    run_export(ExportOptions(weights, tmp_path / "out", ["onnx"]))
    session = onnxruntime.InferenceSession(tmp_path / "out" / "student.onnx", providers=["CPUExecutionProvider"])
    detector = load_student(weights).detector
    for height, width in [(2, 1280), (5120, 3), (1, 640)]:  # 160 pixels without rounding, which float32 does differently
        image = torch.rand(3, height, width)
        with torch.no_grad():
            expected = detector([image])[0]
        boxes, _, scores = session.run(None, {"image": image.numpy()})
        assert (
            np.isfinite(boxes).all() and len(scores) > 50
        )  # not their number: many of an untrained student's are nearly equal
        assert scores.max() == pytest.approx(expected["scores"].max().item(), abs=1e-3)


def test_predict_goes_on_after_a_strip(tmp_path):
    for place, (height, width) in enumerate(STRIPS):
        noise(height, width).save(tmp_path / f"{place}.png")
    noise().save(tmp_path / "last.png")
    images = predict(saved(tmp_path, name="retinanet_compact"), [tmp_path], tmp_path / "out")
    assert len(images) == 4 and all(image["scores"] for image in images)
    assert Image.open(tmp_path / "out" / images[0]["picture"]).size == (1000, 2)


def test_a_picture_that_cannot_be_used_is_named_and_the_others_are_not_lost(tmp_path, capsys, monkeypatch):
    for name in ("a.png", "b.png", "c.png"):
        noise(40 if name == "b.png" else 80).save(tmp_path / name)

    forward = Transform.forward

    def out_of_memory(self, images, targets=None):
        if images[0].shape[1] == 40:
            raise RuntimeError("not enough memory: you tried to allocate much")
        return forward(self, images, targets)

    monkeypatch.setattr(Transform, "forward", out_of_memory)
    images = predict(saved(tmp_path), [tmp_path], tmp_path / "out")
    assert [image["file"][-5:] for image in images] == ["a.png", "c.png"]
    assert "b.png: not enough memory" in capsys.readouterr().err
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [entry["file"] for entry in content["unreadable"]] == [str(tmp_path / "b.png")]


# Kinds of files


def test_every_picture_that_pillow_reads_is_taken(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for suffix, kind in [("jfif", "JPEG"), ("JPE", "JPEG"), ("ppm", "PPM"), ("tga", "TGA"), ("jpg", "JPEG"), ("avif", "AVIF")]:
        if kind in Image.SAVE or kind in {"JPEG", "PPM", "TGA"}:
            noise().save(folder / f"x.{suffix}", format=kind)
    (folder / "notes.txt").write_text("no picture")
    (folder / "paper.pdf").write_bytes(b"%PDF-1.4")
    images = predict(saved(tmp_path), [folder], tmp_path / "out", no_pictures=True)
    assert {image["file"] for image in images} == {str(file) for file in folder.glob("x.*")}


def test_pictures_of_kinds_that_cannot_be_read_are_counted(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("1.heic", "2.HEIC", "3.nef"):
        (folder / name).write_bytes(b"not decoded")
    with pytest.raises(ValueError, match=r"no images in .*; found 3 pictures .*\(2 \.heic, 1 \.nef\): convert"):
        predict(saved(tmp_path), [folder], tmp_path / "out")
    noise().save(folder / "a.png")
    assert len(predict(saved(tmp_path), [folder], tmp_path / "out")) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "heic" in line]
    assert lines == ["left out: 3 pictures of kinds that cannot be read here (2 .heic, 1 .nef): convert to JPEG or PNG"]
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [entry["file"][-6:] for entry in content["unreadable"]] == ["1.heic", "2.HEIC", "/3.nef"]


def test_links_are_followed_once_and_folders_that_do_not_open_are_named(tmp_path, capsys, monkeypatch):
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    noise().save(folder / "a.png")
    noise().save(elsewhere / "b.png")
    (folder / "circle").symlink_to(folder)
    (folder / "more").symlink_to(elsewhere)
    (folder / "gone.png").symlink_to(tmp_path / "nothing.png")
    images = predict(saved(tmp_path), [folder], tmp_path / "out")
    assert [image["file"] for image in images] == [str(folder / "a.png"), str(elsewhere / "b.png")]
    assert "nothing.png" in capsys.readouterr().err

    import os

    scandir = os.scandir

    def closed(path):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert len(predict(saved(tmp_path), [folder], tmp_path / "out")) == 1
    assert f"not searched: {folder / 'more'}: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "1"])
def test_pictures_of_other_modes_and_of_one_pixel(tmp_path, mode):
    noise(1, 1).convert(mode).save(tmp_path / "a.tiff")
    assert len(predict(saved(tmp_path), [tmp_path / "a.tiff"], tmp_path / "out")) == 1


def test_no_detection_and_no_score_are_asked_for(tmp_path):
    noise().save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="threshold: expected a score from 0 to 1, found nan"):
        predict(saved(tmp_path), [tmp_path / "a.png"], tmp_path / "out", threshold=float("nan"))
    with pytest.raises(ValueError, match="most: expected at least 1 detection per image, found -1"):
        predict(saved(tmp_path), [tmp_path / "a.png"], tmp_path / "out", most=-1)


# Outputs that are not finite


def broken_by_white(detector: torch.nn.Module) -> torch.nn.Module:
    """The detector's output is NaN for a white picture, and right for others; its weights are finite."""

    def spoil(_module, inputs, output):
        is_white = (inputs[0].mean((1, 2, 3)) > 1.5)[:, None, None, None]
        return {name: value.masked_fill(is_white, float("nan")) for name, value in output.items()}

    detector.backbone.register_forward_hook(spoil)
    return detector


def test_predict_names_a_picture_with_outputs_that_are_not_finite(tmp_path, capsys, monkeypatch):
    import cls2det.commands.predict as module

    loaded = load_student(saved(tmp_path))
    broken_by_white(loaded.detector)
    monkeypatch.setattr(module, "load_student", lambda path: loaded)
    noise().save(tmp_path / "a.png")
    Image.new("RGB", (80, 80), "white").save(tmp_path / "b.png")
    images = predict(tmp_path / "weights.pt", [tmp_path], tmp_path / "out")
    assert [image["file"][-5:] for image in images] == ["a.png"]
    assert "b.png: the model's head gave NaN or infinity" in capsys.readouterr().err
    assert "NaN" not in (tmp_path / "out" / "predictions.json").read_text().replace("gave NaN or", "")


def test_evaluate_names_the_image_with_outputs_that_are_not_finite(tmp_path):
    root = make_rectangles(tmp_path, splits={"val": 4})
    Image.new("RGB", (96, 72), "white").save(root / "val" / "003.png")
    with pytest.raises(ValueError, match=r"image 3: the model's head gave NaN or infinity"):
        evaluate_detector(broken_by_white(student()), DetectionData(root, "val"), batch_size=4)


def test_export_refuses_a_student_with_outputs_that_are_not_finite(tmp_path):
    detector = student()
    with torch.no_grad():
        detector.backbone.stem[0].weight.fill_(3e38)  # finite, and too much for every picture
    weights = saved(tmp_path, detector)
    with pytest.raises(ValueError, match=r"weights\.pt: in an image of random blobs, the model's head gave NaN or infinity"):
        run_export(ExportOptions(weights, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# More objects than detections


class Perfect(torch.nn.Module):
    """Gives the ground truth of one image after the other."""

    def __init__(self, data: DetectionData):
        super().__init__()
        self.targets = iter(data.targets)

    def forward(self, images):
        targets = [next(self.targets) for _ in images]
        return [{**target, "scores": torch.ones(len(target["labels"]))} for target in targets]


@pytest.fixture
def crowded(tmp_path):
    """A training image and three for validation, two of which have 150 and 230 objects."""
    root = make_rectangles(tmp_path / "crowded", splits={"train": 4, "val": 3}, size=(192, 144))

    def fill(content):
        for image_id, count in ((1, 148), (3, 228)):
            boxes = [[12 * (n % 16), 9 * (n // 16), 8, 6] for n in range(count)]
            content["annotations"] += [
                {"image_id": image_id, "category_id": 1, "bbox": box, "area": 48, "iscrowd": 0, "id": 1000 * image_id + n}
                for n, box in enumerate(boxes)
            ]

    change_annotations(root, "val", fill)
    return root


def test_more_objects_than_detections_are_said_and_the_limit_can_be_raised(crowded, recwarn):
    data = DetectionData(crowded, "val")
    with pytest.warns(UserWarning, match=r"2 of 3 images have more objects than can be detected, up to 230, where 100"):
        table = evaluate_detector(Perfect(data), data)
    assert table["mAP"] < 90
    recwarn.clear()
    assert evaluate_detector(Perfect(data), data, max_detections=230)["mAP"] == pytest.approx(100)
    assert not [warning for warning in recwarn if "objects" in str(warning.message)]
    with pytest.raises(ValueError, match="max_detections must be at least 1, found 0"):
        evaluate_detector(Perfect(data), data, max_detections=0)


@pytest.mark.parametrize("judge", ["faster_coco_eval", "pycocotools"])
def test_the_default_table_is_that_of_pycocotools(judge, crowded, monkeypatch):
    from pycocotools.cocoeval import COCOeval

    if judge == "pycocotools":
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    else:
        pytest.importorskip(judge)
    assert coco_eval().__module__.startswith(judge)
    data = DetectionData(crowded, "val")
    with pytest.warns(UserWarning, match="more objects"):
        table = evaluate_detector(student("retinanet_compact"), data)
    detections = table["detections"] + [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.5}
        for a in data.coco.dataset["annotations"][::2]
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(data.coco, data.coco.loadRes([dict(d) for d in detections]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ours = coco_table(data, detections)
    expected = {name: 100 * evaluation.stats[place] for name, place in COCO_STATS.items() if evaluation.stats[place] >= 0}
    assert {name: ours[name] for name in expected} == pytest.approx(expected, rel=1e-12) and ours["mAP"] > 10
    assert sum(ours[name] is None for name in COCO_STATS) == len(COCO_STATS) - len(expected)
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    assert ours["AP by IoU"] == pytest.approx([100 * level[level > -1].mean() for level in precision], rel=1e-12)
    assert coco_table(data, detections, 5)["mAR"] < ours["mAR"] < coco_table(data, detections, 200)["mAR"]


@pytest.mark.parametrize("most", [5, 100, 200])
@pytest.mark.parametrize("seed", range(4))
def test_both_evaluations_agree(seed, most, monkeypatch):
    """On crowds, tied scores, more detections than count, and a part of the images."""
    pytest.importorskip("faster_coco_eval")
    coco, detections = random_world(seed)
    data = SimpleNamespace(coco=coco, targets=[{"image_id": image_id} for image_id in sorted(coco.imgs)[::2]])
    table = coco_table(data, detections, most)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    expected = coco_table(data, detections, most)
    assert expected["mAP"] > 0 and table["objects by class"] == expected.pop("objects by class")
    for name, value in expected.items():
        assert table[name] == (None if value is None else pytest.approx(value, rel=1e-12)), name


@pytest.mark.parametrize("name", COMPACT)
def test_a_detector_gives_more_detections_when_it_is_told_to(name):
    detector, image = student(name), torch.rand(3, 200, 300)
    before = detector([image])[0]
    allow_detections(detector, 100)
    assert torch.equal(detector([image])[0]["scores"], before["scores"])  # the default changes no bit
    allow_detections(detector, 160)
    if "detr" in name:
        assert most_detections(detector) == {"detr_compact": 25, "rtdetr_v2_compact": 50}[name]
    else:
        assert most_detections(detector) == 160 and len(detector([image])[0]["scores"]) > len(before["scores"])


def test_predict_gives_as_many_as_it_is_asked_for(tmp_path):
    noise(200, 300).save(tmp_path / "a.png")
    weights = saved(tmp_path)
    assert len(predict(weights, [tmp_path / "a.png"], tmp_path / "out")[0]["scores"]) == 100
    assert len(predict(weights, [tmp_path / "a.png"], tmp_path / "out", most=170)[0]["scores"]) == 170


def test_a_training_says_it_before_it_begins_and_can_raise_the_limit(crowded, tmp_path, recwarn):
    options = {"val_split": "val", "image_size": 96, "optim": Optim(steps=2, batch_size=2), "backbone_weights": "none"}
    run = Run(device="cpu", checkpoint_every=1, validate_every=1)

    def stop(*_):
        raise KeyboardInterrupt

    def warnings_of(out, **changes):
        recwarn.clear()
        with contextlib.suppress(KeyboardInterrupt):
            run_train(TrainOptions(crowded, out, **options, **changes), stop)
        return [str(warning.message) for warning in recwarn if "more objects" in str(warning.message)]

    (text,) = warnings_of(tmp_path / "a", run=run)
    assert "2 of 3 images" in text and "run.max_detections" in text
    raised = Run(device="cpu", checkpoint_every=1, validate_every=1, max_detections=230)
    assert not warnings_of(tmp_path / "b", run=raised)
    run_train(TrainOptions(crowded, tmp_path / "c", **options, run=raised), lambda *_: None)
    evaluation = json.loads((tmp_path / "c" / "val" / "evaluation.json").read_text())
    assert evaluation["max_detections"] == 230


def test_a_class_with_more_objects_than_a_detr_has_queries_is_said(crowded):
    with pytest.warns(UserWarning, match="the detector gives at most 25 per image.*one detection per query"):
        evaluate_detector(student("detr_compact"), DetectionData(crowded, "val"))


# Letters that the usual font lacks


def make_font(file, letters: str):
    """A font whose letters are filled boxes, each of another height."""
    builder = pytest.importorskip("fontTools.fontBuilder").FontBuilder(1000, isTTF=True)
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    names = [".notdef", *(f"uni{ord(letter):04X}" for letter in letters)]
    glyphs = {}
    for number, name in enumerate(names):
        pen = TTGlyphPen(None)
        if number:
            top = 300 + 600 * number // len(names)
            pen.moveTo((100, 0))
            for corner in ((100, top), (700, top), (700, 0)):
                pen.lineTo(corner)
            pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"uni{ord(letter):04X}" for letter in letters})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics({name: (800, 100) for name in names})
    builder.setupHorizontalHeader(ascent=900, descent=-200)
    builder.setupNameTable({"familyName": "Boxes", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(file)
    return str(file)


@pytest.fixture
def installed(monkeypatch):
    """Sets the fonts of the machine."""
    from matplotlib import font_manager

    from cls2det.evaluation import fonts

    def install(*files: str) -> None:
        fonts._font_with.cache_clear()
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(files))

    yield install
    fonts._font_with.cache_clear()


def test_names_in_other_scripts_are_drawn_with_a_font_that_has_them(tmp_path, installed, recwarn):
    from cls2det.evaluation.drawing import crops_sheet, draw_boxes
    from cls2det.evaluation.fonts import font_for

    some, all_letters = make_font(tmp_path / "a.ttf", "0123456789. 猫"), make_font(tmp_path / "b.ttf", "0123456789. 猫犬")
    installed(str(tmp_path / "missing.ttf"), some, all_letters)
    assert font_for(["猫", "犬"]) == all_letters and font_for(["猫"]) == some
    picture, box = torch.zeros(3, 400, 400, dtype=torch.uint8), torch.tensor([[100.0, 100, 300, 300]])
    cat, dog = (draw_boxes(picture, box, torch.tensor([label]), ["猫", "犬"], colour="red") for label in (1, 2))
    assert not torch.equal(cat, dog)  # as squares they were the same
    crops = torch.zeros(2, 3, 96, 96)
    sheets = [crops_sheet(crops, [0.5] * 3, [0.5] * 3, [name, name]) for name in ("猫", "犬")]
    assert not torch.equal(*sheets) and not recwarn.list


def test_letters_that_no_font_has_are_named_once(installed, recwarn, monkeypatch):
    from cls2det.evaluation.drawing import draw_boxes
    from cls2det.evaluation.fonts import font_for

    installed()
    picture, box = torch.zeros(3, 400, 400, dtype=torch.uint8), torch.tensor([[100.0, 100, 300, 300]])
    for _ in range(3):
        draw_boxes(picture, box, torch.tensor([1]), ["猫", "owl"])
    (warning,) = recwarn.list
    assert "has all letters of the names: 猫 will be drawn as squares. Install a font" in str(warning.message)

    def search():
        raise AssertionError("the machine's fonts were searched")

    from matplotlib import font_manager

    monkeypatch.setattr(font_manager, "findSystemFonts", search)
    assert font_for(["cat", "grüner Hund", "сова", "بومة", ""]).endswith("DejaVuSans.ttf")


def test_plots_fall_back_on_a_font_that_has_the_letters(tmp_path, installed, recwarn):
    from cls2det.study.report.plots import draw_by_iou

    installed(make_font(tmp_path / "b.ttf", "0123456789. 猫犬"))
    table = {name: {"AP by IoU": [50.0] * 10} for name in ("猫", "plain")}
    draw_by_iou(table, False, tmp_path / "plot.png")
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message) or "font" in str(warning.message)]


# Odd requests


def test_a_split_without_an_object_has_no_map_and_it_is_said(tmp_path):
    root = make_rectangles(tmp_path / "data", splits={"val": 2})
    change_annotations(root, "val", lambda content: content.update(annotations=[]))
    options = EvaluateOptions(saved(tmp_path), root, "val", tmp_path / "out", device="cpu")
    with pytest.warns(UserWarning, match="has no object in 2 images: there is no mAP"):
        table = run_evaluate(options, lambda *_: None)
    assert table["mAP"] is None
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["mAP"] is None


def test_detections_of_an_evaluation_are_read_by_pycocotools(tmp_path):
    root = make_rectangles(tmp_path / "data", splits={"val": 2})
    run_evaluate(EvaluateOptions(saved(tmp_path), root, "val", tmp_path / "out", device="cpu"), lambda *_: None)
    data = DetectionData(root, "val")
    with contextlib.redirect_stdout(io.StringIO()):
        results = data.coco.loadRes(str(tmp_path / "out" / "detections.json"))
    assert len(results.anns) == 200


@pytest.mark.parametrize("size", [0, -2])
def test_a_batch_of_no_image_is_an_error(tmp_path, size):
    root = make_rectangles(tmp_path / "data", splits={"val": 2})
    with pytest.raises(ValueError, match=f"batch_size.* {size}|batch_size={size}"):
        run_evaluate(EvaluateOptions(saved(tmp_path), root, "val", batch_size=size, device="cpu"), lambda *_: None)


def test_export_names_what_an_earlier_export_left(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "student.onnx").write_bytes(b"of another student")
    run_export(ExportOptions(saved(tmp_path), tmp_path / "out", ["state_dict"]))
    assert "student.onnx in" in (text := capsys.readouterr().err) and "of an earlier export" in text
    for size in (0, -96):
        with pytest.raises(ValueError, match=f"image_size: expected a side of at least 1 pixel, found {size}"):
            run_export(ExportOptions(saved(tmp_path), tmp_path / "out", ["state_dict"], image_size=size))
