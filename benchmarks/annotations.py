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
import random
import subprocess
import sys
from pathlib import Path
from typing import TextIO

SIDES = (640, 480)
CLASSES = 80
LINKS = 60_000  # of one file; ext4 takes 65,000
POINTS = 38  # numbers of an outline on average, so that 860,000 take 399 MB, as COCO's do


def make(folder: Path, images: int, boxes: int, outlines: bool) -> None:
    draw = random.Random(0)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    with (folder / "annotations" / "instances_train.json").open("w", encoding="utf-8") as file:
        write_file(file, draw, images, boxes, outlines)
    link_pictures(folder / "train", images)


def write_file(file: TextIO, draw: random.Random, images: int, boxes: int, outlines: bool) -> None:
    file.write('{"info": {"description": "synthetic"}, "licenses": [], "images": [')
    for number in range(images):
        width, height = SIDES
        file.write(
            f'{", " if number else ""}{{"license": 1, "file_name": "{number:012}.jpg", '
            f'"coco_url": "http://images.example.org/train/{number:012}.jpg", "height": {height}, "width": {width}, '
            f'"date_captured": "2013-11-14 11:18:45", "id": {number + 1}}}'
        )
    file.write('], "annotations": [')
    for number in range(boxes):
        # ids of images in no order, as in COCO's files
        image = number % images + 1 if number < images else draw.randrange(images) + 1
        w, h = (min(round(draw.expovariate(1 / 90) + 4, 2), side) for side in SIDES)
        x, y = round(draw.uniform(0, SIDES[0] - w), 2), round(draw.uniform(0, SIDES[1] - h), 2)
        outline = ""
        if outlines:
            points = [f"{x + w * draw.random():.2f}" for _ in range(2 * draw.randint(6, POINTS - 6))]
            outline = f'"segmentation": [[{", ".join(points)}]], '
        file.write(
            f'{", " if number else ""}{{{outline}"area": {w * h * 0.6:.4f}, "iscrowd": {int(number % 90 == 0)}, '
            f'"image_id": {image}, "bbox": [{x}, {y}, {w}, {h}], "category_id": {number % CLASSES + 1}, "id": {number + 1}}}'
        )
    names = [{"supercategory": "thing", "id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)]
    file.write(f'], "categories": {json.dumps(names)}}}')


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
