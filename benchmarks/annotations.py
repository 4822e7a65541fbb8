"""How long the data of a training take to open, and how much memory, by the size of their annotation file.

    python benchmarks/annotations.py make FOLDER --images 118000 --boxes 860000 --outlines
    python benchmarks/annotations.py measure FOLDER --starts 2
    python benchmarks/annotations.py evaluate FOLDER

``make`` writes a split ``train`` in COCO's layout whose pictures are links to a few files. ``measure`` opens it in one fresh process
after another, with all checks, class counts and fingerprints. A line of each: seconds, seconds of CPU, and the largest resident set
above that of a process that has imported torch, torchvision and Pillow. The first start makes the cache. ``evaluate`` times
``coco_table`` on 100 detections per image. Both run whichever version of cls2det ``PYTHONPATH`` names.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import numpy as np

SIDES = (640, 480)
CLASSES = 80
LINKS = 60_000  # of one file; ext4 takes 65,000
POINTS = 38  # numbers of an outline on average, so that 860,000 take 399 MB, as COCO's do
TOGETHER = 10_000  # boxes that are written at once: one format of many numbers is much faster than many formats


def make(folder: Path, images: int, boxes: int, outlines: bool) -> None:
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    with (folder / "annotations" / "instances_train.json").open("w", encoding="utf-8") as file:
        write_file(file, np.random.default_rng(0), images, boxes, outlines)
    link_pictures(folder / "train", images)


def write_file(file: TextIO, draw: np.random.Generator, images: int, boxes: int, outlines: bool) -> None:
    width, height = SIDES
    file.write('{"info": {"description": "synthetic"}, "licenses": [], "images": [')
    for number in range(images):
        file.write(
            f'{", " if number else ""}{{"license": 1, "file_name": "{number:012}.jpg", '
            f'"coco_url": "http://images.example.org/train/{number:012}.jpg", "height": {height}, "width": {width}, '
            f'"date_captured": "2013-11-14 11:18:45", "id": {number + 1}}}'
        )
    file.write('], "annotations": [')
    for first in range(0, boxes, TOGETHER):
        numbers = np.arange(first, min(first + TOGETHER, boxes))
        file.write(", " * (first > 0) + ", ".join(box_texts(numbers, draw, images, outlines)))
    names = [{"supercategory": "thing", "id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)]
    file.write(f'], "categories": {json.dumps(names)}}}')


def box_texts(numbers: np.ndarray, draw: np.random.Generator, images: int, outlines: bool) -> list[str]:
    """The annotations of these numbers, with ids of images in no order, as in COCO's files."""
    count = len(numbers)
    image = np.where(numbers < images, numbers % images, draw.integers(0, images, count)) + 1
    w, h = (np.minimum(draw.exponential(90, count) + 4, side) for side in SIDES)
    x, y = (draw.random(count) * (side - size) for side, size in zip(SIDES, (w, h), strict=True))
    texts = [""] * count
    if outlines:
        points = (x[:, None] + w[:, None] * draw.random((count, 2 * (POINTS - 6)))).tolist()
        lengths = (2 * draw.integers(6, POINTS - 5, count)).tolist()
        texts = [
            '"segmentation": [[' + ", ".join(["%.2f"] * length) % tuple(row[:length]) + "]], "
            for row, length in zip(points, lengths, strict=True)
        ]
    parts = (w * h * 0.6, numbers % 90 == 0, image, x, y, w, h, numbers % CLASSES + 1, numbers + 1)
    columns = (texts, *(part.tolist() for part in parts))
    line = '{%s"area": %.4f, "iscrowd": %d, "image_id": %d, "bbox": [%.2f, %.2f, %.2f, %.2f], "category_id": %d, "id": %d}'
    return [line % row for row in zip(*columns, strict=True)]


def link_pictures(folder: Path, images: int) -> None:
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for number in range(images):
        path = folder / f"{number:012}.jpg"
        if number % LINKS == 0:
            path.unlink(missing_ok=True)
            Image.new("RGB", SIDES).save(path)
            source = path
        elif not path.exists():
            os.link(source, path)


BEGIN = """
import resource, sys, time, types
import numpy, torch, torchvision
from PIL import Image
from torch.utils.data import DataLoader

base, start, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()

def done(*words):
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
    print(f"{time.perf_counter() - start:8.2f} s {time.process_time() - cpu:8.2f} s CPU {peak:8.0f} MiB", *words, flush=True)

from cls2det.data.dataset import DetectionData
"""
OPEN = """
from cls2det.data.fingerprint import fingerprint
data = DetectionData(sys.argv[1], "train")
data.class_counts()
done(fingerprint(data))
"""
EVALUATE = """
from cls2det.evaluation.coco import coco_table
coco, draw, detections = DetectionData(sys.argv[1], "train").coco, numpy.random.default_rng(0), []
for image_id, annotations in coco.imgToAnns.items():
    for number in range(100):
        one = annotations[number % len(annotations)]
        box = (numpy.array(one["bbox"]) * draw.normal(1, 0.1, 4)).tolist()
        category = one["category_id"] if draw.random() < 0.6 else int(draw.integers(1, 81))
        result = {"image_id": image_id, "category_id": category, "bbox": box, "score": float(draw.beta(1, 4))}
        detections.append(result)
data = types.SimpleNamespace(coco=coco, targets=[{"image_id": image_id} for image_id in coco.imgs])
start, cpu = time.perf_counter(), time.process_time()
done(coco_table(data, detections)["mAP"])
"""


def run(folder: Path, code: str) -> None:
    subprocess.run([sys.executable, "-c", BEGIN + code, str(folder)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True, dest="part")
    maker = parts.add_parser("make")
    maker.add_argument("--images", type=int, default=118_000)
    maker.add_argument("--boxes", type=int, default=860_000)
    maker.add_argument("--outlines", action="store_true")
    meter, judge = parts.add_parser("measure"), parts.add_parser("evaluate")
    meter.add_argument("--starts", type=int, default=2)
    for part in (maker, meter, judge):
        part.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.part == "make":
        make(options.folder, options.images, options.boxes, options.outlines)
    for _ in range(options.starts if options.part == "measure" else 0):
        run(options.folder, OPEN)
    if options.part == "evaluate":
        run(options.folder, EVALUATE)


if __name__ == "__main__":
    main()
