"""Start of a training's data by the size of their annotation file: seconds, CPU seconds and memory of fresh processes.

    python benchmarks/annotations.py make FOLDER --images 118000 --boxes 860000 [--outlines]
    python benchmarks/annotations.py measure FOLDER [--starts 2] [--command open|evaluate|workers]

``make`` writes a split ``train`` in COCO's layout whose pictures are links to a few files. ``measure`` opens it in one fresh process
after another and prints a line of each: seconds from the import of torch on, and the largest resident set above that of a process
that has torch alone. It reads any version of cls2det that ``PYTHONPATH`` names.
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


CODE = """
import resource, sys, time
import torch, torchvision, numpy
from PIL import Image
import cls2det.data.loader
base, start, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
from cls2det.data.dataset import DetectionData
from cls2det.data.fingerprint import fingerprint
data = DetectionData(sys.argv[1], "train")
sizes = data.class_counts()
prints = fingerprint(data)
if sys.argv[2] == "evaluate":
    data.coco
if sys.argv[2] == "workers":
    from cls2det.data.loader import train_loader
    for _ in train_loader(data, batch_size=8, steps_per_epoch=8, seed=0, loader_workers=2):
        pass
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(f"{time.perf_counter() - start:8.2f} s  {time.process_time() - cpu:8.2f} s CPU  {(peak - base) / 1024:8.0f} MiB above torch's "
      f"{base / 1024:.0f}" + (f"  workers {children / 1024:.0f}" if children else ""), prints["boxes"], prints["images"])
"""


def measure(folder: Path, starts: int, command: str) -> None:
    for _ in range(starts):
        subprocess.run([sys.executable, "-c", CODE, str(folder), command], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True, dest="part")
    maker = parts.add_parser("make")
    maker.add_argument("--images", type=int, default=118_000)
    maker.add_argument("--boxes", type=int, default=860_000)
    maker.add_argument("--outlines", action="store_true")
    meter = parts.add_parser("measure")
    meter.add_argument("--starts", type=int, default=2)
    meter.add_argument("--command", choices=["open", "evaluate", "workers"], default="open")
    for part in (maker, meter):
        part.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.part == "make":
        make(options.folder, options.images, options.boxes, options.outlines)
    else:
        measure(options.folder, options.starts, options.command)


if __name__ == "__main__":
    main()
