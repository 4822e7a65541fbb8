"""Where a backbone's weights come from: torch's cache, or a file of one's own."""

import json
import logging
import pickle

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import ResNet50_Weights, VGG16_Weights, _api, mobilenet_v2
from torchvision.ops import FrozenBatchNorm2d

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from cls2det.cli import main
from cls2det.commands.sizes import compare_sizes
from cls2det.data.dataset import DetectionData
from cls2det.models.backbones import build_classifier
from cls2det.models.starts import at_hand, read_state_dict
from cls2det.models.students import build_student, parameter_count
from cls2det.teachers.crop_classifier import CropClassifier
from rectangles import make_rectangles


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch's cache, empty, and nothing can be fetched."""

    def unreachable(url, *_, **__):
        raise OSError(f"{url} was asked for")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(_api, "load_state_dict_from_url", unreachable)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A MobileNetV2 that somebody trained on seven classes."""
    torch.manual_seed(0)
    network = mobilenet_v2(num_classes=7)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    path = tmp_path_factory.mktemp("weights") / "mobilenet.pth"
    torch.save(network.state_dict(), path)
    return path


def body_of(path):
    return {name[9:]: value for name, value in torch.load(path).items() if name.startswith("features.")}


@pytest.mark.parametrize("name", ["ssdlite_mobilenet_v2", "fasterrcnn_mobilenet_v2_fpn"])
def test_a_student_starts_from_a_file(file, name):
    """As from ImageNet weights: what is frozen with these is frozen."""
    student, expected = build_student(name, 3, 96, file), body_of(file)
    state = student.backbone.body.state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected.items() if "num_batches" not in key)
    assert student.started_from == str(file)
    kinds = (nn.BatchNorm2d, FrozenBatchNorm2d)
    norms = [isinstance(module, FrozenBatchNorm2d) for module in student.backbone.body.modules() if isinstance(module, kinds)]
    assert all(norms) == name.startswith("fasterrcnn") and any(norms)
    build_student(name, 3, 96).load_state_dict(student.state_dict())


def test_a_classifier_starts_from_a_file(file):
    network, expected = build_classifier("mobilenet_v2", 4, weights=str(file)), torch.load(file)
    assert network.classifier[1].out_features == 4 and network.started_from == str(file)
    state = network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected.items() if key.startswith("features."))
    assert build_classifier("mobilenet_v2", 7, weights="none").started_from == "random weights"


def test_safetensors_and_what_training_scripts_write(file, tmp_path):
    content = torch.load(file)
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in content.items()}}, tmp_path / "a.pth")
    assert read_state_dict(tmp_path / "a.pth").keys() == content.keys()
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(content, tmp_path / "b.safetensors")
    student = build_student("ssdlite_mobilenet_v2", 3, 96, tmp_path / "b.safetensors")
    first = body_of(file)["0.0.weight"]
    assert torch.equal(student.backbone.body[0][0].weight, first)


def test_weights_without_the_last_layer_and_counters(file, tmp_path):
    content = {name: value for name, value in torch.load(file).items() if "classifier" not in name and "batches" not in name}
    torch.save(content, tmp_path / "body.pth")
    assert build_student("ssdlite_mobilenet_v2", 3, 96, tmp_path / "body.pth").started_from.endswith("body.pth")


def test_files_that_do_not_serve(file, tmp_path):
    def error(path, name="ssdlite_mobilenet_v2"):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            build_student(name, 3, 96, path)
        return str(caught.value)

    assert "no weights at" in error(tmp_path / "none.pth")
    assert "does not hold the weights of a resnet50: " in error(file, "retinanet_resnet50_fpn")
    assert "takes no file of weights" in error(file, "ssd_compact")
    content = torch.load(file)
    torch.save(content | {"features.0.0.weight": content["features.0.0.weight"] * float("nan")}, tmp_path / "nan.pth")
    assert "not finite: features.0.0.weight" in error(tmp_path / "nan.pth")
    torch.save(content | {"extra": content["features.0.0.weight"]}, tmp_path / "more.pth")
    assert "extra is unknown" in error(tmp_path / "more.pth")
    torch.save({name: value for name, value in content.items() if name != "features.1.conv.1.weight"}, tmp_path / "less.pth")
    assert "features.1.conv.1.weight is missing, expected (16, 32, 1, 1)" in error(tmp_path / "less.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds no state dict" in error(tmp_path / "list.pth")
    torch.save(torchvision.models.resnet18(), tmp_path / "whole.pth")  # a pickled network
    assert "does not load as weights alone" in error(tmp_path / "whole.pth")
    (tmp_path / "p.pth").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "t.pth").write_text("weights")
    for name in ("p.pth", "t.pth"):
        assert name in error(tmp_path / name)
    assert "found 'yes'" in error("yes")


def test_the_version_in_the_cache_is_taken_and_said(cache, monkeypatch, caplog):
    """torchvision's default of MobileNetV2 is V2; where V1 alone is there, nothing is fetched."""
    from torchvision.models import MobileNet_V2_Weights as Weights

    assert at_hand(Weights.DEFAULT) is Weights.IMAGENET1K_V2
    torch.save(mobilenet_v2().state_dict(), cache / "mobilenet_v2-b0353104.pth")
    assert at_hand(Weights.DEFAULT) is Weights.IMAGENET1K_V1
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda url, **_: torch.load(cache / url.rsplit("/", 1)[1]))
    with caplog.at_level(logging.INFO):
        network = build_classifier("mobilenet_v2", 4, weights="imagenet")
    assert network.started_from == "MobileNet_V2_Weights.IMAGENET1K_V1"
    assert "IMAGENET1K_V1, which are in torch's cache, where IMAGENET1K_V2 is not" in caplog.text


def test_weights_of_another_kind_are_no_substitute(cache):
    """VGG's of ImageNet classifiers are of another normalisation than SSD's; ViT's of 384 pixels of another shape."""
    for name in ("vgg16-397923af.pth", "vit_b_16_swag-9ac1b537.pth", "resnet50-0676ba61.pth"):
        (cache / name).touch()
    assert at_hand(VGG16_Weights.IMAGENET1K_FEATURES) is VGG16_Weights.IMAGENET1K_FEATURES
    vit = torchvision.models.ViT_B_16_Weights
    assert at_hand(vit.IMAGENET1K_V1) is vit.IMAGENET1K_V1
    assert at_hand(ResNet50_Weights.IMAGENET1K_V2) is ResNet50_Weights.IMAGENET1K_V1
    assert at_hand(ResNet50_Weights.IMAGENET1K_V1) is ResNet50_Weights.IMAGENET1K_V1


def test_without_any_the_error_names_the_way_out(cache):
    with pytest.raises(ConnectionError, match="Give the path of a file with them in place of imagenet"):
        build_student("ssdlite_mobilenet_v2", 3, backbone_weights="imagenet")


def test_commands_take_a_file(file, tmp_path, capsys):
    data = make_rectangles(tmp_path / "data")
    words = ["--data-root", str(data), "--backbone-weights", str(file), "--image-size", "96", "--run.device", "cpu"]
    words += ["--val-split", "val", "--optim.steps", "2", "--optim.batch-size", "2"]
    assert main(["teacher", "--config", "teacher-own-small", *words, "--out", str(tmp_path / "teacher")]) == 0
    teacher = ["--teacher", str(tmp_path / "teacher" / "weights.pt"), "--allow-poor-teacher"]
    assert main(["distill", "--config", "own-small", *words, *teacher, "--out", str(tmp_path / "run")]) == 0
    for run in ("teacher", "run"):
        assert json.loads((tmp_path / run / "report.json").read_text())["started from"] == str(file)
    log = (tmp_path / "run" / "log" / "metrics.csv").read_text()
    assert "kd_cls" in log and "kd_loc" not in log
    assert main(["train", *words, "--student", "ssd_compact", "--out", str(tmp_path / "other")]) == 2
    assert "takes no file of weights" in capsys.readouterr().err


def test_ssdlite_of_mobilenet_v2():
    """Three maps at strides 16, 32 and 64, and few parameters; any size."""
    student = build_student("ssdlite_mobilenet_v2", 6)
    maps = student.backbone(torch.rand(1, 3, 256, 256))
    assert [tuple(values.shape[1:]) for values in maps.values()] == [(96, 16, 16), (1280, 8, 8), (256, 4, 4)]
    assert parameter_count(student) < 3e6
    assert build_student("ssdlite_mobilenet_v2", 6, 320).transform.fixed_size == (320, 320)


# Sizes of teacher and student


def sizes_warned(student, root, teacher=None, detector=None) -> list[str]:
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compare_sizes(student, DetectionData(root, "train"), teacher, detector)
    return [str(warning.message) for warning in caught]


def test_sizes_of_teacher_and_student(tmp_path):
    root, student = make_rectangles(tmp_path / "data"), build_student("ssd_compact", 3)  # objects of 20 to 45 pixels
    good = CropClassifier(["red", "green", "blue"], crop_size=32)
    assert sizes_warned(student, root, good) == sizes_warned(student, root) == []
    (text,) = sizes_warned(student, root, CropClassifier(["red"], crop_size=224))
    assert "the teacher takes crops of 224 pixels, and 90 % of the objects have" in text
    (text,) = sizes_warned(student, root, CropClassifier(["red"], crop_size=8))
    assert "crops of 8 pixels" in text
    (text,) = sizes_warned(student, root, CropClassifier(["red"], crop_size=32, image_size=224))
    assert "trained on crops of images of 224 pixels, and the student's have 96" in text and "--image-size 96" in text
    wide = build_student("ssd_compact_wide", 3)
    assert sizes_warned(student, root, None, wide) == sizes_warned(student, root, None, student) == []
    (text,) = sizes_warned(wide, root, None, student)
    assert "a teacher is expected to be the larger one" in text
