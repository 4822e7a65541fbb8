"""roi_avg_pool against grid_sample + adaptive_avg_pool2d; forward also against torchvision's roi_align, which has no box gradient."""

import pytest

from cls2det_ops import roi_avg_pool
from harness import Least, Workload, bytes_under, feature_map, scene
from shapes import ROI_AVG_POOL


def workload(name: str, device: str, backward: bool = True) -> Workload:
    shape = ROI_AVG_POOL[name]
    found = scene(shape, device)
    features = feature_map(shape, shape["channels"], shape["stride"], device)
    inputs = {"features": features, "boxes": found["boxes"], "image_index": found["image_index"]}
    bins, samples, scale = shape["bins"], shape["samples"], 1 / shape["stride"]
    baselines = {}
    if not backward and samples % bins == 0:  # the same numbers inside the image
        try:
            from torchvision.ops import roi_align
        except ImportError:
            roi_align = None
        if roi_align is not None:
            baselines["torchvision roi_align"] = lambda features, boxes, image_index: roi_align(
                features, _with_index(boxes, image_index), bins, scale, samples // bins, aligned=True
            )
    return Workload(
        lambda features, boxes, image_index: roi_avg_pool(features, boxes, image_index, bins, samples, scale),
        inputs, ("boxes",), baselines, shape.get("compile", False),
        Least(lambda: {"features": bytes_under(*inputs.values(), samples, scale)}),
    )  # fmt: skip


def _with_index(boxes, image_index):
    import torch

    return torch.cat([image_index[:, None].to(boxes.dtype), boxes], 1)


@pytest.mark.parametrize("shape", ROI_AVG_POOL)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_roi_avg_pool(bench, shape, backward):
    bench(lambda name, device: workload(name, device, backward), shape, backward)
