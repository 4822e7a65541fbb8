"""roi_avg_pool against grid_sample + adaptive_avg_pool2d; forward also against torchvision's roi_align, which has no box gradient."""

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cls2det_ops import roi_avg_pool
from harness import Least, Workload, bytes_under, feature_map, scene
from shapes import FASTER_256, FEW, SSD300, Shape

SHAPES: dict[str, Shape] = {
    "ssd300 64x75x75 K480 S28 P8": SSD300 | {"channels": 64, "stride": 4, "samples": 28, "bins": 8, "compile": True},
    "frcnn 256x200x334 K256 S14 P7": FASTER_256 | {"channels": 256, "stride": 4, "samples": 14, "bins": 7},
    "small 64x16x16 K16 S14 P7": FEW | {"channels": 64, "stride": 4, "samples": 14, "bins": 7},
}


def workload(name: str, device: str, backward: bool = True) -> Workload:
    shape = SHAPES[name]
    boxes = scene(shape, device)
    features = feature_map(shape, shape["channels"], shape["stride"], device)
    inputs = {"features": features, "boxes": boxes["boxes"], "image_index": boxes["image_index"]}
    bins, samples, scale = shape["bins"], shape["samples"], 1 / shape["stride"]
    baselines: dict[str, Callable[..., Tensor]] = {}
    if not backward and samples % bins == 0:  # the same numbers inside the image
        with contextlib.suppress(ImportError):
            from torchvision.ops import roi_align

            baselines["torchvision roi_align"] = lambda features, boxes, image_index: roi_align(
                features, boxes_with_index(boxes, image_index), bins, scale, sampling_ratio=samples // bins, aligned=True
            )
    return Workload(
        lambda features, boxes, image_index: roi_avg_pool(
            features, boxes, image_index, output_size=bins, sampling_size=samples, spatial_scale=scale,
        ),
        inputs, ("boxes",), baselines, compile=shape.get("compile", False), maps=("features",),
        least=Least(lambda: {"features": bytes_under(**inputs, samples=samples, scale=scale)}),
    )  # fmt: skip


def boxes_with_index(boxes, image_index):
    return torch.cat([image_index[:, None].to(boxes.dtype), boxes], 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_roi_avg_pool(bench, shape, backward):
    bench(lambda name, device: workload(name, device, backward), shape, backward)
