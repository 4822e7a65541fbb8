"""roi_kd_loss, everything that one training step adds, against the same composite in plain PyTorch."""

import pytest

from cls2det_ops import RoIMap, roi_kd_loss
from harness import Least, Workload, compared_bytes, feature_map, logits, scene
from shapes import FASTER_512, FEW, SSD300, Shape

SHAPES: dict[str, Shape] = {  # the compared maps: channels, stride, samples, bins
    "ssd300 pixels+64x75x75 K480 C80+1": SSD300 | {"c": 80, "maps": [(3, 1, 112, 4), (64, 4, 28, 8)], "compile": True},
    "frcnn 256x200x334 K512 C80+1": FASTER_512 | {"c": 80, "maps": [(256, 4, 14, 7)]},
    "small 64x16x16 K16 C20+1": FEW | {"c": 20, "maps": [(64, 4, 14, 7)]},
}


def workload(name: str, device: str) -> Workload:
    shape = SHAPES[name]
    boxes = scene(shape, device)
    rows = logits(shape, shape["c"] + 1, device)
    inputs = rows | boxes
    del inputs["image_index"]
    maps = []
    for number, (channels, stride, samples, bins) in enumerate(shape["maps"]):
        inputs[f"map{number}"] = feature_map(shape, channels, stride, device)
        maps.append((bins, samples, 1 / stride))

    def function(**tensors):
        compared = [RoIMap(tensors.pop(f"map{number}"), *options) for number, options in enumerate(maps)]
        return roi_kd_loss(**tensors, maps=compared).loss

    names = tuple(f"map{number}" for number in range(len(maps)))

    def parts() -> dict[str, int]:
        return {
            name: compared_bytes(inputs[name], boxes, samples, scale)
            for name, (_bins, samples, scale) in zip(names, maps, strict=True)
        }

    return Workload(
        function, inputs, ("student_logits", "boxes"),
        compile=shape.get("compile", False), least=Least(parts, reread=tuple(rows)), maps=names,
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_roi_kd_loss(bench, shape, backward):
    bench(workload, shape, backward)
