"""Pictures of the report: ground truth beside what the arms detect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torchvision.ops import box_convert, box_iou

from cls2det.data.dataset import DetectionData
from cls2det.evaluation.drawing import draw_boxes
from cls2det.evaluation.fonts import use_fonts_for_texts
from cls2det.study.report.plots import pyplot
from cls2det.study.report.runs import read_json


def draw_detections(
    data: DetectionData, files: Mapping[str, Path], path: Path, columns: int = 8, threshold: float = 0.3
) -> None:
    """Images of the split in columns, the first that hold three objects or more; rows: ground truth, then each arm.

    Green: right class and IoU ≥ 0.5; red: not.

    Args:
        data: the split
        files: detections.json by arm
        path: where the picture goes
        columns: at most so many images
        threshold: detections with a lower score are not shown
    """
    plt = pyplot()
    arms = {arm: _by_image(file, threshold) for arm, file in files.items()}
    shown = _busiest(data, columns)
    figure, grid = plt.subplots(
        1 + len(arms), len(shown), figsize=(1.6 * len(shown), 1.7 * (1 + len(arms))), squeeze=False, layout="constrained"
    )
    for column, index in enumerate(shown):
        image, target = data[index]
        colours: str | list[str]
        for row, name in enumerate(("ground truth", *arms)):
            axes = grid[row][column]
            axes.set(xticks=[], yticks=[])
            if column == 0:
                axes.set_ylabel(name, fontsize=10)
            if row == 0:
                boxes, labels, colours = target["boxes"], target["labels"], "white"
            else:
                boxes, labels = _as_tensors(arms[name].get(int(target["image_id"]), []), data.category_ids)
                right = (box_iou(boxes, target["boxes"]) >= 0.5) & (labels[:, None] == target["labels"])
                colours = ["lime" if hit else "red" for hit in right.any(1)]
            drawn = draw_boxes(image, boxes, labels, data.classes, colour=colours)
            axes.imshow(drawn.permute(1, 2, 0).numpy(), interpolation="nearest")
    figure.suptitle(f"scores ≥ {threshold}; green: right class and IoU ≥ 0.5, red: not", fontsize=9)
    use_fonts_for_texts(figure)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _busiest(data: DetectionData, most: int) -> list[int]:
    """The first images with three objects or more; then those with two, one, none."""
    order = (-data.targets.counts().clamp(max=3)).argsort(stable=True).tolist()
    return order[:most]


def _by_image(file: Path, threshold: float) -> dict[int, list[dict]]:
    by_image: dict[int, list[dict]] = {}
    for detection in read_json(file):
        if detection["score"] >= threshold:
            by_image.setdefault(detection["image_id"], []).append(detection)
    return by_image


def _as_tensors(detections: list[dict], category_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (n, 4) xyxy and labels (n,) from 1."""
    boxes = torch.tensor([detection["bbox"] for detection in detections], dtype=torch.float32).reshape(-1, 4)
    labels = [category_ids.index(detection["category_id"]) + 1 for detection in detections]
    return box_convert(boxes, "xywh", "xyxy"), torch.tensor(labels, dtype=torch.int64)
