"""Evaluation: pycocotools' mAP table, and two diagnostics that vary less from seed to seed than mAP does.

At the default box that overlaps an object most (the same box for every student) one can ask, with no threshold and no
suppression: is the best foreground class the true one, and how well does the decoded box fit?
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_convert, box_iou

from cls2det.data.coco import CLASSES_FROM
from cls2det.data.dataset import DetectionData, test_loader
from cls2det.training.fit import Progress

if TYPE_CHECKING:
    from cls2det.training.detector import DetectorTraining

# Places in pycocotools' `stats`. AP and AR (at 100 detections per image) of all, small, medium and large objects; percent.
COCO_STATS = {"mAP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "mAR": 8, "ARs": 9, "ARm": 10, "ARl": 11}
COCO_COLUMNS = tuple(COCO_STATS)
DIAGNOSTICS = ("class acc", "mean IoU")


@torch.no_grad()
def evaluate(
    model: DetectorTraining,
    data: DetectionData,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 8,
    loader_workers: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Percentages by column, ``AP by IoU`` (10 values, IoU 0.50 to 0.95) and ``detections`` in COCO's result format.

    A column that does not apply is None: no object of that size; a detector other than SSD or RetinaNet has no default
    boxes to look at. Raises ValueError for a model whose weights, logits, boxes or scores are not finite: a threshold
    on the score would drop them, and the table would show a plain zero.
    """
    check_classes(model, data)
    _check_weights(model)
    model.eval().to(device)
    detections: list[dict] = []
    at_best = _AtBestAnchor(model.detector) if isinstance(model.detector, (SSD, RetinaNet)) else contextlib.nullcontext()
    with _finite_heads(model.detector), at_best:
        for number, (images, targets) in enumerate(
            test_loader(data, batch_size=batch_size, loader_workers=loader_workers), start=1
        ):
            targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
            outputs = model([image.to(device) for image in images])
            for target, output in zip(targets, outputs, strict=True):
                detections += as_results(int(target["image_id"]), output, data.category_ids)
            if isinstance(at_best, _AtBestAnchor):
                at_best.add(images, targets)
            if progress:
                progress(min(number * batch_size, len(data)), len(data), "evaluating")
    table = coco_table(data, detections)
    table |= at_best.table() if isinstance(at_best, _AtBestAnchor) else dict.fromkeys(DIAGNOSTICS)
    return table | {"detections": detections}


def check_classes(model: DetectorTraining, data: DetectionData) -> None:
    """Raise unless the model was trained for the data's classes."""
    if list(model.hparams["classes"]) != list(data.classes):
        raise ValueError(
            f"the model knows {len(model.hparams['classes'])} classes ({', '.join(model.hparams['classes'][:5])} …), "
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
    """A detector's output of one image in COCO's result format."""
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
        judge = COCOeval(data.coco, _results(data.coco, detections), "bbox")
        judge.params.imgIds = [int(target["image_id"]) for target in data.targets]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    columns = {name: _percent(judge.stats[place]) for name, place in COCO_STATS.items()}
    precision = judge.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class) for all sizes and 100 detections
    by_iou = [_percent(level[level > -1].mean() if (level > -1).any() else -1) for level in precision]
    return columns | {"AP by IoU": by_iou}


def _results(truth, detections: list[dict]):
    """What pycocotools' ``loadRes`` gives; it fails on an empty list."""
    if detections:
        return truth.loadRes([dict(detection) for detection in detections])  # which it adds to
    from pycocotools.coco import COCO

    results = COCO()
    results.dataset = {**truth.dataset, "annotations": []}
    results.createIndex()
    return results


def _percent(share: float) -> float | None:
    """pycocotools says -1 where there is nothing to find."""
    return None if share < 0 else 100 * float(share)


class _AtBestAnchor:
    """Reads logits, deltas and default boxes with forward hooks, in eval mode, and looks at each object's best one."""

    def __init__(self, detector: SSD | RetinaNet):
        self.detector, self.seen = detector, {}
        self.right: list[Tensor] = []
        self.ious: list[Tensor] = []

    def __enter__(self):
        keep = lambda name: lambda _module, _arguments, output: self.seen.__setitem__(name, output)  # noqa: E731
        self.handles = [
            getattr(self.detector, name).register_forward_hook(keep(name))
            for name in ("transform", "head", "anchor_generator")
        ]
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def add(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
        sizes = self.seen["transform"][0].image_sizes
        for number, (image, target) in enumerate(zip(images, targets, strict=True)):
            if not len(target["boxes"]):
                continue
            height, width = image.shape[-2:]
            scale = torch.tensor([sizes[number][1] / width, sizes[number][0] / height] * 2, device=target["boxes"].device)
            truth, anchors = target["boxes"] * scale, self.seen["anchor_generator"][number]
            best = box_iou(truth, anchors).argmax(1)
            # Column 0 is background in SSD, unused in RetinaNet.
            logits = self.seen["head"]["cls_logits"][number, best, CLASSES_FROM:]
            boxes = self.detector.box_coder.decode_single(self.seen["head"]["bbox_regression"][number, best], anchors[best])
            self.right.append(logits.argmax(1) + CLASSES_FROM == target["labels"])
            self.ious.append(box_iou(boxes, truth).diagonal())

    def table(self) -> dict[str, float | None]:
        if not self.ious:
            return dict.fromkeys(DIAGNOSTICS)
        return {
            "class acc": 100 * torch.cat(self.right).float().mean().item(),
            "mean IoU": 100 * float(np.mean(torch.cat(self.ious).cpu().numpy())),
        }
