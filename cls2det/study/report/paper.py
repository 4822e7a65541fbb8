"""The paper's numbers (``paper.json``) in the form of the report's rows, for the students and arms that it has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

SPLIT, IMAGES = "val2017", 5000  # what the paper evaluates on


@cache
def paper() -> dict[str, Any]:
    """Tables 1 (``arms``), 2 (``methods``), 3 and 4 (``ablations``) and 5 (``iou``), in percent, on COCO val2017."""
    return json.loads((Path(__file__).parent / "paper.json").read_text(encoding="utf-8"))


def paper_rows(table: str, student: str) -> dict[str, dict[str, float | None]]:
    """Rows of ``arms``, ``methods`` or ``iou`` by arm or method; none if the paper lacks the student."""
    columns = paper()[table]["columns"]
    return {name: dict(zip(columns, values, strict=True)) for name, values in paper()[table].get(student, {}).items()}


def ablations(student: str, arms: Iterable[str]) -> list[dict[str, Any]]:
    """Those of Tables 3 and 4 whose options the arms' names carry (``temperature=2``), for the student they were made with."""
    tables = dict(paper()["ablations"])
    if tables.pop("student") != student:
        return []
    options = {option for arm in arms for option in re.findall(r"(\w+)=", arm)}
    return [{"table": name, **table} for name, table in tables.items() if options & set(table["options"])]


def why_not_comparable(truth: Any, split: str) -> str:
    """Why the paper's numbers are no measure for runs on this ground truth (``COCO`` or None); empty for COCO val2017."""
    from torchvision.models.detection import SSD300_VGG16_Weights

    if truth is None:
        return "The paper's numbers are of COCO val2017; the runs' data could not be read, so no difference is shown."
    coco = set(SSD300_VGG16_Weights.COCO_V1.meta["categories"]) - {"N/A", "__background__"}
    images, classes = truth.dataset["images"], {category["name"] for category in truth.dataset["categories"]}
    if (split, len(images), classes) == (SPLIT, IMAGES, coco):
        return ""
    what = "of other data" if classes != coco else f"of {split}, {len(images)} images in place of {IMAGES}"
    return f"The paper's numbers are of COCO val2017, the runs {what}: **not comparable**, shown for reference."
