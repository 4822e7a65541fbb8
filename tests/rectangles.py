"""A small data set in COCO's layout for tests that spoil it: coloured rectangles, a class per colour."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cls2det.data.dataset import DetectionData

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230)}
Content = dict[str, Any]  # of an annotation file


def make_rectangles(
    root: Path,
    *,
    splits: Mapping[str, int] | None = None,
    classes: Sequence[str] = tuple(COLOURS),
    size: tuple[int, int] = (96, 72),
    objects: int = 2,
    seed: int = 0,
) -> Path:
    """Write ``root/annotations/instances_<split>.json`` and ``root/<split>/*.png``.

    Args:
        root: made if it is not there
        splits: images by split; None is 12 of "train" and 6 of "val"
        classes: of ``COLOURS``; category ids are 1, 2, … in this order
        size: width and height of the images in pixels
        objects: rectangles per image
        seed: of places, sizes and classes
    """
    random, (width, height) = np.random.default_rng(seed), size
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, count in (splits or {"train": 12, "val": 6}).items():
        (root / split).mkdir(exist_ok=True)
        images, annotations = [], []
        for image_id in range(1, count + 1):
            pixels = random.integers(90, 130, (height, width, 3), dtype=np.uint8)
            images.append({"id": image_id, "file_name": f"{image_id:03}.png", "width": width, "height": height})
            for _ in range(objects):
                label = len(annotations) % len(classes)
                w, h = (int(random.integers(side // 4, side // 2)) for side in size)
                x, y = int(random.integers(0, width - w)), int(random.integers(0, height - h))
                pixels[y : y + h, x : x + w] = COLOURS[classes[label]]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": label + 1,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                    }
                )
            Image.fromarray(pixels).save(root / split / images[-1]["file_name"])
        categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
        write_annotations(root, split, {"images": images, "annotations": annotations, "categories": categories})
    return root


def annotation_file(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def write_annotations(root: Path, split: str, content: Content) -> None:
    annotation_file(root, split).write_text(json.dumps(content), encoding="utf-8")


def change_annotations(root: Path, split: str, change: Callable[[Content], object]) -> None:
    """Let ``change`` alter the split's content in place."""
    content = json.loads(annotation_file(root, split).read_text(encoding="utf-8"))
    change(content)
    write_annotations(root, split, content)


def silently(root, split="train", **options):
    """The data, which must not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return DetectionData(root, split, **options)
