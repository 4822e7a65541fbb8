"""roi_feature_loss against the careful PyTorch version: one grid_sample per image, each ground truth pooled once."""

import pytest

from cls2det_ops import roi_feature_loss
from harness import Least, Workload, compared_bytes, feature_map, scene
from shapes import ROI_FEATURE_LOSS


def workload(name: str, device: str) -> Workload:
    shape = ROI_FEATURE_LOSS[name]
    inputs = scene(shape, device) | {"features": feature_map(shape, shape["channels"], shape["stride"], device)}
    bins, samples, scale = shape["bins"], shape["samples"], 1 / shape["stride"]
    return Workload(
        lambda **tensors: roi_feature_loss(**tensors, output_size=bins, sampling_size=samples, spatial_scale=scale),
        inputs, ("boxes", "features") if shape.get("map_gradient") else ("boxes",), compile=shape.get("compile", False),
        least=Least(lambda: {"features": compared_bytes(inputs["features"], inputs, samples, scale)}, reread=()),
    )  # fmt: skip


@pytest.mark.parametrize("shape", ROI_FEATURE_LOSS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_roi_feature_loss(bench, shape, backward):
    if not backward and ROI_FEATURE_LOSS[shape].get("map_gradient"):
        pytest.skip("the same forward as without the gradient of the map")
    bench(workload, shape, backward)
