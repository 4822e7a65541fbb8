"""Evaluation: pycocotools' mAP table, and two diagnostics that vary less from seed to seed than mAP does.

At the default box that overlaps an object most (the same box for every student) one can ask, with no threshold and no
suppression: is the best foreground class the true one, and how well does the decoded box fit?
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_convert, box_iou

from cls2det.base import Progress
from cls2det.data import CLASSES_FROM, DetectionData, test_loader
from cls2det.train import DetectorTraining

# Names of the columns, in order of pycocotools' `stats`; percent.
COCO_COLUMNS = ("mAP", "AP50", "AP75", "APs", "APm", "APl")
DIAGNOSTICS = ("class acc", "mean IoU")


@torch.no_grad()
def evaluate(
    model: DetectorTraining,
    data: DetectionData,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 50,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Percentages by column, ``AP by IoU`` (10 values, IoU 0.50 to 0.95) and ``detections`` in COCO's result format.

    A column that does not apply (no object of that size; a two-stage detector has no default boxes) is None.
    """
    check_classes(model, data)
    model.eval().to(device)
    detections: list[dict] = []
    at_best = _AtBestAnchor(model.detector) if isinstance(model.detector, (SSD, RetinaNet)) else contextlib.nullcontext()
    with at_best:
        for number, (images, targets) in enumerate(test_loader(data, batch_size=batch_size), start=1):
            targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
            outputs = model([image.to(device) for image in images])
            for target, output in zip(targets, outputs, strict=True):
                detections += _as_results(int(target["image_id"]), output, data.category_ids)
            if isinstance(at_best, _AtBestAnchor):
                at_best.add(images, targets)
            if progress:
                progress(min(number * batch_size, len(data)), len(data), "evaluating")
    table = _coco_table(data, detections)
    table |= at_best.table() if isinstance(at_best, _AtBestAnchor) else dict.fromkeys(DIAGNOSTICS)
    return table | {"detections": detections}


def check_classes(model: DetectorTraining, data: DetectionData) -> None:
    """Raise unless the model was trained for the data's classes."""
    if list(model.hparams["classes"]) != list(data.classes):
        raise ValueError(
            f"the model knows {len(model.hparams['classes'])} classes ({', '.join(model.hparams['classes'][:5])} …), "
            f"{data.annotation_file} has {len(data.classes)} ({', '.join(data.classes[:5])} …)"
        )


def _as_results(image_id: int, output: dict[str, Tensor], category_ids: list[int]) -> list[dict]:
    boxes = box_convert(output["boxes"], "xyxy", "xywh").tolist()
    return [
        {"image_id": image_id, "category_id": category_ids[label - CLASSES_FROM], "bbox": box, "score": score}
        for box, label, score in zip(boxes, output["labels"].tolist(), output["scores"].tolist(), strict=True)
    ]


def _coco_table(data: DetectionData, detections: list[dict]) -> dict[str, Any]:
    from pycocotools.cocoeval import COCOeval

    if not detections:
        return dict.fromkeys(COCO_COLUMNS, 0.0) | {"AP by IoU": [0.0] * 10}
    with contextlib.redirect_stdout(io.StringIO()):
        results = data.coco.loadRes(detections)
        judge = COCOeval(data.coco, results, "bbox")
        judge.params.imgIds = [int(target["image_id"]) for target in data.targets]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    precision = judge.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class) for all sizes and 100 detections
    by_iou = [100 * float(level[level > -1].mean()) if (level > -1).any() else 0.0 for level in precision]
    columns = {name: None if value < 0 else 100 * float(value) for name, value in zip(COCO_COLUMNS, judge.stats, strict=False)}
    return columns | {"AP by IoU": by_iou}


class _AtBestAnchor:
    """Reads logits, deltas and default boxes with forward hooks, in eval mode, and looks at each object's best one."""

    def __init__(self, detector: SSD | RetinaNet):
        self.detector, self.seen = detector, {}
        self.first_class = (
            CLASSES_FROM  # column of the first foreground class: SSD has background there, RetinaNet leaves column 0 unused
        )
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
            logits = self.seen["head"]["cls_logits"][number, best, self.first_class :]
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
