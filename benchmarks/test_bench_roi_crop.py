"""roi_crop against one grid_sample per image: no contender replicates an image."""

import pytest

from cls2det_ops import roi_crop
from harness import Least, Workload, bytes_under, feature_map, scene
from shapes import ROI_CROP


def workload(name: str, device: str) -> Workload:
    shape = ROI_CROP[name]
    found = scene(shape, device)
    inputs = {"images": feature_map(shape, shape["channels"], 1, device), "boxes": found["boxes"],
              "image_index": found["image_index"]}  # fmt: skip
    size = shape["samples"]
    return Workload(
        lambda images, boxes, image_index: roi_crop(images, boxes, image_index, size),
        inputs, ("boxes",), compile=shape.get("compile", False),
        least=Least(lambda: {"images": bytes_under(*inputs.values(), size)}),
    )  # fmt: skip


@pytest.mark.parametrize("shape", ROI_CROP)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_roi_crop(bench, shape, backward):
    bench(workload, shape, backward)
