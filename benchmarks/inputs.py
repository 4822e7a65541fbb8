"""What a picture costs before the network sees it, beside the student's step: python benchmarks/inputs.py ssd300_vgg16

Seconds of CPU per picture, by this process's own clock, which other work moves little; ``--threads 1`` is one loader worker. The
pictures are synthetic JPEGs of COCO's size (640 x 480, quality 90, detail at all scales) with 7.5 boxes each. A row of:

- decode: what ``read_image`` takes (Pillow), and torchvision's ``decode_image``
- item: a training item with the recipe's augmentation, decoding included: what a loader worker does
- resize: the detector's own resizing and normalising, in the training process, and v2's ``resize`` of the uint8 picture
- crops: a teacher's crops of the boxes at 112 pixels, a part of the step
- step: forward, loss and backward of the bare student, for ``--steps-of``
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as v2

from cls2det.data.augment import get_augmentation
from cls2det.data.dataset import DetectionData
from cls2det.data.images import read_image, to_float
from cls2det.models.students import build_student
from cls2det.teachers.crop_classifier import CropClassifier
from shapes import SMALL_STUDENTS, STEPS, Shape
from steps import CLASSES, StepWorkload

SIDES = (640, 480)
AUGMENTATIONS = {  # of the students' recipes
    "ssd300_vgg16": "ssd",
    "ssd512_vgg16": "ssd",
    "ssd_compact": "jitter",
    "ssdlite_mobilenet_v2": "jitter_flip",
    "rtdetr_v2_r18": "ssd",
}
SHAPES: dict[str, Shape] = STEPS | SMALL_STUDENTS


def make_pictures(root: Path, count: int) -> None:
    """A split ``train`` in COCO's layout. Noise at all scales, as much at each: a JPEG of it is as large as one of a photograph."""
    draw = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    (root / "train").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        pixels = np.full((SIDES[1], SIDES[0], 3), 128.0)
        for scale in (2, 4, 8, 16, 32, 64, 128):
            coarse = draw.integers(0, 256, (-(-SIDES[1] // scale), -(-SIDES[0] // scale), 3), dtype=np.uint8)
            pixels += 0.25 * (np.asarray(Image.fromarray(coarse).resize(SIDES, Image.Resampling.BILINEAR), np.float64) - 128)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "train" / f"{number}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": SIDES[0], "height": SIDES[1]})
        for _ in range(7 + number % 2):
            w, h = (float(side * np.exp(draw.uniform(np.log(0.05), np.log(0.8)))) for side in SIDES)
            x, y = (float(draw.uniform(0, side - size)) for side, size in zip(SIDES, (w, h), strict=True))
            box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 1 + len(annotations) % 80, **box}
            )
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content), encoding="utf-8")


def milliseconds(function: Callable[[int], object], count: int) -> float:
    """Of CPU per call, over ``count`` calls after one that is not counted."""
    function(0)
    start = time.process_time()
    for number in range(count):
        function(number)
    return 1e3 * (time.process_time() - start) / count


def costs_of_decoding(files: Sequence[Path]) -> dict[str, float]:
    return {
        "Pillow": milliseconds(lambda number: read_image(files[number]), len(files)),
        "torchvision": milliseconds(lambda number: decode_image(str(files[number]), ImageReadMode.RGB), len(files)),
    }


def costs_of(student: str, root: Path, count: int) -> dict[str, float]:
    """By part, in milliseconds a picture."""
    augment = get_augmentation(AUGMENTATIONS.get(student, "flip"))
    data = DetectionData(root, "train", augment=augment, labelled_only=True, origins=True)
    with torch.device("meta"):  # no weights
        transform: Any = build_student(student, len(CLASSES), SHAPES[student].get("shorter")).transform
    pictures = [data[number] for number in range(count)]  # not augmented
    resized = [transform([image.float() / 255], [dict(target)]) for image, target in pictures[:4]]
    height, width = resized[0][0].image_sizes[0]
    teacher = CropClassifier(CLASSES, architecture="resnet18", width=16, crop_size=112)

    def own_resize(number: int) -> object:
        return transform(to_float([pictures[number][0]]), [dict(pictures[number][1])])

    def v2_resize(antialias: bool) -> Callable[[int], Tensor]:
        return lambda number: v2.resize(pictures[number][0], [height, width], antialias=antialias)

    def crops(number: int) -> Tensor:
        batch, targets = resized[number % len(resized)]
        boxes = targets[0]["boxes"]
        return teacher.crop(batch.tensors, boxes, torch.zeros(len(boxes), dtype=torch.int64))

    return {
        "item": milliseconds(lambda number: data[number, number], count),
        "resize": milliseconds(own_resize, count),
        "v2, uint8": milliseconds(v2_resize(False), count),
        "v2, uint8, antialias": milliseconds(v2_resize(True), count),
        "crops": milliseconds(crops, count),
    }


def step_of(student: str, steps: int) -> float:
    """Milliseconds a picture of the bare student's step."""
    shape = {name: value for name, value in SHAPES[student].items() if name not in ("small", "cuda")}
    workload = StepWorkload(student, device="cpu", **shape)

    def step(_number: int) -> None:
        workload.clear()
        torch.stack(list(workload.detector(*workload.batch).values())).sum().backward()

    return milliseconds(step, steps) / shape["images"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", choices=SHAPES)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--steps-of", nargs="*", default=[], choices=SHAPES, help="students whose step is measured too")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        make_pictures(root, options.pictures)
        files = sorted((root / "train").iterdir())
        size = sum(file.stat().st_size for file in files) / len(files) / 1000
        decoding = ", ".join(f"{name} {cost:.2f}" for name, cost in costs_of_decoding(files).items())
        print(f"{len(files)} pictures of {size:.0f} kB; decode, ms of CPU: {decoding}", flush=True)
        for student in options.students:
            costs = costs_of(student, root, options.pictures)
            rate = 1e3 / costs["item"]
            costs |= {"step": step_of(student, options.steps)} if student in options.steps_of else {}
            text = ", ".join(f"{name} {cost:.2f}" for name, cost in costs.items())
            print(f"{student}, {AUGMENTATIONS.get(student, 'flip')}: {text}; a worker gives {rate:.0f} pictures/s", flush=True)


if __name__ == "__main__":
    main()
