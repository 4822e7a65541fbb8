"""Evaluation of a detector: COCO's mAP table, and the diagnostics of ``evaluation.anchors``."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from cls2det.data.classes import class_order
from cls2det.data.dataset import DetectionData
from cls2det.data.images import to_float
from cls2det.data.loader import test_loader
from cls2det.data.targets import CLASSES_FROM
from cls2det.evaluation.anchors import BestAnchors
from cls2det.evaluation.finite import NotFinite, check_finite, check_weights, finite_heads
from cls2det.models.students.hungarian import HungarianDetector
from cls2det.models.students.limits import allow_detections, most_detections

MAX_DETECTIONS = 100  # per image and class, of COCO's evaluation
# Places in pycocotools' `stats`. AP and AR (at the most detections per image) of all, small, medium and large objects; percent.
COCO_STATS = {"mAP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "mAR": 8, "ARs": 9, "ARm": 10, "ARl": 11}
COCO_COLUMNS = tuple(COCO_STATS)


@torch.no_grad()
def evaluate_detector(
    detector: nn.Module,
    data: DetectionData,
    *,
    classes: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 8,
    loader_workers: int = 0,
    max_detections: int = MAX_DETECTIONS,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Percentages by column, those of ``coco_table``, and ``detections`` in COCO's result format.

    A column that does not apply is None: no object of that size; a detector other than SSD or RetinaNet has no default
    boxes to look at.

    Args:
        detector: called like torchvision's, on float images in [0, 1]; it ends in eval mode on ``device``
        data: the images and their ground truths
        classes: that the detector was trained for, in order of label, to be compared with the data's; None is not compared
        device: for the detector
        batch_size: images per forward
        loader_workers: processes that load images
        max_detections: that count per image and class, those of the highest scores; above 100 the detector, which is changed,
            is made to give as many per image
        progress: called with (images, all images, text) after every batch

    Warns of images that have more objects than can be detected.

    Raises:
        ValueError: other classes than the data's; max_detections below 1; weights, logits, boxes or scores that are not finite
            (a threshold on the score would drop them, and the table would show a plain zero)
    """
    if classes is not None:
        check_classes(classes, data)
    allow_detections(detector, check_max_detections(max_detections))
    warn_of_crowded_images(detector, data, max_detections)
    if not data.targets.counts().any():
        warnings.warn(f"{data.annotation_file} has no object in {len(data)} images: there is no mAP, it is None", stacklevel=2)
    check_weights(detector)
    detector.eval().to(device)
    detections: list[dict] = []
    with finite_heads(detector), BestAnchors(detector) as anchors:
        loader = test_loader(data, batch_size=batch_size, loader_workers=loader_workers)
        for number, (images, targets) in enumerate(loader, start=1):
            targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
            outputs = _detect(detector, to_float(image.to(device) for image in images), targets)
            for target, output in zip(targets, outputs, strict=True):
                detections += as_results(int(target["image_id"]), output, data.category_ids)
            anchors.add(images, targets)
            if progress:
                progress(min(number * batch_size, len(data)), len(data), "evaluating")
    return coco_table(data, detections, max_detections) | anchors.table() | {"detections": detections}


def _detect(detector: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The detector's outputs; where they are not finite, ValueError with the image that they are not finite for."""
    try:
        outputs: list[dict[str, Tensor]] = detector(images)
    except NotFinite:
        for image, target in zip(images, targets, strict=True):
            try:
                detector([image])
            except NotFinite as error:
                raise NotFinite(f"image {int(target['image_id'])}: {error}") from None
        raise
    return outputs


def check_classes(classes: Sequence[str], data: DetectionData) -> None:
    """ValueError unless a model's classes are the data's, in the same order."""
    order = class_order(
        classes, data.classes, "the model", str(data.annotation_file), "Evaluate on data of the model's classes"
    )
    if order != sorted(order):
        raise ValueError(
            f"the model and the data of {data.annotation_file} have their classes in different orders; open the data in the "
            "model's: DetectionData(root, split, classes=…)"
        )


def foreground(output: dict[str, Tensor]) -> dict[str, Tensor]:
    """The detections of a class. A head of sigmoids has a column for label 0, which no training raises: it is no class."""
    is_class = output["labels"] >= CLASSES_FROM
    return {name: output[name][is_class] for name in ("boxes", "labels", "scores")}


def as_results(image_id: int, output: dict[str, Tensor], category_ids: list[int]) -> list[dict]:
    """A detector's output for one image in COCO's result format, which has COCO's category ids and boxes xywh.

    Raises:
        ValueError: boxes or scores that are not finite; a label beyond the data's classes
    """
    check_finite(output, f"image {image_id}")
    output = foreground(output)
    labels = output["labels"].tolist()
    if strange := [label for label in labels if label >= CLASSES_FROM + len(category_ids)]:
        raise ValueError(
            f"the model gave image {image_id} the label {strange[0]}; the data's {len(category_ids)} classes have the labels "
            f"from {CLASSES_FROM} to {len(category_ids)}: it was trained for others"
        )
    boxes = box_convert(output["boxes"], "xyxy", "xywh").tolist()
    return [
        {"image_id": image_id, "category_id": category_ids[label - CLASSES_FROM], "bbox": box, "score": score}
        for box, label, score in zip(boxes, labels, output["scores"].tolist(), strict=True)
    ]


def check_max_detections(count: int) -> int:
    """The number, if it can be one of detections."""
    if count < 1:
        raise ValueError(f"max_detections must be at least 1, found {count}; COCO's evaluation takes {MAX_DETECTIONS}")
    return count


def warn_of_crowded_images(detector: nn.Module, data: DetectionData, max_detections: int = MAX_DETECTIONS) -> None:
    """Warn where images have more objects than count, of a class, or than the detector gives, of all classes together.

    There even a perfect detector misses some, and the table would not say why it is low.
    """
    most = most_detections(detector)
    many = (data.targets.counts() > min(max_detections, most or max_detections)).nonzero().flatten().tolist()
    counts = [(len(labels), int(labels.bincount().max())) for labels in (data.targets[index]["labels"] for index in many)]
    crowded = [total for total, of_class in counts if of_class > max_detections or (most is not None and total > most)]
    if not crowded:
        return
    limits = f"{max_detections} detections per image and class count"
    if most is not None and most < max(crowded):
        limits += f", and the detector gives at most {most} per image"
    if isinstance(detector, HungarianDetector):
        remedy = "it gives one detection per query and no more"
    else:
        remedy = f"max_detections {max(crowded)} (run.max_detections of a training) takes them all"
    warnings.warn(
        f"{data.annotation_file}: {len(crowded)} of {len(data)} images have more objects than can be detected, up to "
        f"{max(crowded)}, where {limits}: even a perfect detector misses some of them; {remedy}",
        stacklevel=1,  # one place for all callers: a training and the evaluation at its end say it once
    )


def coco_table(data: DetectionData, detections: list[dict], max_detections: int = MAX_DETECTIONS) -> dict[str, Any]:
    """COCO's percentages of detections in COCO's result format, by column.

    ``AP by IoU`` has 10 values, of IoU 0.50 to 0.95. ``AP by class`` and ``objects by class`` have the classes by name, in order of
    category id; the AP of a class without an object is None, and it is no part of mAP. Crowds are no objects here.

    Of every image and class, the ``max_detections`` of the highest scores count.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = coco_eval()(data.coco, _results(data.coco, detections), "bbox")
        evaluation.params.imgIds = [int(target["image_id"]) for target in data.targets]
        evaluation.params.maxDets = [1, min(10, max_detections), max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.params.maxDets = [1, 10, MAX_DETECTIONS]  # names of the three: `summarize` finds AP under 100 alone
        evaluation.summarize()
    columns = {name: _percent(evaluation.stats[place]) for name, place in COCO_STATS.items()}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class) for all sizes and the most detections
    names = [data.coco.cats[category_id]["name"] for category_id in evaluation.params.catIds]
    images = set(evaluation.params.imgIds)
    counts = Counter(
        entry["category_id"]
        for entry in data.coco.dataset["annotations"]
        if entry["image_id"] in images and not entry["iscrowd"]
    )
    return columns | {
        "AP by IoU": [_mean(level) for level in precision],
        "AP by class": {name: _mean(precision[:, :, place]) for place, name in enumerate(names)},
        "objects by class": dict(zip(names, map(counts.__getitem__, evaluation.params.catIds), strict=True)),
    }


def coco_eval() -> Any:
    """COCO's evaluation: faster-coco-eval's class where it is installed, else pycocotools'.

    Their precisions differ by rounding alone, in the sixteenth digit. At 5000 images the first takes an eighth of the second's time.
    """
    try:
        from faster_coco_eval import COCOeval_faster
    except ImportError:
        from pycocotools.cocoeval import COCOeval

        return COCOeval
    return COCOeval_faster


def _mean(precision: np.ndarray) -> float | None:
    """In percent, over what applies; None if nothing does: pycocotools gives -1 where there is no object."""
    return 100 * float(precision[precision > -1].mean()) if (precision > -1).any() else None


def _results(truth, detections: list[dict]):
    """As pycocotools' ``loadRes``, which fails on an empty list."""
    if detections:
        return truth.loadRes([dict(detection) for detection in detections])  # copies: it adds fields
    from pycocotools.coco import COCO

    results = COCO()
    results.dataset = {**truth.dataset, "annotations": []}
    results.createIndex()
    return results


def _percent(share: float) -> float | None:
    """pycocotools gives -1 where there is no object."""
    return None if share < 0 else 100 * float(share)
