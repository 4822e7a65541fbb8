"""A split as pycocotools takes it, for evaluation."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from cls2det.data.columns import Columns, Files

if TYPE_CHECKING:
    from pycocotools.coco import COCO


def as_coco(columns: Columns) -> COCO:
    """``pycocotools.coco.COCO`` of boxes: what ``COCOeval`` reads of them, without outlines and other fields.

    Images are in order of id, annotations in order of their images, within one in the file's order.
    """
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = lists(columns)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def lists(columns: Columns) -> dict[str, Any]:
    """COCO's three lists."""
    heading, owners = columns.heading, np.repeat(columns.image_ids, np.diff(columns.ends, prepend=0))
    numbers = zip(
        columns.ids.tolist(),
        owners.tolist(),
        np.array(heading.category_ids)[columns.labels - 1].tolist(),
        columns.boxes.tolist(),
        columns.areas.tolist(),
        columns.crowds.astype(int).tolist(),
        strict=True,
    )
    names = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    return {
        "images": [
            {"id": image.image_id, "file_name": image.name, "width": image.width, "height": image.height}
            for image in Files(columns).values()
        ],
        "annotations": [dict(zip(names, values, strict=True)) for values in numbers],
        "categories": [
            {"id": number, "name": name} for number, name in zip(heading.category_ids, heading.classes, strict=True)
        ],
    }
