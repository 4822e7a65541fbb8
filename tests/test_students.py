"""Every student builds, trains, detects and delivers positives; classifiers, their weights, and how students start from them."""

import sys
from urllib.error import URLError

import pytest
import torch

pytest.importorskip("torchvision")

import torchvision
from torch import nn
from torchvision.models import _api, list_models
from torchvision.ops import FrozenBatchNorm2d

from cls2det.models import backbones
from cls2det.models.backbones import build_classifier, classifier_names, load_backbone, narrow_resnet
from cls2det.models.students import IMAGE_MEAN, STUDENTS, build_student, parameter_count
from cls2det.models.taps import PositiveTap

CLASSES = 5
SLOW = ("ssd512_vgg16",)
HUNGARIAN = ("detr", "rtdetr", "dfine")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in STUDENTS]


def small(name, classes=CLASSES, **options):
    """A student at a size that tests can afford."""
    if name.startswith(HUNGARIAN):
        pytest.importorskip("transformers")
    return build_student(name, classes, None if STUDENTS[name].fixed_size else 96, **options)


def batch():
    torch.manual_seed(1)
    boxes, labels = [[[10.0, 12, 42, 44], [50, 40, 90, 88]], [[20.0, 20, 60, 62]]], [[1, 3], [5]]
    targets = [{"boxes": torch.tensor(box), "labels": torch.tensor(label)} for box, label in zip(boxes, labels, strict=True)]
    return [torch.rand(3, 96, 96), torch.rand(3, 96, 120)], targets


def weights_of(model, *parts):
    weights = [weight for name, weight in model.named_parameters() if any(part in name for part in parts) and weight.dim() > 1]
    assert weights
    return weights


def reaches(loss, weights):
    gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    return [gradient is not None and bool(torch.isfinite(gradient).all() and gradient.any()) for gradient in gradients]


@pytest.mark.parametrize("name", NAMES)
def test_student_trains_detects_and_delivers_positives(name):
    torch.manual_seed(0)
    model = small(name).train()
    if name.startswith("fasterrcnn"):  # as published, with fewer proposals
        model.roi_heads.fg_bg_sampler.batch_size_per_image = 32
        model.rpn._post_nms_top_n = {"training": 50, "testing": 50}
    for entry, weight in model.named_parameters():
        if "bbox_embed" in entry and not weight.detach().any():  # as published: before the first step nothing gets past it
            nn.init.normal_(weight, std=0.01)
    images, targets = batch()
    if "vgg16" in name:  # a second image costs seconds
        images, targets = images[:1], targets[:1]
    tap = PositiveTap(model)
    with tap:
        losses = model(images, targets)
    result, loss = tap.positives, sum(losses.values())

    assert len(result) >= 3 and set(result.matched_idxs.tolist()) <= {0, 1, 2}
    assert torch.equal(result.target_image_index[result.matched_idxs], result.image_index)
    columns = CLASSES + (result.background != "none")
    assert result.logits.shape == (len(result), columns) and result.boxes.shape == (len(result), 4)
    assert torch.isfinite(result.logits).all() and torch.isfinite(result.boxes).all()
    body = next(weight for weight in model.backbone.parameters() if weight.dim() == 4)
    box_weights = weights_of(model, "regression_head", "bbox_pred", "bbox_embed")
    class_weights = weights_of(model, "classification_head", "cls_score", "class_labels_classifier", "class_embed")
    *to_boxes, to_body = reaches(result.boxes.square().sum(), [*box_weights, body])
    assert any(to_boxes) and to_body
    *to_classes, to_body = reaches(result.logits.square().sum(), [*class_weights, body])
    assert any(to_classes) and to_body

    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], 1e-3)
    loss.backward()
    unused = [entry for entry, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not unused, "DDP waits for the gradients of all"
    assert float(nn.utils.clip_grad_norm_(model.parameters(), 10)) > 0
    optimizer.step()
    with torch.no_grad():
        after = sum(model(images, targets).values())
    assert torch.isfinite(after) and float(after) < 1.1 * float(loss.detach())

    model.eval()
    with torch.no_grad():
        detections = model(images)
    for image, result in zip(images, detections, strict=True):
        boxes, labels, scores = result["boxes"], result["labels"], result["scores"]
        assert boxes.shape == (len(scores), 4) and labels.shape == scores.shape and labels.dtype == torch.int64
        if len(scores):
            assert labels.min() >= 1 and labels.max() <= CLASSES
            assert bool((scores[:-1] >= scores[1:]).all()) and scores.min() >= 0 and scores.max() <= 1
            assert boxes.min() >= 0 and bool((boxes <= torch.tensor([*image.shape[:0:-1]] * 2) + 1e-3).all())


@pytest.mark.parametrize("name", STUDENTS)
def test_default_size_and_normalisation(name):
    assert STUDENTS[name].about and STUDENTS[name].size > 0
    if name.startswith(HUNGARIAN):
        pytest.importorskip("transformers")
    with torch.device("meta"):  # shapes and no numbers
        model = build_student(name, CLASSES)
    assert parameter_count(model) > 0
    assert (model.transform.fixed_size or model.transform.min_size)[0] == STUDENTS[name].size
    assert (model.transform.image_mean == IMAGE_MEAN) == ("compact" in name)


def test_names_and_sizes():
    with pytest.raises(ValueError, match="no student 'yolo'; there are ssd_compact"):
        build_student("yolo", 3)
    with pytest.raises(ValueError, match="ssd300_vgg16 takes images of size 300, found size 96"):
        build_student("ssd300_vgg16", 3, 96)
    for size in (0, -5):
        with pytest.raises(ValueError, match=f"images must be positive, or None for the student's own; found {size}"):
            build_student("ssd_compact", 3, size)
    assert build_student("retinanet_compact", 3).transform.min_size == (96,)
    assert build_student("fasterrcnn_qr50_fpn", 3).transform.max_size == 1333


def test_ssd512_is_the_papers():
    """Its maps and 24 564 default boxes; on the meta device, which has shapes and no numbers."""
    with torch.device("meta"):
        model = build_student("ssd512_vgg16", CLASSES)
    maps = model.backbone(torch.empty(1, 3, 512, 512, device="meta")).values()
    sides = [values.shape[-1] for values in maps]
    assert sides == [64, 32, 16, 8, 4, 2, 1]
    counts = model.anchor_generator.num_anchors_per_location()
    assert sum(side**2 * count for side, count in zip(sides, counts, strict=True)) == 24564
    assert [512 / side for side in sides] == model.anchor_generator.steps


def test_detr_losses_are_transformers_own():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = small("detr_compact").train()
    images, targets = batch()
    losses = model(images, targets)
    inputs, scaled = model.transform(images, targets)
    mask, labels = torch.zeros(2, *inputs.tensors.shape[-2:]), []
    for row, target, (height, width) in zip(mask, scaled, inputs.image_sizes, strict=True):
        row[:height, :width] = 1
        left, top, right, bottom = target["boxes"].T
        centres = torch.stack([(left + right) / 2 / width, (top + bottom) / 2 / height], 1)
        sides = torch.stack([(right - left) / width, (bottom - top) / height], 1)
        labels.append({"class_labels": target["labels"] - 1, "boxes": torch.cat([centres, sides], 1)})
    expected = model.network(inputs.tensors, pixel_mask=mask, labels=labels).loss
    assert inputs.image_sizes[0] != inputs.image_sizes[1]  # so that there is padding to leave out
    torch.testing.assert_close(sum(losses.values()), expected, rtol=1e-5, atol=1e-5)


def test_detr_starts_from_queries_that_differ():
    model = small("detr_compact")
    assert 0.8 < float(model.network.model.query_position_embeddings.weight.detach().std()) < 1.2
    attention = model.network.model.decoder.layers[0].state_dict()
    assert all(float(weight.std()) > 0.05 for weight in attention.values() if weight.dim() > 1)


def test_detr_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'cls2det\[detr\]'"):
        build_student("detr_compact", 3)


# Classifiers


def unreachable(*_arguments, **_options):
    raise URLError("Name or service not known")


@pytest.mark.parametrize("name", [name for name in classifier_names() if not name.startswith("regnet")])
def test_every_classifier_takes_a_new_last_layer(name):
    with torch.device("meta"):  # where RegNets cannot be built
        network = build_classifier(name, 1000).eval()
        if name != "compact":
            network = backbones.with_new_last_layer(network, 1000, 7)
        side = 299 if name == "inception_v3" else 224
        assert network(torch.empty(2, 3, side, side)).shape == (2, 1000 if name == "compact" else 7)


def test_classifier_names_and_widths():
    assert set(classifier_names()) == {"compact", *list_models(module=torchvision.models)}
    assert build_classifier("regnet_y_400mf", 4).fc.out_features == 4
    assert build_classifier("compact", 4, width=16)(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    for name in ("googlenet", "inception_v3"):
        assert build_classifier(name, 4).train()(torch.rand(2, 3, 96, 96)).shape == (2, 4)  # no auxiliary outputs
    with pytest.raises(ValueError, match="no classifier 'resnet9'; there are compact, alexnet"):
        build_classifier("resnet9", 4)
    with pytest.raises(ValueError, match="mobilenet_v2 has one width only, found width 16"):
        build_classifier("mobilenet_v2", 4, width=16)
    with pytest.raises(ValueError, match=r"width 8 leaves .* channels to 32 groups"):
        build_classifier("resnext50_32x4d", 4, width=8)
    with pytest.raises(
        ValueError, match=r"weights are none, auto, imagenet, or a file \(\.pth or \.safetensors\); found 'yes'"
    ):
        build_classifier("resnet18", 4, weights="yes")


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_narrow_resnet_has_every_width_a_quarter(architecture):
    wide, narrow = build_classifier(architecture, 7), narrow_resnet(architecture, 16, 7)
    for (name, large), (_, little) in zip(wide.named_modules(), narrow.named_modules(), strict=True):
        assert type(large) is type(little)
        if isinstance(large, nn.Conv2d):
            assert little.out_channels * 4 == large.out_channels, name
            assert little.in_channels * 4 == large.in_channels or name == "conv1"
            for setting in ("kernel_size", "stride", "padding", "dilation", "groups"):
                assert getattr(little, setting) == getattr(large, setting), name
        elif isinstance(large, nn.BatchNorm2d):
            assert little.num_features * 4 == large.num_features
    assert narrow.fc.in_features * 4 == wide.fc.in_features and narrow.fc.out_features == 7
    assert narrow.inplanes == narrow.fc.in_features
    assert narrow(torch.rand(2, 3, 64, 64)).shape == (2, 7)


def test_full_width_is_torchvisions_network():
    torch.manual_seed(0)
    narrow = narrow_resnet("resnet18", 64, 7).state_dict()
    torch.manual_seed(0)
    published = torchvision.models.resnet18(num_classes=7).state_dict()
    assert narrow.keys() == published.keys() and all(torch.equal(narrow[name], published[name]) for name in narrow)


def test_parameters_of_quartered_resnet50():
    student = build_student("fasterrcnn_qr50_fpn", 80)
    assert parameter_count(narrow_resnet("resnet50", 16, 1000)) == 1_993_976
    assert parameter_count(student.backbone.body) == 1_480_976
    assert parameter_count(student) == 18_992_820


# Weights


def test_auto_falls_back_with_a_line_and_imagenet_does_not(monkeypatch):
    monkeypatch.setattr(_api, "load_state_dict_from_url", unreachable)
    with pytest.warns(
        UserWarning, match="resnet18 starts from random weights: https://.* cannot be fetched .*service not known"
    ):
        assert build_classifier("resnet18", 4, weights="auto")(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    with pytest.warns(UserWarning, match="the backbone of fasterrcnn_mobilenet_v2_fpn starts from random weights"):
        model = small("fasterrcnn_mobilenet_v2_fpn", backbone_weights="auto")
    assert all(weight.requires_grad for weight in model.parameters())
    with pytest.raises(
        ConnectionError, match=r"ImageNet weights of resnet18 cannot be fetched from https://.*service not known"
    ):
        build_classifier("resnet18", 4, weights="imagenet")
    for name in STUDENTS:
        if STUDENTS[name].weights and not name.startswith("detr_r"):
            with pytest.raises(ConnectionError, match="cannot be fetched"):
                small(name, backbone_weights="imagenet")


@pytest.mark.parametrize("name", [name for name in STUDENTS if not STUDENTS[name].weights])
def test_networks_that_have_no_imagenet_weights(name):
    with pytest.raises(ValueError, match="there are no ImageNet weights of"):
        small(name, backbone_weights="imagenet")
    with pytest.warns(UserWarning, match="starts from random weights: there are no ImageNet weights"):
        small(name, backbone_weights="auto")


def test_weights_are_loaded_into_a_classifier(monkeypatch):
    fake = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda *_, **__: fake)
    network = build_classifier("resnet18", 4, weights="auto")
    state = network.state_dict()
    assert all(torch.equal(state[name], fake[name]) for name in fake if not name.startswith("fc."))
    assert network.fc.out_features == 4 and network.started_from == "ResNet18_Weights.IMAGENET1K_V1"
    assert build_classifier("resnet18", 4).started_from == "random weights"
    assert torch.equal(build_classifier("resnet18", 1000, weights="imagenet").fc.weight, fake["fc.weight"])


@pytest.mark.parametrize(
    "name, body",
    [
        ("fasterrcnn_resnet50_fpn", "resnet50"),
        ("detr_resnet50", "resnet50"),
        ("fasterrcnn_mobilenet_v2_fpn", "mobilenet_v2"),
        ("ssdlite320_mobilenet_v3_large", "mobilenet_v3_large"),
        ("ssdlite_mobilenet_v2", "mobilenet_v2"),
        ("ssd_mobilenet_v2_fpn", "mobilenet_v2"),
        ("fasterrcnn_mobilenet_v2_small", "mobilenet_v2"),
        ("retinanet_mobilenet_v2_small", "mobilenet_v2"),
    ],
)
def test_weights_are_loaded_into_a_student(monkeypatch, name, body):
    """Batch norm is frozen with them (of SSDLites in none or a part), and no parameter has another shape or name."""
    fake = torchvision.models.get_model(body).state_dict()
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda *_, **__: fake)
    model, random = small(name, backbone_weights="imagenet"), small(name)
    assert model.started_from == str(STUDENTS[name].weights) and random.started_from == "random weights"
    first = next(value for key, value in fake.items() if value.dim() == 4)
    assert any(torch.equal(value, first) for value in model.backbone.state_dict().values())
    frozen = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert bool(frozen) == (name != "ssdlite320_mobilenet_v3_large")
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in random.modules())
    random.load_state_dict(model.state_dict())  # as saved by a run that had a network
    model.load_state_dict(random.state_dict())
    images = batch()[0]
    with torch.no_grad():
        detections, random_detections = model.eval()(images), random.eval()(images)
    torch.testing.assert_close(detections[0]["scores"], random_detections[0]["scores"])


@pytest.mark.parametrize(
    "name, classifier, width",
    [
        ("ssd_compact", "compact", 16),
        ("fasterrcnn_compact", "compact", 16),
        ("detr_compact", "compact", 16),
        ("rtdetr_v2_compact", "compact", 16),
        ("fasterrcnn_qr50_fpn", "resnet50", 16),
        ("fasterrcnn_mobilenet_v2_fpn", "mobilenet_v2", 64),
        ("ssdlite_mobilenet_v2", "mobilenet_v2", 64),
        ("retinanet_mobilenet_v2_small", "mobilenet_v2", 64),
    ],
)
def test_load_backbone(name, classifier, width):
    student, start = small(name), build_classifier(classifier, 7, width)
    for module in start.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    load_backbone(student, start)
    body = getattr(student.backbone, "body", student.backbone)
    trained = {"compact": "backbone", "mobilenet_v2": "features"}.get(classifier)
    trained = (getattr(start, trained) if trained else start).state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in body.state_dict().items())


def test_load_backbone_refuses_what_does_not_fit():
    student = small("fasterrcnn_qr50_fpn")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"ResNet does not fit .*: \d+ tensors differ, bn1.bias is \(32,\) in the classifier and \(16"
    ):
        load_backbone(student, narrow_resnet("resnet50", 32, 7))
    with pytest.raises(ValueError, match="CompactClassifier does not fit"):
        load_backbone(student, build_classifier("compact", 7, 16))
    with pytest.raises(ValueError, match="not AlexNet"):
        load_backbone(student, build_classifier("alexnet", 7))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
