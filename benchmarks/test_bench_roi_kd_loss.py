"""roi_kd_loss, everything that one training step adds, against the same composite in plain PyTorch."""

import pytest

from cls2det_ops import RoIMap, roi_kd_loss
from harness import Least, Workload, compared_bytes, feature_map, logits, scene
from shapes import ROI_KD_LOSS


def workload(name: str, device: str) -> Workload:
    shape = ROI_KD_LOSS[name]
    boxes = scene(shape, device)
    of_logits = logits(shape, shape["c"] + 1, device)
    inputs = of_logits | boxes
    del inputs["image_index"]
    maps = []
    for number, (channels, stride, samples, bins) in enumerate(shape["maps"]):
        inputs[f"map{number}"] = feature_map(shape, channels, stride, device)
        maps.append((bins, samples, 1 / stride))

    def function(**tensors):
        compared = [RoIMap(tensors.pop(f"map{number}"), *options) for number, options in enumerate(maps)]
        return roi_kd_loss(**tensors, maps=compared).loss

    def parts() -> dict[str, int]:
        names = [f"map{number}" for number in range(len(maps))]
        return {
            name: compared_bytes(inputs[name], boxes, samples, scale)
            for name, (_bins, samples, scale) in zip(names, maps, strict=True)
        }

    least = Least(parts, reread=tuple(of_logits))
    return Workload(function, inputs, ("student_logits", "boxes"), compile=shape.get("compile", False), least=least)


@pytest.mark.parametrize("shape", ROI_KD_LOSS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_roi_kd_loss(bench, shape, backward):
    bench(workload, shape, backward)
