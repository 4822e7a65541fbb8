"""Small sets in COCO's form with objects and detections, for tests of what scores them."""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO


def truth_of(objects, categories=2):
    """COCO of (image, category, box) or (image, category, box, crowd)."""
    coco = COCO()
    notes = [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": int(any(crowd)),
        }
        for number, (image, category, box, *crowd) in enumerate(objects, start=1)
    ]
    coco.dataset = {
        "images": [{"id": image} for image in sorted({image for image, *_ in objects} | {0})],
        "annotations": notes,
        "categories": [{"id": number, "name": str(number)} for number in range(1, categories + 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def detections_of(*detections):
    return [{"image_id": 0, "category_id": category, "bbox": box, "score": score} for category, box, score in detections]


def random_world(seed):
    """Objects, crowds among them, and detections with tied scores; for odd seeds more than count."""
    random = np.random.default_rng(seed)
    objects, detections = [], []
    for image in range(20):
        boxes = [[*random.uniform(0, 60, 2), *random.uniform(8, 40, 2)] for _ in range(random.integers(0, 6))]
        objects += [(image, int(random.integers(1, 4)), box, random.random() < 0.1) for box in boxes]
        for _ in range(random.integers(0, 500 if seed % 2 else 40)):
            box = np.array(boxes[random.integers(len(boxes))] if boxes else [0, 0, 40, 40], dtype=float)
            box += random.normal(0, random.choice([0.5, 4.0]), 4)
            score = round(float(random.random()), 2)
            category, box = int(random.integers(1, 4)), [*box[:2].tolist(), *np.maximum(box[2:], 1).tolist()]
            detections.append({"image_id": image, "category_id": category, "bbox": box, "score": score})
    coco = truth_of(objects, categories=3)
    return coco, [record for record in detections if record["image_id"] in coco.imgs]
