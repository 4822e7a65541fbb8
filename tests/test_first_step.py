"""BoxDistiller looks at its first step: silent on every detector that a tap knows, young and old, and not on wrong calls."""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings

import pytest
import torch

pytest.importorskip("torchvision")

import torchvision

from cls2det.distill import BoxDistiller, ClassifierSettings
from cls2det.distill.first_step import warn_of_mistakes
from cls2det.models.students import build_student
from cls2det.models.taps import PositiveTap
from cls2det.teachers.network import teacher_from
from cls2det_ops import RoIMap, explain, roi_feature_loss

CLASSES = list("abcde")
STUDENTS = ("ssd_compact", "retinanet_compact", "fcos_compact", "fasterrcnn_compact", "detr_compact")
FAMILIES = ("DETR", "Conditional DETR", "Deformable DETR", "RT-DETRv2", "D-FINE", "RF-DETR", "YOLOS")
IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
KD_CLS = ClassifierSettings()


@functools.cache
def positives_of_student(name):
    """A batch of four pictures, one of them empty, with large and small objects."""
    if name.startswith("detr"):
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = build_student(name, len(CLASSES), 96).train()
    boxes = [
        [[10.0, 12, 42, 44], [50, 40, 90, 88], [4, 4, 12, 13]],
        [],
        [[1.0, 2, 95, 93]],
        [[60.0, 20, 80, 30], [3, 50, 40, 90]],
    ]
    targets = [{"boxes": torch.tensor(box).reshape(-1, 4), "labels": torch.randint(1, 6, (len(box),))} for box in boxes]
    tap = PositiveTap(model)
    with tap:
        model([torch.rand(3, 96, 96) for _ in targets], targets)
    return tap.positives, {name: getattr(model.transform, name) for name in IMAGENET}


def positives_of_transformers(name):
    pytest.importorskip("transformers")
    pytest.importorskip("scipy")
    from small_transformers import DETECTORS

    torch.manual_seed(0)
    model = DETECTORS[name][0]().train()
    labels = [
        {"class_labels": torch.tensor([1, 3]), "boxes": torch.tensor([[0.3, 0.3, 0.3, 0.3], [0.7, 0.6, 0.1, 0.1]])},
        {"class_labels": torch.tensor([], dtype=torch.int64), "boxes": torch.zeros(0, 4)},
        {"class_labels": torch.tensor([4]), "boxes": torch.tensor([[0.5, 0.5, 0.9, 0.9]])},
    ]
    tap = PositiveTap(model)
    with tap:
        model(pixel_values=torch.rand(3, 3, 64, 64), labels=labels)
    return tap.positives, {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}


def older(positives, age):
    """The positives of the same detector after some training: boxes and logits nearer to the truth, a background that is known."""
    labels = positives.target_labels[positives.matched_idxs]
    columns = labels - (0 if positives.background == "first" else 1)
    logits = positives.logits + 8 * age * torch.nn.functional.one_hot(columns, positives.logits.shape[1])
    if positives.head == "softmax":
        logits[:, 0 if positives.background == "first" else -1] += 6 * (1 - age)
    boxes = (1 - age) * positives.boxes + age * positives.target_boxes[positives.matched_idxs]
    return dataclasses.replace(positives, logits=logits, boxes=boxes)


def teacher_logits(positives, knows):
    torch.manual_seed(3)
    logits = 0.3 * torch.randn(len(CLASSES)) + 0.1 * torch.randn(len(positives.target_labels), len(CLASSES))
    return logits + 8 * knows * torch.nn.functional.one_hot(positives.target_labels - 1, len(CLASSES))


@pytest.mark.parametrize("name", STUDENTS + FAMILIES)
def test_silent_on_every_detector_at_every_age(name):
    positives, scale = (positives_of_student if name in STUDENTS else positives_of_transformers)(name)
    assert len(positives) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for age in (0.0, 0.3, 0.9):
            at_age = older(positives, age) if age else positives
            for knows in (False, True):
                for part in (at_age, at_age.thinned(2), at_age.thinned(1)):
                    logits = teacher_logits(positives, knows)
                    warn_of_mistakes(part, logits, *scale.values(), trains_boxes=True)
                    assert explain(**arguments(part, logits)) == []


def arguments(positives, logits):
    """Of roi_kd_loss, without the images of the positives."""
    return {
        "student_logits": positives.logits,
        "boxes": positives.boxes,
        "teacher_logits": logits,
        "target_boxes": positives.target_boxes,
        "matched_idxs": positives.matched_idxs,
        "target_image_index": positives.target_image_index,
        "maps": RoIMap(positives.images, 4, 16, std=0.29),
        "head": positives.head,
        "background": positives.background,
    }


@functools.cache
def teacher():
    torch.manual_seed(5)
    network = torchvision.models.resnet18(num_classes=len(CLASSES)).eval()
    return teacher_from(network, CLASSES, 32, mean=IMAGENET["image_mean"], std=IMAGENET["image_std"])


def distiller(settings=KD_CLS, **options):
    return BoxDistiller(teacher(), settings, **{**IMAGENET, **options})


def said(of_distiller, *batches):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in batches:
            of_distiller(batch)
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def shifted(positives):
    """Matches that count within each image."""
    first = torch.searchsorted(positives.target_image_index, positives.target_image_index)
    return dataclasses.replace(positives, matched_idxs=positives.matched_idxs - first[positives.matched_idxs])


def test_the_first_step_with_positives_is_explained_once():
    right, _ = positives_of_student("ssd_compact")
    wrong = shifted(right)
    nothing = right.thinned(1)
    none = {name: getattr(nothing, name)[:0] for name in ("logits", "boxes", "image_index", "matched_idxs")}
    nothing = dataclasses.replace(nothing, **none)
    (message,) = said(distiller(), nothing, wrong, wrong)
    assert message.startswith("BoxDistiller, first step: matched_idxs must be places in the ground truths of the whole batch")
    assert said(distiller(), right, wrong) == []
    assert said(distiller(explain=False), wrong) == []


def test_boxes_need_a_gradient_only_for_terms_at_boxes():
    right, _ = positives_of_student("ssd_compact")
    detached = dataclasses.replace(right, boxes=right.boxes.detach())
    assert said(distiller(), detached) == []
    pixels = dataclasses.replace(KD_CLS, loc_weight=2.0)
    assert "boxes must carry the gradient" in said(distiller(pixels), detached)[0]


@pytest.mark.parametrize("control", ["one_hot", "smoothed", "shuffled"])
def test_controls_of_the_study_are_no_mistakes(control):
    right, _ = positives_of_student("ssd_compact")
    assert said(distiller(dataclasses.replace(KD_CLS, control=control)), older(right, 0.9)) == []


PICTURES = {  # pictures of 0 to 1 as they come, and what the distiller is told: a word of the warning, or nothing
    "right": (lambda x: (x - 0.45) / 0.225, {}, None),
    "0 to 1 under ImageNet's": (lambda x: x, {}, "values from 0 to 1, which nothing was taken from"),
    "0 to 255 under ImageNet's": (lambda x: 255 * x, {}, "which stand for"),
    "ImageNet's under 0 to 1": (
        lambda x: (x - 0.45) / 0.225,
        {"image_mean": (0,) * 3, "image_std": (1,) * 3},
        "which stand for",
    ),
    "0 to 255 under 0 to 1": (lambda x: 255 * x, {"image_mean": (0,) * 3, "image_std": (1,) * 3}, "which stand for -?0"),
    "0 to 1 under 0 to 255": (lambda x: x, {"image_mean": (0,) * 3, "image_std": (1 / 255,) * 3}, "nothing was taken from"),
    "0 to 1": (lambda x: x, {"image_mean": (0,) * 3, "image_std": (1,) * 3}, None),
    "0 to 255": (lambda x: 255 * x, {"image_mean": (0,) * 3, "image_std": (1 / 255,) * 3}, None),
    "-1 to 1": (lambda x: 2 * x - 1, {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}, None),
    "padded": (lambda x: torch.nn.functional.pad((x - 0.45) / 0.225, (0, 60, 0, 30)), {}, None),
    "dark and flat": (lambda x: (0.05 * x - 0.45) / 0.225, {}, None),
    "grey": (lambda x: 0 * x, {}, None),
}


@pytest.mark.parametrize("pictures", PICTURES)
def test_pictures_that_were_normalised_otherwise(pictures):
    change, scale, words = PICTURES[pictures]
    right, _ = positives_of_student("ssd_compact")
    images = change(torch.rand(right.images.shape, generator=torch.Generator().manual_seed(1)))
    messages = said(distiller(**scale), dataclasses.replace(right, images=images))
    assert len(messages) == (words is not None), messages
    assert not words or re.search(words, messages[0])


def test_the_pixel_term_is_that_of_the_factor():
    """The unit of pixel differences is one number in the distiller and in the operator."""
    right, scale = positives_of_student("ssd_compact")
    settings = ClassifierSettings(kd_cls_weight=0.0, loc_weight=1.0, pixel_size=16)
    loc = BoxDistiller(None, settings, **scale)(right)["loc"]
    plain = roi_feature_loss(
        right.images, right.boxes, right.image_index, right.target_boxes, right.target_image_index, right.matched_idxs, 4, 16,
        padding_mode="border", clip=False, normalizer=float(len(right)),
    )  # fmt: skip
    factor = 255 * sum(scale["image_std"]) / 3 / settings.input_std
    torch.testing.assert_close(loc, factor * plain, rtol=1e-6, atol=0)
