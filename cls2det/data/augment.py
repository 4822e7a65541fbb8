"""How training pictures are varied: callables (image uint8 (3, H, W), target, seed) -> (image, target).

Every one is a function of its arguments alone: equal seeds give equal bits in any process, whatever else draws random
numbers. Boxes that leave the image are dropped from ``boxes``, ``labels`` and, where the target has them, ``origins`` together; the
image may change its size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes, Image, TVTensor

from cls2det.data.origins import carried

Target = dict[str, Tensor]
Augment = Callable[[Tensor, Target, int], tuple[Tensor, Target]]

GREY = 114.0  # what lies outside of the image in `Augmentation`
IMAGENET_MEAN = (123, 117, 104)  # what lies around a zoomed-out image in SSD's recipe


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Zoom with a shift, colour jitter and, where mirrored objects keep their class, flips.

    One bilinear warp and one multiply-add per image: with images as small as the demo's, a chain of separate transforms
    costs as much as a third of a training step.

    Args:
        zoom: the image is scaled by 1/zoom to zoom
        shift: and moved by up to this share of its size
        colour: each channel is multiplied by 1 ± colour, all are shifted by up to ± colour / 2 of the range
        flip: mirror half of the time
        visible: boxes of which less than this share stays in the image are dropped
    """

    zoom: float = 1.2
    shift: float = 0.1
    colour: float = 0.2
    flip: bool = False
    visible: float = 0.6

    def __call__(self, image: Tensor, target: Target, seed: int) -> tuple[Tensor, Target]:
        draw = torch.rand(8, generator=torch.Generator().manual_seed(seed)) * 2 - 1  # in [-1, 1)
        scale = self.zoom ** draw[0].item()
        across, down = (self.shift * draw[1:3]).tolist()  # shares of the image
        mirror = -1.0 if self.flip and draw[3] < 0 else 1.0

        # Output place p, in [-1, 1], shows input place (p - 2·shift) / scale; boxes go the other way.
        height, width = image.shape[-2:]
        grid = torch.empty(1, height, width, 2)
        grid[..., 0] = ((torch.arange(width) + 0.5) * (2 / width) - 1 - 2 * across) * (mirror / scale)
        grid[..., 1] = (((torch.arange(height) + 0.5) * (2 / height) - 1 - 2 * down) / scale)[:, None]
        warped = F.grid_sample(image[None].float() - GREY, grid, align_corners=False)[0] + GREY
        gain = 1 + self.colour * draw[4:7, None, None]
        warped = ((warped - GREY) * gain + (GREY + 255 * self.colour / 2 * draw[7])).clamp_(0, 255).to(torch.uint8)

        size = torch.tensor([width, height] * 2)
        boxes = target["boxes"]
        if mirror < 0:
            boxes = torch.stack((size[0] - boxes[:, 2], boxes[:, 1], size[0] - boxes[:, 0], boxes[:, 3]), 1)
        boxes = (boxes - size / 2) * scale + size / 2 + size * torch.tensor([across, down] * 2)
        inside = boxes.clamp(min=torch.zeros(4), max=size.float())
        keep = _area(inside) >= self.visible * _area(boxes)
        visible = (_area(inside) / _area(boxes))[keep]
        kept = {"boxes": inside[keep], "labels": target["labels"][keep]}
        return warped, {**target, **kept, **carried(target, keep, mirrored=mirror < 0, visible=visible)}


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def unchanged(image: Tensor, target: Target, seed: int) -> tuple[Tensor, Target]:
    return image, target


def apply_torchvision(transform: v2.Transform, image: Tensor, target: Target, seed: int) -> tuple[Tensor, Target]:
    """A transform of ``torchvision.transforms.v2`` that does not scale pictures, with a seed of its own.

    Where it leaves no box of an image that had one (a crop may cut the last box to less than a pixel), the image is
    returned unchanged; so is one with a side of less than 4 pixels, which ``RandomIoUCrop`` cannot crop.
    """
    if min(image.shape[-2:]) < 4:
        return image, target
    boxes = BoundingBoxes(target["boxes"], format="XYXY", canvas_size=image.shape[-2:])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too, and they are not forked
        # what is filtered with the boxes goes by the name of labels
        rows, mark = torch.arange(len(boxes)), torch.zeros(1).as_subclass(MirrorMark)
        result = transform({"image": Image(image), "boxes": boxes, "labels": rows, "mark": mark})
    rows, after = result["labels"], result["boxes"].as_subclass(Tensor)
    if len(target["labels"]) and not len(rows):
        return image, target
    visible = _area(after) / _area(target["boxes"][rows])
    origins = carried(target, rows, mirrored=bool(result["mark"]), visible=visible)
    return result["image"].as_subclass(Tensor), {**target, "boxes": after, "labels": target["labels"][rows], **origins}


class MirrorMark(TVTensor):  # type: ignore[misc] # torchvision has no types
    """One number that says whether a picture was mirrored: it passes through every other transform as it is."""


def _flip_mark(mark: Tensor) -> Tensor:
    return (1 - mark.as_subclass(Tensor)).as_subclass(MirrorMark)


v2.functional.register_kernel("horizontal_flip", MirrorMark)(_flip_mark)


_FLIP = v2.RandomHorizontalFlip(p=0.5)
_CROP_AND_FLIP = [v2.RandomIoUCrop(), _FLIP, v2.SanitizeBoundingBoxes()]

AUGMENTATIONS: dict[str, Augment] = {
    "none": unchanged,
    # torchvision's recipes of Faster R-CNN, RetinaNet and FCOS
    "flip": partial(apply_torchvision, _FLIP),
    # Liu et al., ECCV 2016, as in torchvision's recipe
    "ssd": partial(
        apply_torchvision,
        v2.Compose([v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill={Image: IMAGENET_MEAN}), *_CROP_AND_FLIP]),
    ),
    # torchvision's recipe of SSDLite
    "ssdlite": partial(apply_torchvision, v2.Compose(_CROP_AND_FLIP)),
    "jitter": Augmentation(),
    "jitter_flip": Augmentation(flip=True),
}


MIRRORING = ("flip", "ssd", "ssdlite", "jitter_flip")  # augmentations that mirror some pictures


def get_augmentation(name: str) -> Augment:
    """The augmentation of that name in ``AUGMENTATIONS``."""
    if name not in AUGMENTATIONS:
        raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}; got {name!r}")
    return AUGMENTATIONS[name]
