"""Predictions are the model's own, per image, whatever kind of files and folders they come from; and the pictures drawn of them."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

from PIL import Image

from cls2det import cli
from cls2det.commands.options import PredictOptions
from cls2det.commands.predict import predict as run_predict
from cls2det.data.images import read_image
from cls2det.evaluation.drawing import SMALL, contact_sheet, crops_sheet, draw_boxes, write_picture
from cls2det.models.students import build_student, load_student, save_student

CLASSES = ["cat", "grüner Hund", "owl"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Finds some things with scores above 0.25 in noise, and nothing in black."""
    torch.manual_seed(0)
    detector = build_student("ssd_compact", len(CLASSES), 96).eval()
    with torch.no_grad():
        for layer in detector.head.classification_head.module_list:
            layer.weight.normal_(0, 1.0)
            layer.bias.view(-1, len(CLASSES) + 1)[:, 0] = 5.0
    path = tmp_path_factory.mktemp("model") / "weights.pt"
    save_student(path, detector, name="ssd_compact", classes=CLASSES, image_size=96)
    return path


def predict(*arguments, **options):
    return run_predict(PredictOptions(*arguments, **options))


def noise(seed: int, height: int = 80, width: int = 120) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def photos(tmp_path):
    """A folder with what folders have in them."""
    folder = tmp_path / "photos"
    (folder / "nested" / "deeper").mkdir(parents=True)
    Image.fromarray(noise(1)).save(folder / "a.png")
    Image.fromarray(noise(2)).save(folder / "a.jpg")
    Image.fromarray(noise(3)).save(folder / "nested" / "a.png")
    Image.fromarray(noise(4)).save(folder / "nested" / "deeper" / "a.PNG")
    Image.fromarray(noise(5)).convert("L").save(folder / "grey.png")
    Image.fromarray(noise(6)).save(folder / "scan.tiff")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "black.png")
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:200])
    (folder / "notes.txt").write_text("no image")
    return folder


def read(out):
    return json.loads((out / "predictions.json").read_text())


def files(folder) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_a_folder(weights, photos, tmp_path, capsys):
    out = tmp_path / "out"
    result = predict(weights, [photos], out, threshold=0.25, device="cpu")
    names = ["a.jpg", "a.png", "black.png", "grey.png", "nested/a.png", "nested/deeper/a.PNG", "scan.tiff"]
    written = read(out)
    assert [image["file"] for image in written["images"]] == [str(photos.resolve() / name) for name in names]
    pictures = [f"photos/{name}" for name in names[:-1]] + ["photos/scan.tiff.png"]
    assert [image["picture"] for image in written["images"]] == pictures
    assert files(out) == {*pictures, "predictions.json"}
    assert result == {"images": 7, "detections": sum(len(image["scores"]) for image in written["images"]), "unreadable": 1}
    assert [image["file"] for image in written["unreadable"]] == [str(photos.resolve() / "broken.jpg")]
    assert "broken.jpg" in capsys.readouterr().err


def test_predictions_are_the_models_output(weights, photos, tmp_path):
    threshold, detector = 0.25, load_student(weights).detector
    predict(weights, [photos], tmp_path / "out", threshold=threshold, device="cpu", no_pictures=True)
    images = read(tmp_path / "out")["images"]
    assert files(tmp_path / "out") == {"predictions.json"}
    for image in images:
        pixels = read_image(image["file"])
        assert (image["height"], image["width"]) == tuple(pixels.shape[1:])
        with torch.no_grad():
            expected = detector([pixels.float() / 255])[0]
        sure = expected["scores"] >= threshold
        assert image["boxes"] == expected["boxes"][sure].tolist() and image["scores"] == expected["scores"][sure].tolist()
        assert image["classes"] == [CLASSES[label - 1] for label in expected["labels"][sure].tolist()]
    counts = {image["file"].rsplit("/")[-1]: len(image["scores"]) for image in images}
    assert counts["black.png"] == 0 and counts["a.jpg"] > 1 and counts["scan.tiff"] > 1
    assert {name for image in images for name in image["classes"]} <= set(CLASSES)


def test_threshold_and_most(weights, photos, tmp_path, capsys):
    everything, few = tmp_path / "everything", tmp_path / "few"
    predict(weights, [photos / "a.png"], everything, threshold=0, device="cpu")
    predict(weights, [photos / "a.png"], few, threshold=0, most=3, device="cpu")
    scores = read(everything)["images"][0]["scores"]
    assert len(scores) > 3 and scores == sorted(scores, reverse=True)
    assert read(few)["images"][0]["scores"] == scores[:3]
    assert not capsys.readouterr().err
    predict(weights, [photos / "a.png"], tmp_path / "none", threshold=1, device="cpu")
    assert f"no detection has a score of 1 or more; the best has {scores[0]:.2g}" in capsys.readouterr().err
    assert read(tmp_path / "none")["images"][0]["scores"] == []
    with pytest.raises(ValueError, match=r"threshold: expected a score from 0 to 1, found 30"):
        predict(weights, [photos], tmp_path / "out", threshold=30)


def test_no_picture_overwrites_another(weights, photos, tmp_path):
    other = tmp_path / "other" / "photos"
    other.mkdir(parents=True)
    Image.fromarray(noise(7)).save(other / "a.png")
    again = photos / "nested" / ".." / "a.png"
    for out in (tmp_path / "out", tmp_path / "again"):
        # the file lies in the first folder too, and the second folder has its name
        predict(
            weights, [photos / "nested", photos / "nested" / "a.png", other / "a.png", other, photos / "a.png", again], out
        )
    pictures = [image["picture"] for image in read(tmp_path / "out")["images"]]
    assert pictures == ["nested/a.png", "nested/deeper/a.PNG", "a.png", "a_2.png"]
    assert files(tmp_path / "out") == {*pictures, "predictions.json"} == files(tmp_path / "again")


def test_what_was_written_is_not_read_again(weights, photos):
    first = predict(weights, [photos], photos / "out", device="cpu")
    assert predict(weights, [photos], photos / "out", device="cpu") == first


def test_an_image_is_not_overwritten(weights, photos):
    before = (photos / "a.png").read_bytes()
    with pytest.raises(ValueError, match=r"out: a picture in .* would overwrite the image .*a\.png"):
        predict(weights, [photos / "a.png"], photos)
    with pytest.raises(ValueError, match="would overwrite"):
        predict(weights, [photos], photos.parent)
    assert (photos / "a.png").read_bytes() == before


def test_nothing_to_read(weights, photos, tmp_path):
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"none of 1 images could be used; the first: cannot read .*broken\.jpg"):
        predict(weights, [photos / "broken.jpg"], out)
    with pytest.raises(ValueError, match=r"no images in .*empty: expected files with .*\.bmp"):
        predict(weights, [empty], out)
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*nowhere"):
        predict(weights, [tmp_path / "nowhere"], out)
    assert not out.exists()


def test_command(weights, photos, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["predict", "--weights", str(weights), "--out", str(out), "--device", "cpu", "--images"]
    assert cli.main([*options, str(photos / "grey.png"), str(photos / "nested")]) == 0
    assert len(read(out)["images"]) == 3
    assert cli.main([*options, str(photos / "broken.jpg")]) == 2
    assert "none of 1 images could be used" in capsys.readouterr().err


# Pictures


def test_boxes_are_drawn_where_they_are():
    image = torch.zeros(3, 400, 500, dtype=torch.uint8)
    box = torch.tensor([[100.0, 150.0, 300.0, 350.0]])
    drawn = draw_boxes(image, box, torch.tensor([2]), CLASSES, torch.tensor([0.5]), colour="red")
    red = (drawn == torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]).all(0).nonzero()
    assert drawn.dtype == torch.uint8 and drawn.shape == image.shape and not image.any()
    assert red.amin(0).tolist() == [150, 100] and red.amax(0).tolist() == [350, 300]
    plain = draw_boxes(image, box, torch.tensor([2]), CLASSES, colour="red")
    assert not torch.equal(drawn, plain)  # the score is written, and the name of this class:
    assert torch.equal(plain, draw_boxes(image, box, torch.tensor([2]), ["x", CLASSES[1], "y"], colour="red"))
    assert not torch.equal(plain, draw_boxes(image, box, torch.tensor([2]), [CLASSES[0], "x", CLASSES[2]], colour="red"))
    assert not torch.equal(
        draw_boxes(image, box, torch.tensor([1]), ["x", "x"]), draw_boxes(image, box, torch.tensor([2]), ["x", "x"])
    )  # a colour per class


def test_small_images_are_enlarged_and_odd_boxes_drawn():
    image = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    none = draw_boxes(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), CLASSES)
    assert none.shape == (3, 240, 360) and max(none.shape) >= SMALL
    assert torch.equal(none[:, ::4, ::4], image) and torch.equal(none[:, 3::4, 3::4], image)
    one = draw_boxes(image, torch.tensor([[40.0, 30, 70, 50]]), torch.tensor([1]), CLASSES)
    changed = (one != none).any(0).nonzero()
    assert changed.amin(0).tolist() == [4 * 30, 4 * 40] and changed.amax(0).tolist() == [4 * 50, 4 * 70]
    boxes = torch.tensor([[-20.0, -5, 200, 300], [float("nan")] * 4, [10, 10, 10, 10]])
    some = draw_boxes(image, boxes, torch.tensor([1, 2, 3]), CLASSES, torch.tensor([0.9, 0.9, float("nan")]))
    assert some.shape == none.shape and not torch.equal(some, none)
    only_nan = draw_boxes(image, boxes[1:2], torch.tensor([2]), CLASSES, torch.tensor([0.9]))
    assert torch.equal(only_nan, none)


def test_contact_sheet():
    white, black = torch.full((3, 20, 30), 255, dtype=torch.uint8), torch.zeros(3, 50, 10, dtype=torch.uint8)
    sheet = contact_sheet([[white, black], [black]], gap=2)
    assert sheet.shape == (3, 2 * 52 + 2, 2 * 32 + 2) and sheet.dtype == torch.uint8
    assert (sheet[:, 2:22, 2:32] == 255).all() and (sheet[:, 2:52, 34:44] == 0).all() and (sheet[:, 54:104, 2:12] == 0).all()
    assert (sheet == 0).sum() == 2 * black.numel() and (sheet == 255).sum() == white.numel()
    wide = torch.zeros(3, 100, 1000, dtype=torch.uint8)
    assert contact_sheet([[wide]], side=500, gap=0).shape == (3, 50, 500)
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([[], []])


def test_crops_sheet_undoes_the_normalisation():
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    pixels = torch.tensor([0.2, 0.7, 1.0])[:, None, None].expand(3, 32, 32)
    crops = ((pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]).repeat(3, 1, 1, 1)
    sheet = crops_sheet(crops.requires_grad_(), mean, std, columns=2)
    assert sheet.shape == (3, 2 * 100 + 4, 2 * 100 + 4)
    assert (sheet[:, 4:100, 4:100] == torch.tensor([51, 178, 255])[:, None, None]).all()
    captioned = crops_sheet(crops, mean, std, ["cat", "owl", "dog"], columns=2)
    assert captioned.shape[1] > sheet.shape[1] and torch.equal(captioned[:, 4:100, 4:100], sheet[:, 4:100, 4:100])
    with pytest.raises(ValueError, match="found 1 for 3 crops"):
        crops_sheet(crops, mean, std, ["cat"])


@pytest.mark.parametrize("name", ["a/b.png", "c.JPG"])
def test_write_picture(tmp_path, name):
    picture = torch.full((3, 20, 30), 200, dtype=torch.uint8)
    write_picture(picture, tmp_path / name)
    assert (read_image(tmp_path / name).int() - picture.int()).abs().max() <= 2
    with pytest.raises(ValueError, match=r"ends in \.jpg, \.jpeg or \.png"):
        write_picture(picture, tmp_path / "x.tiff")
