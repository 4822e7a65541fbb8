"""Evaluation of a detector: pycocotools' mAP table, and the diagnostics of ``evaluation.anchors``."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from cls2det.data.dataset import DetectionData
from cls2det.data.images import to_float
from cls2det.data.loader import test_loader
from cls2det.data.targets import CLASSES_FROM
from cls2det.evaluation.anchors import BestAnchors

# Places in pycocotools' `stats`. AP and AR (at 100 detections per image) of all, small, medium and large objects; percent.
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
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Percentages by column, ``AP by IoU`` (10 values, IoU 0.50 to 0.95) and ``detections`` in COCO's result format.

    A column that does not apply is None: no object of that size; a detector other than SSD or RetinaNet has no default
    boxes to look at.

    Args:
        detector: called like torchvision's, on float images in [0, 1]; it ends in eval mode on ``device``
        data: the images and their ground truths
        classes: that the detector was trained for, in order of label, to be compared with the data's; None is not compared
        device: for the detector
        batch_size: images per forward
        loader_workers: processes that load images
        progress: called with (images, all images, text) after every batch

    Raises:
        ValueError: other classes than the data's; weights, logits, boxes or scores that are not finite (a threshold on the
            score would drop them, and the table would show a plain zero)
    """
    if classes is not None:
        check_classes(classes, data)
    _check_weights(detector)
    detector.eval().to(device)
    detections: list[dict] = []
    with _finite_heads(detector), BestAnchors(detector) as anchors:
        loader = test_loader(data, batch_size=batch_size, loader_workers=loader_workers)
        for number, (images, targets) in enumerate(loader, start=1):
            targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
            outputs = detector(to_float(image.to(device) for image in images))
            for target, output in zip(targets, outputs, strict=True):
                detections += as_results(int(target["image_id"]), output, data.category_ids)
            anchors.add(images, targets)
            if progress:
                progress(min(number * batch_size, len(data)), len(data), "evaluating")
    return coco_table(data, detections) | anchors.table() | {"detections": detections}


def check_classes(classes: Sequence[str], data: DetectionData) -> None:
    """ValueError unless a model's classes are the data's, in the same order."""
    if list(classes) != list(data.classes):
        raise ValueError(
            f"the model knows {len(classes)} classes ({', '.join(classes[:5])} …), "
            f"{data.annotation_file} has {len(data.classes)} ({', '.join(data.classes[:5])} …)"
        )


def _check_weights(model: nn.Module) -> None:
    broken = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise ValueError(
            f"{len(broken)} of the model's tensors hold NaN or infinity ({', '.join(broken[:3])} …): its training diverged"
        )


@contextlib.contextmanager
def _finite_heads(detector: nn.Module) -> Iterator[None]:
    """Raise when a head of the detector gives a value that is not finite."""

    def check(name: str):
        def hook(_module, _arguments, output) -> None:
            if not all(torch.isfinite(value).all() for value in _tensors(output)):
                raise ValueError(f"the model's {name} gave NaN or infinity: its weights or its precision do not serve")

        return hook

    handles = [
        module.register_forward_hook(check(name))
        for name, module in detector.named_modules()
        if name.rpartition(".")[2] in ("head", "box_predictor")
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (dict, list, tuple)):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)


def as_results(image_id: int, output: dict[str, Tensor], category_ids: list[int]) -> list[dict]:
    """A detector's output for one image in COCO's result format, which has COCO's category ids and boxes xywh."""
    if not (torch.isfinite(output["boxes"]).all() and torch.isfinite(output["scores"]).all()):
        raise ValueError(f"the model gave image {image_id} a box or a score that is NaN or infinite")
    boxes = box_convert(output["boxes"], "xyxy", "xywh").tolist()
    return [
        {"image_id": image_id, "category_id": category_ids[label - CLASSES_FROM], "bbox": box, "score": score}
        for box, label, score in zip(boxes, output["labels"].tolist(), output["scores"].tolist(), strict=True)
    ]


def coco_table(data: DetectionData, detections: list[dict]) -> dict[str, Any]:
    """pycocotools' percentages of detections in COCO's result format, by column, and ``AP by IoU``."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(data.coco, _results(data.coco, detections), "bbox")
        evaluation.params.imgIds = [int(target["image_id"]) for target in data.targets]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    columns = {name: _percent(evaluation.stats[place]) for name, place in COCO_STATS.items()}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class) for all sizes and 100 detections
    by_iou = [_percent(level[level > -1].mean() if (level > -1).any() else -1) for level in precision]
    return columns | {"AP by IoU": by_iou}


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
