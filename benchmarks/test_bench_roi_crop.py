"""roi_crop against one grid_sample per image: no contender replicates an image."""

import pytest

from cls2det_ops import roi_crop
from harness import Least, Workload, bytes_under, feature_map, scene
from shapes import FASTER_512, FEW, SSD300, SSD512, Shape

SHAPES: dict[str, Shape] = {
    "ssd300 3x300x300 K480 S112": SSD300 | {"channels": 3, "stride": 1, "samples": 112, "compile": True},
    "ssd512 3x512x512 K640 S112": SSD512 | {"channels": 3, "stride": 1, "samples": 112},
    "frcnn 3x800x1333 K512 S112": FASTER_512 | {"channels": 3, "stride": 1, "samples": 112},
    "small 3x64x64 K16 S32": FEW | {"channels": 3, "stride": 1, "samples": 32},
}


def workload(name: str, device: str) -> Workload:
    shape = SHAPES[name]
    boxes = scene(shape, device)
    images = feature_map(shape, shape["channels"], 1, device)
    inputs = {"images": images, "boxes": boxes["boxes"], "image_index": boxes["image_index"]}
    size = shape["samples"]
    return Workload(
        lambda images, boxes, image_index: roi_crop(images, boxes, image_index, size),
        inputs, ("boxes",), compile=shape.get("compile", False), maps=("images",),
        least=Least(lambda: {"images": bytes_under(images, inputs["boxes"], inputs["image_index"], size)}),
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_roi_crop(bench, shape, backward):
    bench(workload, shape, backward)
