"""imitation_mask against the reference and against a loop over images with torchvision's box_iou."""

from typing import Any

import pytest
import torch
from torchvision.ops import box_iou

from cls2det_ops import imitation_mask
from harness import Workload, scene
from shapes import Shape

STRIDES = (8, 16, 32, 64, 128)
RATIOS = torch.tensor([0.5, 1.0, 2.0]).sqrt()

SHAPES: dict[str, Shape] = {  # RetinaNet's anchors: 9 per position of strides 8 to 128
    "800x1024 N152757 G40": {"image": (800, 1024), "images": 2, "g": 40, "compile": True},
    "800x1344 N200871 G200": {"image": (800, 1344), "images": 8, "g": 200},
    "small 64x64 N774 G4": {"image": (64, 64), "images": 1, "g": 4},
}


def workload(name: str, device: str) -> Workload:
    shape = SHAPES[name]
    truths = scene(shape | {"k": 1}, device)
    levels = [anchors(shape["image"], stride) for stride in STRIDES]
    inputs = {
        "anchors": torch.cat(levels).to(device),
        "boxes": truths["target_boxes"],
        "image_index": truths["target_image_index"],
    }
    options: dict[str, Any] = {"images": shape["images"], "level_sizes": [len(level) for level in levels]}
    return Workload(
        lambda **tensors: imitation_mask(**tensors, **options).float(),
        inputs, (), {"torchvision box_iou": lambda **tensors: plain(**options, **tensors)},
        compile=shape.get("compile", False), maps=("anchors",),
    )  # fmt: skip


def anchors(image: tuple[int, int], stride: int) -> torch.Tensor:
    """9 per position: sides of 4 strides, 3 scales by 3 ratios."""
    sides = 4 * stride * 2 ** (torch.arange(3) / 3)
    half = torch.stack([sides[:, None] / RATIOS, sides[:, None] * RATIOS], 2).view(-1, 2) / 2
    height, width = (-(-n // stride) for n in image)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = (torch.stack([x, y], 2).view(-1, 1, 2) + 0.5) * stride
    return torch.cat([centre - half, centre + half], 2).view(-1, 4)


def plain(anchors, boxes, image_index, images, level_sizes):
    masks = []
    for image in range(images):
        iou = box_iou(boxes[image_index == image], anchors)
        near = [part > 0.5 * part.amax(1, keepdim=True) for part in iou.split(level_sizes, 1)]
        masks.append(torch.cat(near, 1).any(0))
    return torch.stack(masks).float()


@pytest.mark.parametrize("shape", SHAPES)
def test_imitation_mask(bench, shape):
    bench(workload, shape, False)
