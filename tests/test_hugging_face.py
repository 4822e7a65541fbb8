"""Students of transformers: every family from a folder, with its own losses and weights, and back from weights.pt without it."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("transformers")
pytest.importorskip("scipy")

import transformers
from torchvision.ops import box_convert

from cls2det.models.students import build_student, head_of, load_student, parameter_count, save_student
from cls2det.models.students.hungarian_loss import isinstance_of
from cls2det.models.taps import PositiveTap
from rectangles import COLOURS, make_rectangles
from small_transformers import CLASSES, DETECTORS

NAMES = ["cat", "dog", "owl"]
SIDE = 64
PADDED = ("DETR", "Deformable DETR")  # whose folders here bring the shorter side to a size


def folder_of(family, root):
    """A folder as ``save_pretrained`` writes it."""
    torch.manual_seed(0)
    network = DETECTORS[family][0]()
    network.save_pretrained(root)
    size = {"shortest_edge": SIDE, "longest_edge": 96} if family in PADDED else {"height": SIDE, "width": SIDE}
    processor = (
        transformers.RTDetrImageProcessor if hasattr(network.config, "feat_strides") else transformers.DetrImageProcessor
    )
    processor(size=size).save_pretrained(root)
    return network, f"hf:{root}"


def batch():
    torch.manual_seed(1)
    boxes, labels = [[[10.0, 12, 42, 44], [30, 20, 60, 58]], [[20.0, 20, 60, 62]]], [[1, 3], [2]]
    targets = [{"boxes": torch.tensor(box), "labels": torch.tensor(label)} for box, label in zip(boxes, labels, strict=True)]
    return [torch.rand(3, 64, 64), torch.rand(3, 64, 90)], targets


@pytest.fixture(params=DETECTORS, ids=lambda name: name.replace(" ", "-"), scope="module")
def family(request, tmp_path_factory):
    network, name = folder_of(request.param, tmp_path_factory.mktemp("family"))
    detector = build_student(name, len(NAMES), backbone_weights="imagenet")
    return request.param, network, name, detector


def test_weights_are_the_folders_and_the_class_head_is_new(family):
    label, network, name, detector = family
    assert all(module.training for module in build_student(name, len(NAMES), backbone_weights="auto").modules())
    assert detector.started_from == name and head_of(name) == DETECTORS[label][1]
    before, after = network.state_dict(), detector.network.state_dict()
    changed = {key for key in after if not torch.equal(after[key], before.get(key, torch.zeros(0)))}
    assert changed and all("class" in key or "enc_score_head" in key or "empty_weight" in key for key in changed), changed
    assert all(after[key].isfinite().all() for key in changed)
    if detector.transform.image_mean == [0.0] * 3:  # RT-DETR and its kin
        bias = after["model.decoder.class_embed.0.bias"]
        assert torch.allclose(bias, torch.full_like(bias, -math.log(len(NAMES))))  # of a share of 1 / (classes + 1)
    assert (detector.transform.fixed_size is None) == (label in PADDED)


def test_losses_are_the_networks_own(family):
    _, _, _, detector = family
    detector.train()
    images, targets = batch()
    torch.manual_seed(2)
    losses = detector(images, targets)
    torch.manual_seed(2)
    inputs, scaled = detector.transform(images, targets)
    masked = detector._reads_mask
    mask, labels = torch.zeros(2, *inputs.tensors.shape[-2:], dtype=torch.long), []
    for row, target, (height, width) in zip(mask, scaled, inputs.image_sizes, strict=True):
        row[:height, :width] = 1
        height, width = (height, width) if masked else inputs.tensors.shape[-2:]
        boxes = box_convert(target["boxes"], "xyxy", "cxcywh") / torch.tensor([width, height] * 2)
        labels.append({"class_labels": target["labels"] - 1, "boxes": boxes})
    expected = detector.network(inputs.tensors, **({"pixel_mask": mask} if masked else {}), labels=labels).loss
    torch.testing.assert_close(sum(losses.values()), expected, rtol=1e-5, atol=1e-5)
    assert {"classification", "bbox_regression", "bbox_giou"} <= losses.keys()
    sum(losses.values()).backward()
    unused = [name for name, weight in detector.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not unused, "DDP waits for the gradients of all"


def test_mixed_precision_and_images_without_objects(family):
    """In bfloat16 boxes are computed in float32; where nothing is to be found, every weight still has a gradient."""
    name, _, _, detector = family
    images, targets = batch()
    tap = PositiveTap(detector.train())
    with tap, torch.autocast("cpu", torch.bfloat16):
        losses = detector(images, targets)
    assert len(tap.positives) >= 3 and tap.positives.boxes.dtype == torch.float32
    assert tap.maps or name.startswith("YOLOS")
    rounded = tap.outputs[1].bfloat16().float()
    assert not torch.equal(rounded, tap.outputs[1])  # as boxes of bfloat16 would be
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    detector.zero_grad()
    empty = [{name: value[:0] for name, value in target.items()} for target in targets]
    with tap:
        losses = detector(images, empty)
    assert len(tap.positives) == 0 and losses["bbox_giou"] == 0 and losses["classification"] > 0
    sum(losses.values()).backward()
    weights = [weight for weight in detector.parameters() if weight.requires_grad]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in weights)


def test_weights_pt_needs_no_folder(family, tmp_path):
    _, _, name, detector = family
    save_student(tmp_path / "weights.pt", detector, name=name, classes=NAMES)
    images, _ = batch()
    folder = Path(name.removeprefix("hf:"))
    folder.rename(tmp_path / "elsewhere")
    student = load_student(tmp_path / "weights.pt")
    (tmp_path / "elsewhere").rename(folder)
    with torch.no_grad():
        expected, detections = detector.eval()(images), student.detector(images)
    assert student.name == name and student.classes == NAMES and student.untrained().queries == detector.queries
    for result, other, image in zip(detections, expected, images, strict=True):
        assert all(torch.equal(result[key], other[key]) for key in ("boxes", "labels", "scores"))
        assert len(result["scores"]) == detector.queries and (result["scores"].diff() <= 0).all()
        assert set(result["labels"].tolist()) <= {1, 2, 3}
        assert (result["boxes"] <= torch.tensor([*image.shape[:0:-1]] * 2) + 1e-3).all() and (result["boxes"] >= 0).all()


def test_a_head_of_as_many_classes_is_kept(tmp_path):
    network, name = folder_of("RT-DETRv2", tmp_path)
    detector = build_student(name, CLASSES, backbone_weights="auto")
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in detector.network.state_dict().items())


def test_a_random_start_is_said(tmp_path):
    _, name = folder_of("RT-DETRv2", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.warns(
        UserWarning, match=r"starts from random weights: there is no model.safetensors .*pytorch_model.bin is a pickle"
    ):
        detector = build_student(name, len(NAMES), backbone_weights="auto")
    assert detector.started_from == "random weights"
    with pytest.raises(ValueError, match=r"no model\.safetensors in .*a pickle, which is not read"):
        build_student(name, len(NAMES), backbone_weights="imagenet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build_student(name, len(NAMES), backbone_weights="none").started_from == "random weights"
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all((norm.weight == 1).all() for norm in norms)  # transformers leaves them near 0


def test_sizes_and_the_processor(tmp_path):
    _, name = folder_of("DETR", tmp_path)
    transform = build_student(name, 3, 32).transform
    assert (transform.min_size, transform.max_size) == ((32,), 48) and transform.image_mean == [0.485, 0.456, 0.406]
    with pytest.raises(ValueError, match="images must be positive, or None for the student's own; found 0"):
        build_student(name, 3, 0)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.warns(
        UserWarning, match=r"no preprocessor_config.json: images are resized and normalised as by DetrImageProcessor"
    ):
        assert build_student(name, 3).transform.min_size == (800,)


def test_what_is_no_student(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"hf:.*: there is no config\.json in"):
        build_student(f"hf:{tmp_path}", 3)
    with pytest.raises(
        ConnectionError, match=r"there is no folder .*nowhere, and huggingface.co gives no detector of this name"
    ):
        build_student(f"hf:{tmp_path}/nowhere", 3)
    transformers.ResNetConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a resnet is no object detector of transformers"):
        build_student(f"hf:{tmp_path}", 3)
    transformers.OwlViTConfig().save_pretrained(tmp_path / "owl")
    with pytest.raises(
        ValueError, match=r"is a OwlViTForObjectDetection, which .*; it cannot be a student|no object detector"
    ):
        head_of(f"hf:{tmp_path}/owl")


def test_losses_that_do_not_add_up_are_another_transformers(tmp_path, monkeypatch):
    from cls2det.models.students import hungarian_loss

    _, name = folder_of("RT-DETRv2", tmp_path)
    detector = build_student(name, len(NAMES))
    monkeypatch.setattr(hungarian_loss, "_weight", lambda _network, term: 2.0 if term == "bbox_giou" else 1.0)
    with pytest.raises(RuntimeError, match=r"transformers .*losses of RTDetrV2ForObjectDetection, loss_vfl.* do not add up"):
        detector(*batch())


def test_weights_that_contradict_their_configuration(tmp_path):
    _, name = folder_of("RT-DETRv2", tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.update({"decoder_ffn_dim": 64})
    config.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"weights are not as its config.json says, missing or of another shape: model\.decoder"
    ):
        build_student(name, 3, backbone_weights="auto")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"has no weights that can be read: .*header"):
        build_student(name, 3, backbone_weights="auto")


@pytest.mark.parametrize("name, parameters", [("rtdetr_v2_r18", 20.2e6), ("dfine_n", 3.8e6)])
def test_parameters_of_the_published_students(name, parameters):
    with torch.device("meta"):
        student = build_student(name, 80)
    assert parameter_count(student) == pytest.approx(parameters, rel=0.01)
    assert student.queries == 300 and student.transform.fixed_size == (640, 640)


def test_random_weights_are_drawn_as_by_the_authors():
    for name in ("rtdetr_v2_compact", "dfine_n"):
        network = build_student(name, 5, 96).network
        assert isinstance_of(network, "RTDetr", "DFine")
        assert all((norm.weight == 1).all() for norm in network.modules() if isinstance(norm, torch.nn.BatchNorm2d))
        state = network.state_dict()
        assert torch.allclose(state["model.enc_score_head.bias"], torch.full((5,), -math.log(0.99 / 0.01)))
        assert not state["model.enc_bbox_head.layers.2.weight"].any() and not state["bbox_embed.0.layers.2.weight"].any()
        first = state["model.encoder.aifi.0.layers.0.mlp.fc1.weight"] if name == "rtdetr_v2_compact" else None
        assert first is None or first.std() > 0.05  # transformers draws with 0.01


def test_a_small_image_has_fewer_queries():
    assert build_student("dfine_n", 5, 96).queries == 45  # 6 by 6 and 3 by 3 places
    assert build_student("dfine_n", 5, 256).queries == 300


def test_the_commands_take_a_folder(tmp_path, capsys):
    """From the teacher's check to the export; after the training the folder is gone."""
    for module in ("lightning", "pycocotools", "onnx", "onnxruntime"):
        pytest.importorskip(module)
    from cls2det.cli import main
    from cls2det.teachers.crop_classifier import CropClassifier

    data = make_rectangles(tmp_path / "data", splits={"train": 4, "val": 2})
    _, name = folder_of("RT-DETRv2", tmp_path / "folder")
    build_student(name, CLASSES, backbone_weights="none").network.save_pretrained(tmp_path / "folder")  # places that differ
    for loss in ("ce", "bce"):
        options = {"student": "rtdetr_v2_r18", "image_size": SIDE, "architecture": "compact", "loss": loss}
        CropClassifier(list(COLOURS), **options).save(tmp_path / f"{loss}.pt")
    command = ["distill", "--data-root", str(data), "--student", name, "--out", str(tmp_path / "run"), "--val-split", "val"]
    command += ["--optim.steps", "2", "--optim.batch-size", "2", "--run.device", "cpu", "--run.precision", "bf16-mixed"]
    command += ["--classifier.feature-layers", "[backbone.stem]", "--classifier.pixel-size", "32", "--run.log-every", "1"]
    assert main([*command, "--teacher", str(tmp_path / "ce.pt")]) == 2
    assert f"{name} has a sigmoid for its classes, and the teacher was trained with ce alone" in capsys.readouterr().err
    assert main([*command, "--teacher", str(tmp_path / "bce.pt"), "--allow-poor-teacher"]) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "report.json").read_text())["started from"] == name
    (tmp_path / "folder").rename(tmp_path / "elsewhere")
    weights = ["--weights", str(tmp_path / "run" / "weights.pt")]
    assert main(["evaluate", *weights, "--data-root", str(data), "--out", str(tmp_path / "evaluated")]) == 0
    again, first = (json.loads((tmp_path / place / "evaluation.json").read_text()) for place in ("evaluated", "run/val"))
    assert again["mAP"] == first["mAP"]
    images = ["--images", str(data / "val"), "--out", str(tmp_path / "predicted"), "--threshold", "0"]
    assert main(["predict", *weights, *images]) == 0
    predicted = json.loads((tmp_path / "predicted" / "predictions.json").read_text())
    assert len(predicted["images"][0]["scores"]) == 12  # as many as queries
    student = load_student(tmp_path / "run" / "weights.pt")
    with torch.no_grad():  # scores that differ
        for layer in (student.detector.network.model.enc_score_head, *student.detector.network.class_embed):
            layer.weight.normal_()
    sure = tmp_path / "sure.pt"
    save_student(sure, student.detector, name=name, classes=student.classes, image_size=student.image_size)
    formats = ["--formats", "state_dict", "onnx"]
    assert main(["export", "--weights", str(sure), "--out", str(tmp_path / "export"), *formats]) == 0, capsys.readouterr().err
    entries = json.loads((tmp_path / "export" / "export.json").read_text())["formats"]
    assert all(entry["check"]["detections"] > 0 for entry in entries.values())
    assert "load_student('weights.pt').untrained()" in entries["state_dict"]["use"]


def test_maps_of_a_network_without_a_body(tmp_path):
    from cls2det.teachers.detector import check_same_maps

    _, name = folder_of("YOLOS", tmp_path)
    yolos = build_student(name, 3)
    with pytest.raises(ValueError, match="YolosForObjectDetection has no backbone whose maps could be compared"):
        check_same_maps("pkd", yolos, yolos)
