"""The distillation terms on a detector's positives: what they compare, where their gradient goes, and what they refuse."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import generalized_box_iou

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from cls2det.distill import NO_TERMS, ClassifierDistiller, ClassifierSettings
from cls2det.distill.balance import gradient_ratios
from cls2det.models.students import STUDENTS
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det_ops import kd_sigmoid_loss, reference
from training_cases import ALL_TERMS, DIGITS, FITS, batch, positives_of, training

ONLY = {
    name: ClassifierSettings(**{"kd_cls_weight": 0.0, "kd_loc_weight": 0.0, "loc_weight": 0.0} | {f"{name}_weight": 1.0})
    for name in ("kd_cls", "kd_loc", "loc")
}


def test_gradient_reaches_logits_and_boxes_and_nothing_of_the_teacher(scenes, teacher_weights):
    model = training(teacher_weights)
    positives, distiller = positives_of(model, scenes), model.distillation.classifier
    terms = distiller(positives)
    assert set(terms) == {"kd_cls", "kd_loc", "loc"} and all(term > 0 for term in terms.values())
    (of_logits,) = torch.autograd.grad(terms["kd_cls"], positives.logits, retain_graph=True)
    assert (of_logits.abs().sum(1) > 0).all()
    for name in ("kd_loc", "loc"):
        (of_boxes,) = torch.autograd.grad(terms[name], positives.boxes, retain_graph=True)
        assert (of_boxes.abs().sum(1) > 0).float().mean() > 0.9
    sum(terms.values()).backward()
    head = model.detector.head
    for part in (head.classification_head, head.regression_head):
        assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in part.parameters())
    frozen = [*distiller.teacher.parameters(), *distiller.on_targets.parameters(), *distiller.on_predictions.parameters()]
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in frozen)
    assert not {id(parameter) for parameter in model.parameters()} & {id(parameter) for parameter in frozen}
    assert not any(module.training for module in (distiller.teacher, distiller.on_targets, distiller.on_predictions))


@pytest.mark.parametrize("student", FITS)
def test_every_family_is_taught_classes_and_boxes(scenes, student):
    model = training(CropClassifier(DIGITS, width=16, crop_size=32, loss="joint"), student=student)
    _, terms = model.losses(*batch(scenes))
    for name, outputs in (
        ("kd_cls", model.tap.outputs[:1]),
        ("kd_loc", model.tap.outputs[1:]),
        ("loc", model.tap.outputs[1:]),
    ):
        (gradient,) = torch.autograd.grad(terms[name], outputs, retain_graph=True)
        assert terms[name] > 0 and torch.isfinite(gradient).all() and gradient.any(), name


@pytest.mark.parametrize("student", FITS)
def test_weights_of_zero_leave_the_detectors_losses_to_the_bit(scenes, student):
    model = training(CropClassifier(DIGITS, width=16, crop_size=32, loss="joint"), NO_TERMS, student)
    images, targets = batch(scenes)
    torch.manual_seed(3)
    plain = model.detector([image.float() / 255 for image in images], targets)
    torch.manual_seed(3)
    losses, terms = model.losses(images, targets)
    assert {name: loss.item() for name, loss in losses.items()} == {name: loss.item() for name, loss in plain.items()}
    assert not any(term.item() for term in terms.values())


@pytest.mark.parametrize(("name", "mode"), [("kd_loc", "crop"), ("kd_loc", "map"), ("loc", "crop")])
def test_box_gradient_pulls_towards_the_ground_truth(scenes, teacher_weights, name, mode):
    """A descent step moves shifted boxes closer to their ground truths."""
    model = training(teacher_weights, dataclasses.replace(ONLY[name], feature_mode=mode))
    positives = positives_of(model, scenes, 12)
    truth = positives.target_boxes[positives.matched_idxs]
    boxes = (truth + 0.08 * (truth[:, 2:] - truth[:, :2]).repeat(1, 2)).requires_grad_()
    (gradient,) = torch.autograd.grad(model.distillation.classifier(dataclasses.replace(positives, boxes=boxes))[name], boxes)
    inside = ((truth > 2) & (truth < 94)).all(1)
    assert inside.sum() > 20
    assert (gradient[inside].sum(1) > 0).float().mean() > 0.7


def test_terms_again_from_their_formulas(scenes, teacher_weights):
    """Each term with the crops, the teacher and the losses written out, batch norm not folded."""
    settings = ClassifierSettings(0.4, 3.0, 0.5, input_std=1.0, temperature=1.5, pixel_pool=4, feature_pools=(4,))
    model = training(teacher_weights, settings)
    positives, teacher = positives_of(model, scenes), model.distillation.classifier.teacher
    terms = model.distillation.classifier(positives)

    def crops(boxes, image):
        return reference.roi_crop(positives.images, boxes, image, (32, 32), padding_mode="border", clip=False)

    target_crops = crops(positives.target_boxes, positives.target_image_index)
    logits = teacher.network(target_crops)[positives.matched_idxs]
    soft = F.pad((logits / 1.5).softmax(1), (1, 0))
    divergence = F.kl_div((positives.logits / 1.5).log_softmax(1), soft, reduction="sum")
    torch.testing.assert_close(terms["kd_cls"], 0.4 * 1.5**2 * divergence / len(positives), rtol=1e-4, atol=1e-6)

    predicted_crops = crops(positives.boxes, positives.image_index)
    pool = lambda x: F.adaptive_avg_pool2d(x, 4)  # noqa: E731
    pixels = (pool(predicted_crops) - pool(target_crops)[positives.matched_idxs]).abs().mean()
    torch.testing.assert_close(terms["loc"], 0.5 * 0.25 * 255 * pixels, rtol=1e-4, atol=1e-6)
    network = teacher.network
    stem = lambda x: network.maxpool(network.relu(network.bn1(network.conv1(x))))  # noqa: E731
    features = (pool(stem(predicted_crops)) - pool(stem(target_crops))[positives.matched_idxs]).abs().mean()
    torch.testing.assert_close(terms["kd_loc"], 3.0 * features, rtol=1e-4, atol=1e-6)
    truth = positives.target_labels - 1
    assert model.distillation.classifier.accuracy == (teacher.network(target_crops).argmax(1) == truth).float().mean()


@pytest.mark.parametrize("layers", [("maxpool",), ("maxpool", "layer1")])
def test_map_mode_from_its_formula(scenes, teacher_weights, layers):
    """The layers once on whole images, boxes pooled there; no crop goes through the teacher for it."""
    pools = (8, 4)[: len(layers)]
    settings = dataclasses.replace(ONLY["kd_loc"], feature_mode="map", feature_layers=layers, feature_pools=pools)
    model = training(teacher_weights, settings)
    positives, distiller = positives_of(model, scenes), model.distillation.classifier
    network = distiller.teacher.network
    term = distiller(positives)["kd_loc"]
    maps = {"maxpool": network.maxpool(network.relu(network.bn1(network.conv1(positives.images))))}
    maps["layer1"] = network.layer1(maps["maxpool"])
    expected = []
    for layer, pool in zip(layers, pools, strict=True):
        predictions, targets = (
            reference.roi_avg_pool(maps[layer], boxes, image, (pool, pool), (8, 8), 0.25, "border", False)
            for boxes, image in (
                (positives.boxes, positives.image_index),
                (positives.target_boxes, positives.target_image_index),
            )
        )
        expected.append((predictions - targets[positives.matched_idxs]).abs().mean())
    torch.testing.assert_close(term, sum(expected) / len(layers), rtol=1e-4, atol=1e-6)
    assert distiller.on_targets is None


def test_pixel_term_does_not_depend_on_the_normalisation(scenes):
    """``loc_weight`` is per level of 255, so the same boxes on the same picture cost the same in every student."""
    model = training(None, ONLY["loc"])
    positives = positives_of(model, scenes)
    value = model.distillation.classifier(positives)["loc"]
    model.detector.transform.image_std = [1.0, 1.0, 1.0]
    distiller = ClassifierDistiller(None, ONLY["loc"], DIGITS, model.detector.transform)
    rescaled = dataclasses.replace(positives, images=positives.images * 0.25)
    torch.testing.assert_close(distiller(rescaled)["loc"], value)


def test_several_layers_are_averaged(scenes, teacher_weights):
    def term(**changes):
        model = training(teacher_weights, dataclasses.replace(ONLY["kd_loc"], **changes))
        return model.distillation.classifier(positives_of(model, scenes))["kd_loc"]

    low, high = term(), term(feature_layers=("layer1",), feature_pools=(4,))
    mean = term(feature_layers=("maxpool", "layer1"), feature_pools=(8, 4))
    torch.testing.assert_close(mean, (low + high) / 2)
    assert low != high


@pytest.mark.parametrize("layers", [("maxpool",), ("maxpool", "layer1")])
def test_chunks_change_no_result(scenes, teacher_weights, layers):
    """Terms and gradients are those of all crops at once, and no more crops than a chunk are ever in the teacher."""

    def results_with(chunk):
        model = training(
            teacher_weights,
            dataclasses.replace(ALL_TERMS, feature_layers=layers, feature_pools=(4,) * len(layers), chunk=chunk),
        )
        positives, distiller, sizes = positives_of(model, scenes), model.distillation.classifier, []
        for reader in (distiller.on_targets, distiller.on_predictions):
            reader.register_forward_pre_hook(lambda _module, arguments: sizes.append(len(arguments[0])))
        terms = distiller(positives)
        gradients = torch.autograd.grad(sum(terms.values()), [positives.boxes, positives.logits])
        with torch.no_grad():
            assert distiller(positives)["kd_loc"] == terms["kd_loc"]
        return [*terms.values(), *gradients], len(positives), sizes

    expected, positives, sizes = results_with(None)
    assert positives > 15 and max(sizes) == positives
    parts, _, sizes = results_with(7)
    assert max(sizes) == 7 and sizes[:-1].count(7) >= positives // 7
    torch.testing.assert_close(parts, expected, rtol=1e-5, atol=1e-7)


def test_bfloat16_teacher_leaves_the_stem_and_changes_little(scenes, teacher_weights):
    def results_with(precision):
        model = training(teacher_weights, dataclasses.replace(ALL_TERMS, teacher_precision=precision))
        positives, distiller = positives_of(model, scenes), model.distillation.classifier
        terms = distiller(positives)
        return terms, *torch.autograd.grad(sum(terms.values()), [positives.boxes, positives.logits]), distiller

    exact, of_boxes, of_logits, _ = results_with("32")
    terms, boxes, logits, distiller = results_with("bf16")
    convolutions = [module for module in distiller.on_targets.modules() if isinstance(module, torch.nn.Conv2d)]
    assert convolutions and all(module.weight.dtype == torch.bfloat16 for module in convolutions)
    for name in ("kd_loc", "loc"):
        assert torch.equal(terms[name], exact[name])
    assert torch.equal(boxes, of_boxes)
    assert terms["kd_cls"] != exact["kd_cls"]  # it did take part
    torch.testing.assert_close(terms["kd_cls"], exact["kd_cls"], rtol=0.02, atol=0)
    assert (logits - of_logits).norm() < 0.02 * of_logits.norm()


def test_only_what_is_read_is_run(scenes, teacher_weights):
    """KD-loc on predicted crops stops at its layer; without KD-cls the logits are not computed either."""
    model = training(teacher_weights, ONLY["kd_loc"])
    for reader in (model.distillation.classifier.on_targets.network, model.distillation.classifier.on_predictions):
        names = [name for name, _ in reader.named_modules()]
        assert "frozen_stem" in names and not any(
            name.startswith(("layer", "fc", "bn1", "conv1", "maxpool")) for name in names
        )
    calls = []
    model = training(teacher_weights)
    model.distillation.classifier.on_targets.register_forward_hook(lambda *_: calls.append("targets"))
    model.distillation.classifier.on_predictions.register_forward_hook(lambda *_: calls.append("predictions"))
    model.distillation.classifier(positives_of(model, scenes))
    assert sorted(calls) == ["predictions", "targets"]


def test_without_a_teacher_the_pixel_term_stands_alone(scenes):
    model = training(None, ONLY["loc"])
    terms = model.distillation.classifier(positives_of(model, scenes))
    assert set(terms) == {"loc"} and terms["loc"] > 0
    with pytest.raises(ValueError, match="need a teacher"):
        training(None)


@pytest.mark.parametrize("student", ["ssd_compact", "retinanet_compact"])
def test_one_hot_control_ignores_the_teacher(scenes, student):
    settings = ClassifierSettings(control="one_hot")
    model = training(CropClassifier(DIGITS), settings, student)
    positives = positives_of(model, scenes)
    labels = positives.target_labels[positives.matched_idxs]
    if student == "ssd_compact":
        expected = 0.4 * 4 * F.cross_entropy(positives.logits / 2, labels)
    else:  # the two-way divergence to certainty is the binary cross-entropy
        truth = F.one_hot(labels - 1, 10).float()
        expected = 0.4 * 4 * F.binary_cross_entropy_with_logits(positives.logits[:, 1:] / 2, truth)
    torch.testing.assert_close(model.distillation.classifier(positives)["kd_cls"], expected)


@pytest.mark.parametrize("student", ["ssd_compact", "retinanet_compact"])
def test_smoothed_control_is_label_smoothing(scenes, student):
    settings = ClassifierSettings(control="smoothed")
    model = training(None, settings, student)
    positives = positives_of(model, scenes)
    truth = F.one_hot(positives.target_labels[positives.matched_idxs] - 1, 10).float()
    if student == "ssd_compact":  # the divergence is the cross-entropy less the targets' own
        shares = 0.9 * truth + 0.01
        logs = (positives.logits / 2).log_softmax(1)[:, 1:]
        expected = (shares * (shares.log() - logs)).sum(1)
    else:
        shares = 0.9 * truth + 0.05
        own = -(shares * shares.log() + (1 - shares) * (1 - shares).log())
        expected = F.binary_cross_entropy_with_logits(positives.logits[:, 1:] / 2, shares, reduction="none") - own
        expected = expected.mean(1)
    torch.testing.assert_close(model.distillation.classifier(positives)["kd_cls"], 0.4 * 4 * expected.mean())


def test_shuffled_control_teaches_wrong_classes(scenes, teacher_weights):
    settings = dataclasses.replace(ONLY["kd_cls"], control="shuffled")
    model = training(teacher_weights, settings)
    positives = positives_of(model, scenes)
    crops = model.distillation.classifier.teacher.crop(positives.images, positives.target_boxes, positives.target_image_index)
    wrong = model.distillation.classifier.teacher(crops).roll(1, dims=1)
    expected = reference.kd_softmax_loss(positives.logits, wrong, positives.matched_idxs, 2.0, "first").mean()
    torch.testing.assert_close(model.distillation.classifier(positives)["kd_cls"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("control", ["giou", "l1"])
def test_true_box_control_needs_no_teacher_and_pulls_to_the_true_box(scenes, control):
    settings = ClassifierSettings(kd_cls_weight=0.0, kd_loc_weight=2.0, loc_weight=3.0, control=control)
    model = training(None, settings)
    positives = positives_of(model, scenes)
    truth = positives.target_boxes[positives.matched_idxs]
    predictions = positives.boxes.detach().requires_grad_()
    if control == "giou":
        distance = 1 - torch.diagonal(generalized_box_iou(predictions, truth))
    else:
        x1, y1, x2, y2 = (predictions - truth).abs().unbind(1)
        width, height = truth[:, 2] - truth[:, 0], truth[:, 3] - truth[:, 1]
        distance = ((x1 + x2) / width + (y1 + y2) / height) / 4
    terms = model.distillation.classifier(dataclasses.replace(positives, boxes=predictions))
    torch.testing.assert_close(terms["kd_loc"], 2 * distance.mean())
    torch.testing.assert_close(terms["loc"], 3 * distance.mean())
    (gradient,) = torch.autograd.grad(terms["loc"], predictions)
    moved = predictions.detach() - 1e-3 * gradient / gradient.abs().max()
    assert ((moved - truth).abs().sum(1) <= (predictions.detach() - truth).abs().sum(1) + 1e-4).float().mean() > 0.8


def test_sigmoid_heads_take_the_two_way_form(scenes, teacher_weights):
    model = training(teacher_weights, ONLY["kd_cls"], "retinanet_compact")
    positives = positives_of(model, scenes)
    assert positives.head == "sigmoid" and positives.logits.shape[1] == 11
    crops = model.distillation.classifier.teacher.crop(positives.images, positives.target_boxes, positives.target_image_index)
    expected = kd_sigmoid_loss(
        positives.logits[:, 1:].contiguous(), model.distillation.classifier.teacher(crops), positives.matched_idxs, 2.0
    )
    torch.testing.assert_close(model.distillation.classifier(positives)["kd_cls"], expected, rtol=1e-4, atol=1e-6)


def test_no_positives_and_no_ground_truth(scenes, teacher_weights):
    model = training(teacher_weights)
    images, targets = batch(scenes, 2)
    targets = [{**target, "boxes": target["boxes"][:0], "labels": target["labels"][:0]} for target in targets]
    with model.tap:
        model.detector([image.float() / 255 for image in images], targets)
    terms = model.distillation.classifier(model.tap.positives)
    assert all(term == 0 and term.requires_grad for term in terms.values())
    sum(terms.values()).backward()


COMPACT = ("ssd_compact", "fasterrcnn_compact", "retinanet_compact", "fcos_compact", "detr_compact", "rtdetr_v2_compact")


@pytest.mark.slow
@pytest.mark.parametrize("student", [name for name in STUDENTS if "compact" not in name])
def test_terms_fall_when_a_published_student_follows_them(scenes, student):
    """The same with small images, and a teacher of that student's normalisation that has learnt nothing."""
    size = None if STUDENTS[student].fixed_size else 96
    torch.manual_seed(0)
    model = training(CropClassifier(DIGITS, student=student, image_size=size), student=student, image_size=size)
    pictures = batch(scenes, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)  # at 2e-4 the boxes of SSD300's VGG jump about
    history = []
    for step in range(8):
        torch.manual_seed(step)
        _, terms = model.losses(*pictures)
        history.append(sum(terms.values()).item())
        assert all(term > 0 for term in terms.values())
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    assert sum(history[-2:]) < sum(history[:2]), [round(value, 3) for value in history]


@pytest.mark.parametrize("student", COMPACT)
def test_terms_fall_when_a_student_follows_them(scenes, teacher_weights, student):
    """Some steps on one batch, on the distillation terms alone: each falls, through classification and box regression."""
    model = training(teacher_weights, student=student)
    pictures = batch(scenes, 4)
    # RT-DETR's encoder chooses its queries. It stays as it is, and with it the positives: with others, terms rise and fall.
    names = ".decoder." if student == "rtdetr_v2_compact" else ""
    optimizer = torch.optim.AdamW([weight for name, weight in model.named_parameters() if names in name], lr=1e-3)
    history = []
    for step in range(20):
        torch.manual_seed(step)  # of the proposals that Faster R-CNN samples
        _, terms = model.losses(*pictures)
        history.append({name: term.item() for name, term in terms.items()})
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    for name in ("kd_cls", "kd_loc", "loc"):
        first, last = history[0][name], sum(row[name] for row in history[-3:]) / 3
        # DETR's queries all start on one box in the middle, far from most objects: their crops feel little of a shift. Over
        # twelve seeds its box terms came to 0.87 to 0.95 of the first; without a step they stay at exactly 1.
        assert 0 < last < (0.97 if student == "detr_compact" else 0.95) * first, (
            name,
            [round(row[name], 3) for row in history],
        )


def test_most_positives(scenes, teacher_weights):
    model = training(teacher_weights, dataclasses.replace(ONLY["loc"], max_positives=5))
    positives = positives_of(model, scenes)
    (gradient,) = torch.autograd.grad(model.distillation.classifier(positives)["loc"], positives.boxes)
    assert len(positives) > 5 and (gradient.abs().sum(1) > 0).sum() == 5


def test_gradient_ratios_are_those_of_the_head(scenes, teacher_weights):
    model = training(teacher_weights)
    losses, distilled = model.losses(*batch(scenes))
    detection, outputs = sum(losses.values()), model.tap.outputs
    ratios = gradient_ratios(detection, distilled, outputs)

    def norm(loss):
        gradients = torch.autograd.grad(loss, outputs, retain_graph=True, allow_unused=True)
        return sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None) ** 0.5

    for name, ratio in ratios.items():
        assert ratio > 0 and float(ratio) == pytest.approx(norm(distilled[name]) / norm(detection), rel=1e-5)
    half = gradient_ratios(detection, {"half": 0.5 * detection}, outputs)["half"]
    assert float(half) == pytest.approx(0.5, rel=1e-5)


def test_teacher_that_does_not_fit(teacher_weights):
    classifier = CropClassifier.load(teacher_weights)
    transform = training(None, ONLY["loc"]).detector.transform
    with pytest.raises(ValueError, match=r"the data has 2 classes and the teacher 10 classes, .*: only the data has 'cat'"):
        ClassifierDistiller(classifier, ClassifierSettings(), ["1", "cat"], transform)
    transform.image_std = [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match=r"image_std is .* in the student and .* in the teacher"):
        ClassifierDistiller(classifier, ClassifierSettings(), DIGITS, transform)


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match="one pool per layer"):
        ClassifierSettings(feature_layers=("maxpool", "layer1"))
    with pytest.raises(ValueError, match="must be at least 0, got -1"):
        ClassifierSettings(loc_weight=-1.0)
    for name in ("temperature", "input_std", "pixel_pool", "pixel_size", "chunk", "max_positives"):
        with pytest.raises(ValueError, match=f"classifier.{name} must be above 0, got 0"):
            ClassifierSettings(**{name: 0})
