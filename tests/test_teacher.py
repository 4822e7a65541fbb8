"""Teachers: what they learn from, how sure they are, and backbones trained on images by class."""

import json

import pytest
import torch
import torch.nn.functional as F
from torchvision.io import write_png
from torchvision.models.feature_extraction import create_feature_extractor

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from cls2det.cli import main
from cls2det.data.dataset import DetectionData
from cls2det.data.loader import test_loader
from cls2det.models.students import build_student
from cls2det.teachers.accuracy import check_not_at_chance, crop_logits
from cls2det.teachers.calibration import calibration
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.training.classifier import ClassifierTraining
from cls2det.training.settings import Run
from cls2det_ops import reference
from training_cases import DIGITS, batch, train, train_teacher

test_loader.__test__ = False  # a function of the package, not a test


def test_crops_are_those_of_the_students_input(scenes):
    """Resized and normalised as that student does it, cut as the reference cuts, labels in the order of the boxes."""
    images, targets = batch(scenes)
    for student in ("ssd_compact", "retinanet_resnet50_fpn"):
        teacher = CropClassifier(DIGITS, student=student, image_size=128, crop_size=24).eval()
        crops, classes = teacher.crops_of_batch((images, targets))
        inputs, resized = build_student(student, 10, 128).transform([image / 255 for image in images], targets)
        index = torch.cat([torch.full((len(target["boxes"]),), number) for number, target in enumerate(resized)])
        boxes = torch.cat([target["boxes"] for target in resized])
        expected = reference.roi_crop(inputs.tensors, boxes, index, (24, 24), padding_mode="border", clip=False)
        torch.testing.assert_close(crops, expected, rtol=1e-4, atol=1e-5)
        assert classes.tolist() == [label - 1 for target in targets for label in target["labels"].tolist()]


def test_margin_and_smallest_size(scenes):
    images, targets = batch(scenes)
    boxes = torch.cat([target["boxes"] for target in targets])
    plain, wide = (CropClassifier(DIGITS, margin=margin) for margin in (0.0, 0.25))
    inputs, _ = plain.transform([image / 255 for image in images], targets)
    box = torch.tensor([[20.0, 30, 40, 70]])
    index = torch.zeros(1, dtype=torch.int64)
    larger = torch.tensor([[15.0, 20, 45, 80]])
    torch.testing.assert_close(wide.crop(inputs.tensors, box, index), plain.crop(inputs.tensors, larger, index))
    sides = (boxes[:, 2:] - boxes[:, :2]).amin(1)
    least = sides.median().item()
    training = ClassifierTraining(plain, min_size=least, jitter=0.0)
    assert len(training.training_crops((images, targets))[1]) == (sides >= least).sum() < len(boxes)
    assert len(plain.crops_of_batch((images, targets))[1]) == len(boxes)  # an evaluation takes all
    with pytest.warns(UserWarning, match="nothing is learnt from a batch with 0 crops of at least 1000 pixels"):
        ClassifierTraining(plain, min_size=1000.0).training_step((images, targets), 0)


def test_losses():
    torch.manual_seed(0)
    logits, classes = torch.randn(6, 10), torch.arange(6)
    truth = F.one_hot(classes, 10).float()
    softmax = F.cross_entropy(logits, classes, label_smoothing=0.05)
    sigmoid = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(1).mean()
    for loss, expected in (("ce", softmax), ("bce", sigmoid), ("joint", softmax + sigmoid)):
        training = ClassifierTraining(CropClassifier(DIGITS, loss=loss), label_smoothing=0.05)
        torch.testing.assert_close(training.loss(logits, classes), expected)
    assert torch.equal(CropClassifier(DIGITS, loss="bce").probabilities(logits), logits.sigmoid())
    with pytest.raises(ValueError, match="loss must be one of ce, bce, joint, got 'focal'"):
        CropClassifier(DIGITS, loss="focal")


def test_a_teacher_for_sigmoid_students_learns(scenes, tmp_path):
    """With bce alone; test_report_of_a_teacher trains a joint one."""
    teacher = CropClassifier.load(train_teacher(scenes, tmp_path, loss="bce"))
    assert check_not_at_chance(teacher, test_loader(DetectionData(scenes, "train"))) > 40


def test_calibration_is_torchmetrics():
    from torchmetrics.functional.classification import multiclass_calibration_error

    torch.manual_seed(0)
    probabilities = (2 * torch.randn(400, 10)).softmax(1)
    classes = torch.where(torch.rand(400) < 0.6, probabilities.argmax(1), torch.randint(10, (400,)))
    result = calibration(probabilities, classes)
    expected = multiclass_calibration_error(probabilities, classes, num_classes=10, n_bins=15, norm="l1")
    assert result["ece"] == pytest.approx(100 * expected.item(), abs=1e-3) and result["ece"] > 1
    assert result["accuracy"] == pytest.approx(100 * (probabilities.argmax(1) == classes).float().mean().item())
    assert sum(count for _, _, count in result["bins"]) == 400
    certain = calibration(torch.eye(4)[[0, 1, 2, 3]], torch.tensor([0, 1, 2, 0]))
    assert certain["accuracy"] == 75 and certain["ece"] == certain["overconfidence"] == 25
    assert calibration(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))["ece"] is None


def test_report_of_a_teacher(scenes, tmp_path):
    weights = train_teacher(scenes, tmp_path, val_split="val", loss="joint")
    report = json.loads((tmp_path / "report.json").read_text())
    teacher, data = CropClassifier.load(weights), DetectionData(scenes, "val")
    logits, classes = crop_logits(teacher, test_loader(data))
    assert len(classes) == sum(len(target["labels"]) for target in data.targets)
    assert report["accuracy"] == pytest.approx(100 * (logits.argmax(1) == classes).float().mean().item())
    for read, probabilities in ((report, logits.softmax(1)), (report["sigmoid"], logits.sigmoid())):
        expected = 100 * (probabilities.amax(1).mean().item() - (logits.argmax(1) == classes).float().mean().item())
        assert read["overconfidence"] == pytest.approx(expected, abs=1e-3)
    assert report["started from"] == "random weights"
    training = DetectionData(scenes, "train")
    assert check_not_at_chance(teacher, test_loader(training)) > 40
    assert (
        sum(report["crops by class"].values()) == report["crops"] == sum(len(target["labels"]) for target in training.targets)
    )
    assert (tmp_path / "reliability.png").stat().st_size > 3000


@pytest.mark.parametrize("architecture", ["mobilenet_v3_small", "compact", "resnext50_32x4d"])
def test_any_classifier_reads_crops(architecture):
    teacher = CropClassifier(
        DIGITS, architecture=architecture, width=64 if architecture != "compact" else 16, crop_size=64
    ).eval()
    layer = {"mobilenet_v3_small": "features.1", "compact": "backbone.stem", "resnext50_32x4d": "layer1"}[architecture]
    crops = torch.randn(3, 3, 64, 64)
    outputs = teacher.reader([layer], logits=True)(crops)
    torch.testing.assert_close(outputs["logits"], teacher(crops), rtol=1e-3, atol=1e-4)
    assert outputs[layer].shape[0] == 3 and set(teacher.reader([layer], logits=False)(crops)) == {layer}


@pytest.mark.parametrize("architecture", ["resnet18", "compact"])
def test_reader_in_bfloat16(architecture):
    """Everything but a stem that is known, whose features stay in float32 to the bit."""
    torch.manual_seed(0)
    teacher = CropClassifier(DIGITS, architecture=architecture, crop_size=64).eval()
    stem, deep = ("maxpool", "layer1") if architecture == "resnet18" else ("backbone.stem", "backbone.stages.0")
    crops = torch.randn(3, 3, 64, 64)
    outputs, exact = (teacher.reader([stem, deep], True, dtype)(crops) for dtype in (torch.bfloat16, torch.float32))
    assert outputs["logits"].dtype == outputs[deep].dtype == torch.bfloat16
    assert torch.equal(outputs[stem], exact[stem]) == (architecture == "resnet18")
    for name in (stem, deep, "logits"):
        torch.testing.assert_close(outputs[name].float(), exact[name], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("architecture", ["resnet18", "compact", "densenet121"])
def test_reader_runs_the_stem_that_it_knows(architecture):
    """A ResNet's first layers in one, others as they are; layers, logits and the gradient of the crops are the network's."""
    torch.manual_seed(0)
    teacher = CropClassifier(
        DIGITS, architecture=architecture, width=16 if architecture == "compact" else 64, crop_size=64
    ).eval()
    for module in teacher.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias)
    stem = "backbone.stem" if architecture == "compact" else "features.pool0" if architecture == "densenet121" else "maxpool"
    reader = teacher.reader([stem], logits=True)
    assert hasattr(reader, "frozen_stem") == (architecture != "compact")
    crops = torch.randn(3, 3, 64, 64, requires_grad=True)
    literal = create_feature_extractor(teacher.network, [stem]).eval()(crops)[stem]
    outputs = reader(crops)
    torch.testing.assert_close(outputs[stem], literal, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs["logits"], teacher(crops), rtol=1e-3, atol=1e-3)
    grads = [torch.autograd.grad(features.sum(), crops, retain_graph=True)[0] for features in (outputs[stem], literal)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert teacher.reader([stem], logits=False)(crops)[stem].dtype == torch.bfloat16


def make_colours(root):
    """Images by class, as ``pretrain`` wants them."""
    torch.manual_seed(0)
    for split, count in (("train", 12), ("val", 4)):
        for channel, name in enumerate(("red", "green")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = torch.randint(60, (3, 40, 48), dtype=torch.uint8)
                image[channel] += 150
                write_png(image, str(folder / f"{number}.png"))


def test_the_quartered_resnet_starts_from_its_pretraining(scenes, tmp_path):
    """By the two commands and the two recipes, with fewer and smaller images and next to no learning."""
    make_colours(tmp_path / "images")
    short = ["--optim.steps", "1", "--optim.batch_size", "2", "--optim.learning_rate", "1e-9", "--run.loader_workers", "0"]
    start, run = tmp_path / "start", tmp_path / "run"
    arguments = ["--data-root", str(tmp_path / "images"), "--out", str(start), "--image-size", "64", *short]
    assert main(["pretrain", "--config", "pretrain-qr50", *arguments]) == 0
    arguments = [
        "--data-root",
        str(scenes),
        "--out",
        str(run),
        "--image-size",
        "64",
        "--start",
        str(start / "weights.pt"),
        *short,
    ]
    splits = ["--train-split", "train", "--val-split", "null"]
    assert main(["train", "--config", "fasterrcnn-qr50", *arguments, *splits]) == 0
    assert json.loads((run / "report.json").read_text())["started from"] == str(start / "weights.pt")
    before, after = (torch.load(folder / "weights.pt", weights_only=True)["weights"] for folder in (start, run))
    for name in ("conv1.weight", "layer1.0.conv2.weight", "layer4.2.bn3.weight"):
        torch.testing.assert_close(after[f"backbone.body.{name}"], before[name])


def test_backbone_from_images_by_class(scenes, tmp_path):
    """``pretrain`` learns colours, and its weights do not start a student of another body."""
    make_colours(tmp_path / "images")
    recipe = tmp_path / "pretrain.yaml"
    recipe.write_text("optim: {optimizer: sgd, learning_rate: 0.02, steps: 40, batch_size: 8, base_batch: null}\n")
    out = tmp_path / "pretrained"
    command = ["pretrain", "--config", str(recipe), "--data-root", str(tmp_path / "images"), "--out", str(out)]
    options = [
        "--architecture",
        "resnet18",
        "--width",
        "16",
        "--image-size",
        "32",
        "--run.device",
        "cpu",
        "--run.checkpoint-every",
        "10",
    ]
    assert main([*command, *options]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["accuracy"] >= 75 and report["images"] == 24
    with pytest.raises(ValueError, match=r"fit|backbone"):
        train(scenes, tmp_path / "run", start=out / "weights.pt", run=Run(device="cpu", checkpoint_every=1))
