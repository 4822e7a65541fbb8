"""PositiveTap takes what the detector's own loss used, of every family, and leaves the model as it was."""

import re

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("torchvision")

import torchvision
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.ssd import SSD
from torchvision.ops import generalized_box_iou_loss

from cls2det.models.students import build_student
from cls2det.models.taps import PositiveTap

CLASSES = 5
FAMILIES = ["ssd_compact", "retinanet_compact", "fcos_compact", "fasterrcnn_compact", "detr_compact", "rtdetr_v2_compact"]


def build(name):
    if "detr" in name:
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    return build_student(name, CLASSES, 96).train()


def batch():
    torch.manual_seed(1)
    boxes = [[[10.0, 12, 42, 44], [50, 40, 90, 88]], [], [[20.0, 20, 60, 62]]]
    labels = [[1, 3], [], [5]]
    targets = [
        {"boxes": torch.tensor(box).reshape(-1, 4), "labels": torch.tensor(label, dtype=torch.int64)}
        for box, label in zip(boxes, labels, strict=True)
    ]
    return [torch.rand(3, 96, 96) for _ in targets], targets


@pytest.fixture(params=FAMILIES)
def model(request):
    return build(request.param)


def tapped(model):
    tap = PositiveTap(model)
    with tap:
        losses = model(*batch())
    return losses, tap.positives


def values(losses):
    return {name: loss.item() for name, loss in losses.items()}


def test_positives_belong_together(model):
    _, positives = tapped(model)
    assert len(positives) > 0
    assert positives.images.shape == (3, 3, 96, 96)
    assert positives.target_labels.tolist() == [1, 3, 5] and positives.target_image_index.tolist() == [0, 0, 2]
    assert torch.equal(
        positives.target_image_index[positives.matched_idxs], positives.image_index
    )  # the match lies in the same image
    columns = CLASSES + (positives.background != "none")
    assert positives.logits.shape == (len(positives), columns) and positives.boxes.shape == (len(positives), 4)
    assert positives.logits.requires_grad and positives.boxes.requires_grad
    assert bool((positives.boxes[:, 2:] >= positives.boxes[:, :2]).all())


@pytest.mark.parametrize(
    "name, head, background",
    [
        ("ssd_compact", "softmax", "first"),
        ("retinanet_compact", "sigmoid", "first"),
        ("fcos_compact", "sigmoid", "first"),
        ("fasterrcnn_compact", "softmax", "first"),
        ("detr_compact", "softmax", "last"),
        ("rtdetr_v2_compact", "sigmoid", "none"),
    ],
)
def test_head_and_column_of_each_class(name, head, background):
    """Where the losses pull a positive's logits up is the column that ``background`` says its class has."""
    model = build(name)
    tap = PositiveTap(model)
    with tap:
        losses = model(*batch())
    positives = tap.positives
    assert (positives.head, positives.background) == (head, background)
    classification = next(loss for name, loss in losses.items() if "class" in name)
    (gradient,) = torch.autograd.grad(classification, tap.outputs[:1])
    expected = set((positives.target_labels - int(background != "first")).tolist())
    pulled = set(torch.where(gradient.reshape(-1, gradient.shape[-1]).min(0).values < -1e-6)[0].tolist())
    no_class = set() if head == "sigmoid" else {CLASSES if background == "last" else 0}  # sigmoids: column 0 is never a target
    # RT-DETR raises a logit by the overlap of the boxes, which may be nothing
    assert pulled == expected | no_class or ("rtdetr" in name and pulled and pulled < expected)


def test_the_losses_are_the_models_own(model):
    torch.manual_seed(3)
    plain = model(*batch())
    torch.manual_seed(3)
    losses, _ = tapped(model)
    assert values(losses) == values(plain)


def test_outputs_are_what_the_losses_hang_on(model):
    tap = PositiveTap(model)
    with tap:
        losses = model(*batch())
    logits, regression = tap.outputs
    columns = CLASSES + (tap.positives.background != "none")
    assert logits.shape[-1] == columns and regression.shape[-1] in (4, 4 * (CLASSES + 1))
    boxes = sum(loss for name, loss in losses.items() if "box" in name and "rpn" not in name)
    classes = sum(loss for name, loss in losses.items() if "class" in name)
    for loss, output in ((classes, logits), (boxes, regression)):
        (gradient,) = torch.autograd.grad(loss, output, retain_graph=True)
        assert torch.isfinite(gradient).all() and gradient.any()
    positives = tap.positives
    (gradient,) = torch.autograd.grad(positives.boxes.sum(), regression, retain_graph=True)
    assert gradient.any()


# The box losses again, from the tap's boxes: same rows, same matches, right decoder


def matched_boxes(positives):
    return positives.target_boxes[positives.matched_idxs]


def test_ssd_box_loss_again_from_the_positives(monkeypatch):
    model, calls, original = build("ssd_compact"), {}, SSD.compute_loss

    def spy(self, targets, head_outputs, anchors, matched_idxs):
        calls.update(matched=matched_idxs, anchors=anchors, logits=head_outputs["cls_logits"])
        return original(self, targets, head_outputs, anchors, matched_idxs)

    monkeypatch.setattr(SSD, "compute_loss", spy)
    losses, positives = tapped(model)
    assert len(positives) == sum(int((matched >= 0).sum()) for matched in calls["matched"])
    anchors = torch.cat([boxes[matched >= 0] for boxes, matched in zip(calls["anchors"], calls["matched"], strict=True)])
    expected = model.box_coder.encode_single(matched_boxes(positives), anchors)
    again = F.smooth_l1_loss(model.box_coder.encode_single(positives.boxes, anchors), expected, reduction="sum") / len(
        positives
    )
    torch.testing.assert_close(again, losses["bbox_regression"], rtol=1e-4, atol=1e-5)
    rows = torch.cat([logits[matched >= 0] for logits, matched in zip(calls["logits"], calls["matched"], strict=True)])
    assert torch.equal(rows, positives.logits)


def test_retinanet_box_loss_again_without_anchors_between_the_thresholds(monkeypatch):
    model, calls, original = build("retinanet_compact"), {}, RetinaNetHead.compute_loss

    def spy(self, targets, head_outputs, anchors, matched_idxs):
        calls.update(matched=matched_idxs, anchors=anchors)
        return original(self, targets, head_outputs, anchors, matched_idxs)

    monkeypatch.setattr(RetinaNetHead, "compute_loss", spy)
    losses, positives = tapped(model)
    assert (torch.stack(calls["matched"]) == -2).any()  # the case is there
    assert len(positives) == int((torch.stack(calls["matched"]) >= 0).sum())
    anchors = torch.cat([boxes[matched >= 0] for boxes, matched in zip(calls["anchors"], calls["matched"], strict=True)])
    difference = model.box_coder.encode_single(positives.boxes, anchors) - model.box_coder.encode_single(
        matched_boxes(positives), anchors
    )
    again = (
        sum(
            difference[positives.image_index == image].abs().sum() / (positives.image_index == image).sum() for image in (0, 2)
        )
        / 3
    )
    torch.testing.assert_close(again, losses["bbox_regression"], rtol=1e-4, atol=1e-5)


def test_fcos_box_loss_again_from_the_positives():
    losses, positives = tapped(build("fcos_compact"))
    again = generalized_box_iou_loss(positives.boxes, matched_boxes(positives), reduction="sum") / len(positives)
    torch.testing.assert_close(again, losses["bbox_regression"])


def test_faster_rcnn_matches_again_from_the_regression_targets(monkeypatch):
    model, calls, original = build("fasterrcnn_compact"), {}, RoIHeads.select_training_samples

    def spy(self, proposals, targets):
        calls["result"] = original(self, proposals, targets)
        return calls["result"]

    monkeypatch.setattr(RoIHeads, "select_training_samples", spy)
    losses, positives = tapped(model)
    proposals, _, labels, regression_targets = (torch.cat(part) for part in calls["result"])
    rows, coder = labels > 0, model.roi_heads.box_coder
    expected = coder.decode_single(regression_targets[rows], proposals[rows])
    torch.testing.assert_close(matched_boxes(positives), expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(positives.target_labels[positives.matched_idxs], labels[rows])
    difference = coder.encode_single(positives.boxes, proposals[rows]) - regression_targets[rows]
    again = F.smooth_l1_loss(difference, torch.zeros_like(difference), beta=1 / 9, reduction="sum") / len(labels)
    torch.testing.assert_close(again, losses["loss_box_reg"], rtol=1e-4, atol=1e-5)


def test_faster_rcnn_takes_the_true_class_box():
    """With the regression of every other class blown up, the decoded boxes do not move."""
    model = build("fasterrcnn_compact")
    torch.manual_seed(3)
    _, before = tapped(model)
    labels = set(before.target_labels.tolist())
    with torch.no_grad():
        for label in set(range(CLASSES + 1)) - labels:
            model.roi_heads.box_predictor.bbox_pred.bias[4 * label : 4 * label + 4] += 1.0
    torch.manual_seed(3)
    _, after = tapped(model)
    assert torch.equal(before.boxes, after.boxes)


def test_detr_positives_are_the_matching():
    """One query for each ground truth: the one that transformers' matcher gives it on the last layer's outputs."""
    model = build("detr_compact")
    with torch.no_grad():
        for weight in (*model.network.model.decoder.parameters(), *model.network.bbox_predictor.parameters()):
            weight.mul_(4)  # fresh weights give a query nearly the same box in all layers
    _, positives = tapped(model)
    assert positives.matched_idxs.sort().values.tolist() == [0, 1, 2]
    from transformers.loss.loss_for_object_detection import HungarianMatcher

    images, targets = batch()
    with torch.no_grad():
        tensors = model.transform(images, None)[0].tensors
        states = model.network.model(tensors, pixel_mask=torch.ones(3, 96, 96)).intermediate_hidden_states
        logits, boxes = model.network.class_labels_classifier(states), model.network.bbox_predictor(states).sigmoid()
        layers = [{"logits": logits[at], "pred_boxes": boxes[at]} for at in (0, -1)]
    left, top, right, bottom = torch.cat([target["boxes"] for target in targets]).T / 96
    boxes = torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], 1).split([2, 0, 1])
    expected = [{"class_labels": target["labels"] - 1, "boxes": box} for target, box in zip(targets, boxes, strict=True)]
    matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    first, last = ([(rows.tolist(), columns.tolist()) for rows, columns in matcher(layers[at], expected)] for at in (0, -1))
    assert first != last
    queries = torch.cat([layers[-1]["logits"][image, rows] for image, (rows, _) in enumerate(last)])
    torch.testing.assert_close(positives.logits.detach(), queries)
    before = (0, 2, 2)
    assert positives.matched_idxs.tolist() == [before[image] + row for image, (_, rows) in enumerate(last) for row in rows]


def test_detr_boxes_are_in_pixels_of_unpadded_images():
    model = build("detr_compact")
    tap = PositiveTap(model)
    images = [torch.rand(3, 96, 144), torch.rand(3, 144, 96)]
    targets = [{"boxes": torch.tensor([[10.0, 20, 60, 90]]), "labels": torch.tensor([2])} for _ in images]
    with tap:
        model(images, targets)
    positives, (_, boxes) = tap.positives, tap.outputs
    assert positives.images.shape[-2:] == (160, 160)
    for image, (height, width) in enumerate([(96, 144), (144, 96)]):
        centre, sides = boxes[image, :, :2], boxes[image, :, 2:]
        pixels = torch.cat([centre - sides / 2, centre + sides / 2], 1) * torch.tensor([width, height] * 2)
        assert bool((pixels - positives.boxes[image]).abs().sum(1).min() < 1e-3)


# What must not go unnoticed


def test_model_is_left_as_it_was(model):
    def attributes():
        return {name: (set(vars(module)), len(module._forward_hooks)) for name, module in model.named_modules()}

    before = attributes()
    tapped(model)
    assert attributes() == before
    with pytest.raises(AssertionError, match="targets should not be"), PositiveTap(model):
        model(batch()[0], None)
    assert attributes() == before


def test_building_a_tap_draws_no_random_number(model):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    PositiveTap(model)
    assert torch.equal(torch.rand(1), expected)


def test_no_ground_truth_at_all(model):
    images, targets = batch()
    tap = PositiveTap(model)
    with tap:
        losses = model(images[1:2], targets[1:2])
    assert len(tap.positives) == 0
    loss = sum(losses.values())
    assert torch.isfinite(loss)
    loss.backward()


def test_thinned_keeps_every_image():
    _, positives = tapped(build("ssd_compact"))
    subset = positives.thinned(6)
    assert len(subset) == 6 and len(subset.logits) == 6
    assert set(subset.image_index.tolist()) == set(positives.image_index.tolist())
    assert subset.head == "softmax" and positives.thinned(10_000) is positives


def test_unknown_model_and_missing_attribute():
    with pytest.raises(TypeError, match=r"SSD, RetinaNet, FCOS, FasterRCNN, HungarianDetector and transformers.*, not Linear"):
        PositiveTap(torch.nn.Linear(1, 1))
    model = build("ssd_compact")
    with pytest.raises(TypeError, match="not DataParallel; of a wrapped model, give the one inside"):
        PositiveTap(torch.nn.DataParallel(model))
    del model.box_coder
    with pytest.raises(
        RuntimeError, match=rf"torchvision {re.escape(torchvision.__version__)}.*SSD has no box_coder.decode_single"
    ):
        PositiveTap(model)


@pytest.mark.parametrize(
    "name, owner, method",
    [
        ("ssd_compact", SSD, "compute_loss"),
        ("retinanet_compact", RetinaNetHead, "compute_loss"),
        ("fcos_compact", FCOSHead, "compute_loss"),
        ("fasterrcnn_compact", RoIHeads, "select_training_samples"),
    ],
)
def test_another_torchvision_fails_when_the_tap_is_made(monkeypatch, name, owner, method):
    model, version = build(name), f"torchvision {re.escape(torchvision.__version__)}"
    PositiveTap(model)
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, lambda self, targets, head_outputs, anchors, matches: None)
        with pytest.raises(RuntimeError, match=rf"{version}.*{method} takes \(targets, head_outputs, anchors, matches\)"):
            PositiveTap(model)
    with monkeypatch.context() as patch:
        patch.setattr(owner, "renamed", getattr(owner, method), raising=False)
        patch.delattr(owner, method)
        with pytest.raises(RuntimeError, match=rf"{version}.*has no .*{method}"):
            PositiveTap(model)


def test_other_results_of_the_sampling_fail_when_the_tap_is_made(monkeypatch):
    model, original = build("fasterrcnn_compact"), RoIHeads.select_training_samples

    def changed(order):
        return lambda self, proposals, targets: tuple(original(self, proposals, targets)[place] for place in order)

    for order in ((0, 2, 1, 3), (1, 0, 2, 3), (0, 1, 2)):
        monkeypatch.setattr(RoIHeads, "select_training_samples", changed(order))
        with pytest.raises(RuntimeError, match=r"torchvision .*select_training_samples does not give proposals, matched_idxs"):
            PositiveTap(model)


def test_another_transformers_fails_when_the_tap_is_made(monkeypatch):
    model = build("detr_compact")
    import transformers
    from transformers.loss import loss_for_object_detection

    matcher = loss_for_object_detection.HungarianMatcher
    with monkeypatch.context() as patch:
        patch.setattr(matcher, "forward", lambda self, targets, outputs: [])
        with pytest.raises(
            RuntimeError, match=rf"transformers {transformers.__version__}.*HungarianMatcher.forward should take"
        ):
            PositiveTap(model)
    monkeypatch.setattr(loss_for_object_detection, "Matcher", matcher, raising=False)
    monkeypatch.delattr(loss_for_object_detection, "HungarianMatcher")
    with pytest.raises(RuntimeError, match=r"the loss of DetrForObjectDetection makes no HungarianMatcher"):
        PositiveTap(model)


@pytest.mark.parametrize("name, owner", [("retinanet_compact", RetinaNet), ("fcos_compact", FCOS)])
def test_a_forward_that_delivers_nothing_is_an_error(monkeypatch, name, owner):
    """A detector whose loss goes another way than through the tapped method."""
    model = build(name)
    tap = PositiveTap(model)
    with tap:
        model(*batch())
    assert len(tap.positives)
    monkeypatch.setattr(owner, "compute_loss", lambda *_: {})
    with tap:
        model(*batch())
    with pytest.raises(RuntimeError, match="no positives"):
        tap.positives  # noqa: B018
    with pytest.raises(RuntimeError, match="no outputs"):
        tap.outputs  # noqa: B018


def test_an_evaluation_delivers_nothing(model):
    tap = PositiveTap(model)
    with tap, torch.no_grad():
        model(*batch())
        model.eval()(batch()[0])
    with pytest.raises(RuntimeError, match="inside `with tap:`"):
        tap.positives  # noqa: B018


def test_the_old_name_of_the_students_outputs():
    model = build("ssd_compact")
    tap = PositiveTap(model)
    with tap:
        model(*batch())
    with pytest.warns(FutureWarning, match="tap.seen is called tap.student_outputs now"):
        old = tap.seen
    assert old.grid.logits is tap.student_outputs.grid.logits


def test_no_positives_before_a_forward():
    tap = PositiveTap(build("ssd_compact"))
    with pytest.raises(RuntimeError, match="inside `with tap:`"):
        tap.positives  # noqa: B018


@pytest.mark.parametrize("builder", torchvision.models.list_models(module=torchvision.models.detection))
def test_every_builder_of_torchvision(builder):
    torch.manual_seed(0)
    fixed = builder.startswith("ssd")  # of a fixed size
    size = {} if fixed else {"min_size": 96, "max_size": 96}
    model = torchvision.models.get_model(builder, weights=None, weights_backbone=None, num_classes=CLASSES + 1, **size).train()
    images, targets = batch()
    for target in targets:
        count = len(target["boxes"])
        target |= {"masks": torch.ones(count, 96, 96, dtype=torch.uint8), "keypoints": torch.ones(count, 17, 3) * 30}
    tap = PositiveTap(model)
    with tap:
        losses = model(images, targets)
    positives = tap.positives
    assert len(positives) and positives.target_labels.tolist() == [1, 3, 5]
    assert torch.equal(positives.target_image_index[positives.matched_idxs], positives.image_index)
    assert positives.logits.shape == (len(positives), CLASSES + 1) and positives.boxes.requires_grad
    assert sum(losses.values()).isfinite()


def test_a_tap_is_opened_once_at_a_time(model):
    tap = PositiveTap(model)
    with tap, pytest.raises(RuntimeError, match="open already"), tap:
        pass
    assert not model.transform._forward_hooks and "compute_loss" not in model.__dict__
    with tap:
        model(*batch())
    assert len(tap.positives)


def test_a_tap_knows_how_its_detector_normalises(model):
    transform = model.transform
    expected = {"image_mean": list(transform.image_mean), "image_std": list(transform.image_std)}
    assert PositiveTap(model).normalisation == expected


def test_a_backbone_of_a_single_map():
    """As torchvision's own pages build one: a module that gives a tensor, not tensors by name."""
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 8, 1), torch.nn.ReLU())
    backbone.out_channels = 8
    small = {"num_classes": CLASSES + 1, "min_size": 96, "max_size": 96, "box_batch_size_per_image": 16}
    anchors = torchvision.models.detection.rpn.AnchorGenerator(((24, 48),), ((1.0,),))
    pool = torchvision.ops.MultiScaleRoIAlign(["0"], 3, 2)
    model = FasterRCNN(backbone, rpn_anchor_generator=anchors, box_roi_pool=pool, **small).train()
    tap = PositiveTap(model)
    with tap:
        model(*batch())
    assert [tuple(features.shape) for features in tap.maps] == [(3, 8, 12, 12)]
    assert tap.student_outputs.grid.level_sizes == (288,) and len(tap.positives)
