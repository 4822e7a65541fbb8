"""Calls of ``roi_kd_loss`` as detectors of every kind make them, at any age of a training, and wrong versions of each.

``right_call(seed)`` draws a detector, a batch and an age; ``WRONG`` has the mistakes of a user, each as a function of a right
call. They are made without a detector, so that there can be thousands.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

from cls2det_ops import RoIMap

KINDS = ("ssd", "rcnn", "retinanet", "fcos", "yolo", "detr", "groups", "rtdetr")
SOFTMAX = {"ssd": "first", "rcnn": "first", "detr": "last"}
ONE_PER_TARGET = ("detr", "groups", "rtdetr")
MEAN, STD = 0.45, 0.226


def right_call(seed: int, plain: bool = False) -> dict:
    """``plain``: of eight images with objects of many classes, a teacher that knows them, and a student of some age.

    Arguments of ``explain``: those of ``roi_kd_loss``, ``target_labels`` and ``image_index``."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    kind = draw.choice(KINDS)
    age = draw.choice((0.6, 1.0) if plain else (0.0, 0.0, 0.1, 0.3, 0.6, 1.0))
    images = 8 if plain else draw.choice((1, 2, 4, 8, 16))
    classes = 20 if plain else draw.choice((1, 2, 3, 20, 80))
    height, width = draw.choice(((96, 96), (300, 300), (320, 320), (480, 640)))
    largest = 7 if plain else draw.choice((1, 2, 7, 20))
    targets, of_image = _targets(draw, images, largest, height, width)
    labels = torch.randint(1, classes + 1, (80 if plain else draw.choice((1, 3, 80)),))  # of a batch
    labels = labels[torch.randint(len(labels), (len(targets),))]
    matches = _matches(draw, kind, len(targets))
    boxes = _boxes(kind, targets[matches], age, height, width)
    logits, background = _student(draw, kind, labels[matches], classes, age)
    teacher = _teacher(draw, labels, classes, kind in SOFTMAX, (0.95,) if plain else (None, 0.5, 0.8, 0.95))
    order = of_image[matches].argsort(stable=True) if len(matches) else matches
    if kind in ("fcos", "yolo", "rcnn", "detr"):
        order = order[torch.rand(len(order)) < draw.choice((1.0, 1.0, 0.3))]  # tiny objects go without, or queries are too few
    if draw.random() < 0.2 and not plain:
        order = order[: draw.choice((0, 1, 2))]
    dtype = torch.bfloat16 if draw.random() < 0.2 else torch.float32
    return {
        "student_logits": logits[order].to(dtype).requires_grad_(),
        "boxes": boxes[order].requires_grad_(),
        "teacher_logits": teacher,
        "target_boxes": targets,
        "matched_idxs": matches[order],
        "target_image_index": of_image,
        "maps": _maps(draw, images, height, width),
        "head": "softmax" if kind in SOFTMAX else "sigmoid",
        "background": background,
        "target_labels": labels,
        "image_index": of_image[matches][order],
    }


def _targets(draw: random.Random, images: int, largest: int, height: int, width: int) -> tuple[Tensor, ...]:
    counts = [draw.randint(0, largest) for _ in range(images)]
    if not any(counts):
        counts[0] = 1
    count = sum(counts)
    sizes = draw.choice(((0.02, 0.1), (0.05, 0.4), (0.3, 0.9), (0.02, 0.9)))
    extent = torch.tensor([width, height]) * (1 - 0.4 * draw.random() * (draw.random() < 0.3))  # padded on two sides
    size = torch.empty(count, 2).uniform_(*sizes) * extent
    low = torch.rand(count, 2) * (extent - size)
    return torch.cat([low, low + size], 1), torch.repeat_interleave(torch.arange(images), torch.tensor(counts))


def _matches(draw: random.Random, kind: str, targets: int) -> Tensor:
    if kind in ONE_PER_TARGET:
        return torch.arange(targets).repeat(3 if kind == "groups" else 1)
    counts = torch.tensor([draw.choice((1, 2, 5, 12)) for _ in range(targets)])
    return torch.repeat_interleave(torch.arange(targets), counts)


def _boxes(kind: str, own: Tensor, age: float, height: int, width: int) -> Tensor:
    """Where a detector of this age sees its objects; the younger, the more it is its anchors, points or queries."""
    size, centre = own[:, 2:] - own[:, :2], (own[:, 2:] + own[:, :2]) / 2
    count = len(own)
    image = torch.tensor([width, height], dtype=torch.float32)
    if kind in ("ssd", "rcnn", "retinanet"):
        young = centre + 0.15 * size * torch.randn(count, 2), size * torch.empty(count, 2).uniform_(0.75, 1.35)
        if kind == "ssd":  # an anchor that is the best for a small object, and no good one
            bad = torch.rand(count, 1) < 0.3
            young = young[0], torch.where(bad, young[1].clamp(min=0.06 * width), young[1])
    elif kind in ("fcos", "yolo"):
        stride = 8 * 2 ** torch.randint(3, (count, 1)).float()
        place = centre + (torch.rand(count, 2) - 0.5) * size
        young = place + 0.2 * stride * torch.randn(count, 2), stride * (15 if kind == "yolo" else torch.rand(count, 2))
    elif kind == "rtdetr":
        young = centre + 0.1 * image * torch.randn(count, 2), image * 0.05 * 2 ** torch.randint(3, (count, 1)).float()
    else:
        young = image / 2 + 0.05 * image * torch.randn(count, 2), image / 2 * torch.empty(count, 2).uniform_(0.8, 1.2)
    centre = (1 - age) * young[0] + age * (centre + 0.03 * size * torch.randn(count, 2))
    size = (1 - age) * young[1] + age * size * torch.empty(count, 2).uniform_(0.9, 1.1)
    return torch.cat([centre - size / 2, centre + size / 2], 1)


def _student(draw: random.Random, kind: str, labels: Tensor, classes: int, age: float) -> tuple[Tensor, str]:
    """Young heads answer all positives alike; then the background rises, then the classes."""
    background = SOFTMAX.get(kind, "first" if kind == "retinanet" else "none")
    columns = classes + (background != "none")
    prior = 0.0 if kind in SOFTMAX else -4.6
    logits = prior + draw.choice((0.01, 0.3, 2.0)) * torch.randn(columns) + 0.02 * torch.randn(len(labels), columns)
    if draw.random() < 0.1 and not age:
        logits = torch.zeros_like(logits)  # a head that starts from zeros
    true = labels - int(background != "first")
    known = torch.rand(len(labels)) < 0.5 + age / 2
    logits = logits + age * 6 * (torch.nn.functional.one_hot(true, columns) * known[:, None])
    if background != "none" and kind in SOFTMAX and age:
        logits[:, 0 if background == "first" else -1] += 5 - 4 * age
    return logits, background


def _teacher(draw: random.Random, labels: Tensor, classes: int, softmax: bool, qualities: tuple) -> Tensor:
    quality = draw.choice(qualities)
    if quality is None:  # random weights: the same for all
        return 0.3 * torch.randn(classes) + 0.02 * torch.randn(len(labels), classes)
    answers = torch.where(torch.rand(len(labels)) < quality, labels - 1, torch.randint(classes, (len(labels),)))
    logits = torch.randn(len(labels), classes) - (0 if softmax else 4)
    scale = draw.choice((3.0, 8.0))
    return logits + scale * torch.nn.functional.one_hot(answers, classes)


def _maps(draw: random.Random, images: int, height: int, width: int) -> list[RoIMap]:
    pixels = torch.rand(images, 3, height // 4, width // 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    choice = draw.choice(("pixels", "normalised", "levels", "pyramid"))
    if choice == "pyramid":
        return [RoIMap(torch.randn(images, 8, -(-height // n), -(-width // n)), 4, 8, 1 / n) for n in (4, 8, 16, 32)]
    if choice == "pixels":
        return [RoIMap(pixels, 4, 8, std=STD)]
    if choice == "normalised":
        return [RoIMap((pixels - MEAN) / STD, 4, 8, weight=58.0)]
    return [RoIMap(255 * pixels, 4, 8)]


def _within_images(call: dict) -> dict:
    first = torch.searchsorted(call["target_image_index"], call["target_image_index"])
    return {"matched_idxs": call["matched_idxs"] - first[call["matched_idxs"]]}


def _of_boxes(change: Callable[[Tensor], Tensor], both: bool = True) -> Callable[[dict], dict]:
    names = ("boxes", "target_boxes") if both else ("target_boxes",)
    return lambda call: {name: change(call[name].detach()).requires_grad_(name == "boxes") for name in names}


def _size(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


def _centre(boxes: Tensor) -> Tensor:
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)


def _shares(call: dict) -> dict:
    one = call["maps"][0]
    height, width = (side / one.spatial_scale for side in one.features.shape[2:])
    return _of_boxes(lambda boxes: boxes / torch.tensor([width, height] * 2))(call)


def _unscaled(call: dict) -> dict:
    features = call["maps"][0].features
    return {"maps": RoIMap(torch.randn(len(features), 16, *(max(side // 8, 1) for side in features.shape[2:])), 4, 8)}


def _pixels_without_std(call: dict) -> dict:
    one = call["maps"][0]
    return {
        "maps": RoIMap(
            torch.rand(len(one.features), 3, *(round(side / one.spatial_scale) for side in one.features.shape[2:])), 4, 8
        )
    }


def _probabilities(name: str) -> Callable[[dict], dict]:
    def change(call: dict) -> dict:
        logits = call[name].detach()
        values = logits.softmax(1) if call["head"] == "softmax" else logits.sigmoid()
        return {name: values.requires_grad_(name == "student_logits")}

    return change


# Mistake: what it changes, and a word that the sentence must have. Those of ``matches`` are told without image_index too.
WRONG: dict[str, tuple[Callable[[dict], dict], str]] = {
    "labels as matches": (lambda call: {"matched_idxs": call["target_labels"][call["matched_idxs"]]}, "labels"),
    "matches within an image": (_within_images, "within each image|labels|another than their own"),
    "background at the other end": (
        lambda call: {"background": {"first": "last", "last": "first"}.get(call["background"], "none")},
        "background",
    ),
    "shares of the image": (_shares, "shares"),
    "xywh": (_of_boxes(_size), "width, height"),
    "xywh of the ground truths": (_of_boxes(_size, both=False), "width, height"),
    "cxcywh": (_of_boxes(_centre), "centre x"),
    "cxcywh of the ground truths": (_of_boxes(_centre, both=False), "centre x"),
    "pixels of the original picture": (_of_boxes(lambda boxes: 2.1 * boxes, both=False), "original"),
    "pixels of the original picture, all boxes": (_of_boxes(lambda boxes: 2.1 * boxes), "original"),
    "teacher's probabilities": (_probabilities("teacher_logits"), "teacher_logits must be logits"),
    "student's probabilities": (_probabilities("student_logits"), "student_logits must be logits"),
    "detached boxes": (lambda call: {"boxes": call["boxes"].detach()}, "boxes must carry the gradient"),
    "a map without spatial_scale": (_unscaled, "give spatial_scale"),
    "image index out of range": (lambda call: {"target_image_index": call["target_image_index"] + 1}, "target_image_index"),
    "flipped corners": (_of_boxes(lambda boxes: boxes[:, [2, 1, 0, 3]]), "corners in another order"),
    "a teacher with shuffled classes": (
        lambda call: {"teacher_logits": call["teacher_logits"].roll(1, 1)},
        "classes are in another order",
    ),
    "pixels of [0, 1] at the weight for levels": (_pixels_without_std, "pixel term is about"),
}

# The fifteen mistakes, with the forms of each.
MISTAKES = {
    "labels as matches": ["labels as matches"],
    "matches within an image": ["matches within an image"],
    "background at the other end": ["background at the other end"],
    "shares of the image": ["shares of the image"],
    "xywh": ["xywh", "xywh of the ground truths"],
    "cxcywh": ["cxcywh", "cxcywh of the ground truths"],
    "original picture": ["pixels of the original picture", "pixels of the original picture, all boxes"],
    "teacher's probabilities": ["teacher's probabilities"],
    "student's probabilities": ["student's probabilities"],
    "detached boxes": ["detached boxes"],
    "a map without spatial_scale": ["a map without spatial_scale"],
    "image index out of range": ["image index out of range"],
    "flipped corners": ["flipped corners"],
    "a teacher with shuffled classes": ["a teacher with shuffled classes"],
    "pixels of [0, 1] at the weight for levels": ["pixels of [0, 1] at the weight for levels"],
}
