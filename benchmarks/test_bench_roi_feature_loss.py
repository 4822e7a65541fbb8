"""roi_feature_loss against the careful PyTorch version: one grid_sample per image, each ground truth pooled once."""

import pytest

from cls2det_ops import roi_feature_loss
from harness import Least, Workload, compared_bytes, feature_map, scene
from shapes import FASTER_256, FASTER_512, FEW, SSD300, SSD512, Shape

SHAPES: dict[str, Shape] = {
    "ssd300 3x300x300 K480 S112 P4": SSD300 | {"channels": 3, "stride": 1, "samples": 112, "bins": 4},
    "ssd300 64x75x75 K480 S28 P8": SSD300 | {"channels": 64, "stride": 4, "samples": 28, "bins": 8, "compile": True},
    "ssd300 64x75x75 K480 S28 P8 +map": SSD300 | {
        "channels": 64, "stride": 4, "samples": 28, "bins": 8, "map_gradient": True,
    },
    "ssd512 64x128x128 K640 S28 P8": SSD512 | {"channels": 64, "stride": 4, "samples": 28, "bins": 8},
    "frcnn 256x200x334 K256 S14 P7": FASTER_256 | {"channels": 256, "stride": 4, "samples": 14, "bins": 7},
    "frcnn 256x200x334 K512 S14 P7": FASTER_512 | {"channels": 256, "stride": 4, "samples": 14, "bins": 7},
    "small 64x16x16 K16 S14 P7": FEW | {"channels": 64, "stride": 4, "samples": 14, "bins": 7},
}  # fmt: skip


def workload(name: str, device: str) -> Workload:
    shape = SHAPES[name]
    inputs = scene(shape, device) | {"features": feature_map(shape, shape["channels"], shape["stride"], device)}
    bins, samples, scale = shape["bins"], shape["samples"], 1 / shape["stride"]
    return Workload(
        lambda **tensors: roi_feature_loss(**tensors, output_size=bins, sampling_size=samples, spatial_scale=scale),
        inputs, ("boxes", "features") if shape.get("map_gradient") else ("boxes",),
        compile=shape.get("compile", False), maps=("features",),
        least=Least(lambda: {"features": compared_bytes(inputs["features"], inputs, samples, scale)}, reread=()),
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_roi_feature_loss(bench, shape, backward):
    if not backward and SHAPES[shape].get("map_gradient"):
        pytest.skip("the same forward as without the gradient of the map")
    bench(workload, shape, backward)
