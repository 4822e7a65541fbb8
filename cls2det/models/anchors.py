"""Default boxes of SSD, anchors of RetinaNet and of Faster R-CNN's RPN: which a detector has, and how it gets others.

    levels = [[[18, 18], [14, 26]], [{"sizes": [40], "ratios": [0.5, 1, 2]}]]   # of each map: width and height in pixels of the input
    set_anchors(detector, levels)                                             # its head is built anew where their number changes
    detector.anchors                                                          # the same in plain lists

torchvision makes a grid of sizes and ratios. Boxes by width and height are more general: what fits the objects of a data set
(``models.anchor_fit``) is no grid. Matching and box codes stay torchvision's.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

Level = Sequence[Sequence[float]] | Mapping[str, Sequence[float]]  # boxes of one map: see ``as_shapes``
Levels = Sequence[Level]


class DefaultBoxes(DefaultBoxGenerator):  # type: ignore[misc] # torchvision has no types
    """SSD's default boxes of any width and height, centred and clipped as those of ``own``.

    Args:
        own: the generator that it takes the place of
        shapes: of each map, (k, 2) width and height as shares of the input
    """

    def __init__(self, own: DefaultBoxGenerator, shapes: Sequence[Tensor]):
        super().__init__(own.aspect_ratios, scales=own.scales, steps=own.steps, clip=own.clip)
        self._wh_pairs = list(shapes)

    def num_anchors_per_location(self) -> list[int]:
        return [len(pairs) for pairs in self._wh_pairs]


@dataclasses.dataclass(frozen=True)
class AnchorGrid:
    """The anchors of a detector, in pixels of its input.

    Attributes:
        shapes: (k, 2) float64, width and height, all maps after each other
        counts: boxes of each map at every place
        strides: (k, 2) float64, between neighbouring centres across and down
        first: the first centre, in strides: 0.5 of default boxes, 0 of torchvision's anchors
        threshold: IoU from which the detector's loss takes an anchor (of a Faster R-CNN: a proposal) for an object's
    """

    shapes: Tensor
    counts: tuple[int, ...]
    strides: Tensor
    first: float
    threshold: float

    def with_levels(self, levels: Levels) -> AnchorGrid:
        """The same places with other shapes, as many as there are."""
        return dataclasses.replace(self, shapes=torch.cat(as_shapes(levels)))

    def overlaps(self, boxes: Tensor, shapes: Tensor | None = None, strides: Tensor | None = None) -> Tensor:
        """IoU of each object with each shape, at the place where that fits best: of the centre nearest to the object's.

        Centres are taken to go on beyond the image's right and lower border, where real ones end half a stride before.

        Args:
            boxes: (n, 4) xyxy in pixels of the input
            shapes: (k, 2) in place of the grid's own
            strides: (k, 2) or (2,) of these in place of the grid's own

        Returns:
            (n, k) float64
        """
        shapes, strides = self.shapes if shapes is None else shapes, self.strides if strides is None else strides
        boxes = boxes.double()
        sides, centres = boxes[:, None, 2:] - boxes[:, None, :2], (boxes[:, None, 2:] + boxes[:, None, :2]) / 2
        places = (centres / strides - self.first).round().clamp(min=0)
        offsets = (centres - (places + self.first) * strides).abs()
        inner = ((sides + shapes) / 2 - offsets).minimum(sides).minimum(shapes).clamp(min=0).prod(2)
        return inner / (sides.prod(2) + shapes.prod(1) - inner)


def anchor_grid(detector: nn.Module) -> AnchorGrid | None:
    """The anchors of an SSD, a RetinaNet or a Faster R-CNN; None of a detector that has none."""
    generator, matcher = _generator(detector), _matcher(detector)
    if generator is None:
        return None
    if isinstance(generator, DefaultBoxGenerator):
        width, height = _input_sides(detector)
        size = torch.tensor([width, height], dtype=torch.float64)
        pairs = [pair.double() for pair in generator._wh_pairs]
        shapes = [(pair.clamp(max=1) if generator.clip else pair) * size for pair in pairs]
        strides = _strides(detector, width, height)
        if generator.steps is not None:
            strides = torch.tensor(generator.steps, dtype=torch.float64)[:, None].expand(-1, 2)
    else:
        shapes = [(cells[:, 2:] - cells[:, :2]).double() for cells in generator.cell_anchors]
        strides = _strides(detector, *_input_sides(detector))
    counts = tuple(map(len, shapes))
    return AnchorGrid(
        torch.cat(shapes),
        counts,
        strides.repeat_interleave(torch.tensor(counts), 0),
        first=0.5 if isinstance(generator, DefaultBoxGenerator) else 0.0,
        threshold=float(matcher.high_threshold),
    )


def plain_levels(shapes: Tensor, counts: Sequence[int]) -> list[list[list[float]]]:
    """(k, 2) widths and heights as lists by map, rounded to tenths of a pixel."""
    return [[[round(side, 1) for side in shape] for shape in level.tolist()] for level in shapes.split(list(counts))]


def as_shapes(levels: Levels) -> list[Tensor]:
    """Of each map (k, 2) float64 width and height.

    Args:
        levels: of each map a list of [width, height], or {"sizes": […], "ratios": […]}: every size at every ratio of height to
            width, as torchvision's ``AnchorGenerator`` has them (which rounds them to whole pixels)

    Raises:
        ValueError: something else
    """
    result = []
    for number, level in enumerate(levels, start=1):
        try:
            if isinstance(level, Mapping):
                sizes, roots = level["sizes"], [math.sqrt(ratio) for ratio in level.get("ratios", [1.0])]
                level = [[size / root, size * root] for root in roots for size in sizes]
            shapes = torch.tensor([[float(side) for side in shape] for shape in level], dtype=torch.float64)
            good = shapes.dim() == 2 and shapes.shape[1] == 2 and bool((shapes.isfinite() & (shapes > 0)).all())
        except (TypeError, ValueError, KeyError, ZeroDivisionError):
            good = False
        if not good:
            raise ValueError(
                f"anchors: map {number} has {level!r}; expected a list of [width, height] in pixels, such as [[18, 18], [14, 26]], "
                "or {sizes: [16, 20], ratios: [0.5, 1, 2]}"
            )
        result.append(shapes)
    return result


def set_anchors(detector: nn.Module, levels: Levels) -> None:
    """Give the detector other anchors; ``detector.anchors`` has them in plain lists, for ``models.students.save_student``.

    Where their number at a place changes, the last layers of the head are built anew, with weights of the spread of the old ones.

    Raises:
        ValueError: a detector without anchors, another number of maps, or numbers that differ from map to map where the maps
            share a head (RetinaNet, Faster R-CNN)
    """
    generator, owner = _generator(detector), getattr(detector, "rpn", detector)
    if generator is None:
        raise ValueError(f"anchors: {type(detector).__name__} has none to set; SSD, RetinaNet and Faster R-CNN have")
    exact, before = as_shapes(levels), generator.num_anchors_per_location()
    counts = [len(level) for level in exact]
    rounded = plain_levels(torch.cat(exact), counts)
    detector.anchors = rounded  # type: ignore[assignment]
    shapes = as_shapes(rounded)  # weights.pt must give the same ones again
    if len(counts) != len(before):
        raise ValueError(f"anchors: the student has {len(before)} maps, found anchors for {len(counts)}")
    if isinstance(generator, DefaultBoxGenerator):
        size = torch.tensor(_input_sides(detector), dtype=torch.float64)
        owner.anchor_generator = DefaultBoxes(generator, [(level / size).float() for level in shapes])
    else:
        if len(set(counts)) > 1:
            raise ValueError(f"anchors: the student's maps share a head, and need as many anchors each; found {counts}")
        sizes = tuple(tuple(level.prod(1).sqrt().tolist()) for level in shapes)
        owner.anchor_generator = AnchorGenerator(sizes, ((1.0,),) * len(sizes))
        owner.anchor_generator.cell_anchors = [torch.cat([-level, level], 1).float() / 2 for level in shapes]
    if counts != before:
        _resize_head(detector, before, counts)


def _generator(detector: nn.Module) -> Any:
    if isinstance(detector, SSD | RetinaNet):
        return detector.anchor_generator
    return detector.rpn.anchor_generator if isinstance(detector, FasterRCNN) else None


def _matcher(detector: Any) -> Any:
    """What finds the objects of a loss. The RPN's own asks for 0.7, which published anchors rarely reach; the boxes' asks for 0.5."""
    return (
        detector.roi_heads.proposal_matcher
        if isinstance(detector, FasterRCNN)
        else getattr(detector, "proposal_matcher", None)
    )


def _input_sides(detector: Any) -> tuple[int, int]:
    """Width and height of the input; where only the shorter side is fixed, a square of it."""
    transform = detector.transform
    width, height = transform.fixed_size or (transform.min_size[-1],) * 2
    return int(width), int(height)


def _strides(detector: Any, width: int, height: int) -> Tensor:
    """(maps, 2) across and down, from the sizes of the maps of an empty image; a network on "meta" has sizes and no numbers."""
    fixed = detector.transform.fixed_size is not None
    if not fixed:
        width = height = 128 * math.ceil(height / 128)  # images are padded to multiples of the largest stride but one
    backbone = copy.deepcopy(detector.backbone).to("meta").eval()
    maps = backbone(torch.empty(1, 3, height, width, device="meta")).values()
    sides = torch.tensor([[values.shape[-1], values.shape[-2]] for values in maps], dtype=torch.float64)
    strides = torch.tensor([width, height], dtype=torch.float64) / sides
    return strides if fixed else strides.floor()


def _resize_head(detector: Any, before: Sequence[int], counts: Sequence[int]) -> None:
    """New last layers for ``counts`` anchors at a place of each map."""
    if isinstance(detector, SSD):
        for part in (detector.head.classification_head, detector.head.regression_head):
            for number, layer in enumerate(part.module_list):
                owner, name = (part.module_list, str(number)) if isinstance(layer, nn.Conv2d) else (layer, str(len(layer) - 1))
                _resize(owner, name, before[number], counts[number])
        return
    head = detector.rpn.head if isinstance(detector, FasterRCNN) else detector.head
    parts = [(head, "cls_logits"), (head, "bbox_pred")]
    if isinstance(detector, RetinaNet):
        parts = [(head.classification_head, "cls_logits"), (head.regression_head, "bbox_reg")]
    for owner, name in parts:
        _resize(owner, name, before[0], counts[0])


def _resize(owner: nn.Module, name: str, before: int, count: int) -> None:
    """Channels of a convolution go anchor by anchor; the biases of a new anchor are those of an old one."""
    old: Any = owner.get_submodule(name)
    new = nn.Conv2d(
        old.in_channels, old.out_channels // before * count, old.kernel_size, old.stride, old.padding, device=old.weight.device
    )
    with torch.no_grad():
        new.weight.copy_(torch.randn_like(new.weight) * old.weight.std())
        new.bias.view(count, -1).copy_(old.bias.view(before, -1)[torch.arange(count) % before])  # type: ignore[union-attr]
    setattr(owner, name, new)
