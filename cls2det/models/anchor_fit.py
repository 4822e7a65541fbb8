"""How well a detector's anchors fit the objects of a data set, and anchors that fit them better.

    objects = input_boxes(data, detector.transform)                # (n, 4) in pixels of the detector's input
    fit = measure(anchor_grid(detector), objects)                  # fit.mean_iou, fit.share
    set_anchors(detector, fitted(anchor_grid(detector), objects))

Ours, after the k-means on IoU of YOLO9000 (Redmon & Farhadi, CVPR 2017, sec. 2). Theirs compares shapes alone, about one centre.
Here an object is compared with the anchors where they are: a small one that lies between the places of a coarse map fits none
of that map, whatever its shape, so each map gets the objects that it can reach.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.data.dataset import DetectionData
from cls2det.models.anchors import AnchorGrid, plain_levels

MOST = 5000  # objects that a fit looks at, evenly taken from all
MEASURED = 50_000  # objects that a measurement looks at, so that COCO's 850 000 take no longer than a second
FEW = 10  # objects that are too few for a verdict
ROUNDS = 30  # of k-means; it settles earlier
CANDIDATES = 100  # objects whose shapes are tried for an idle anchor


@dataclasses.dataclass(frozen=True)
class Fit:
    """How well anchors fit objects.

    Attributes:
        objects: how many were looked at
        mean_iou: mean over the objects of the IoU with the anchor that fits best, from 0 to 1
        share: of the objects that have an anchor at the detector's own threshold
        threshold: that IoU
    """

    objects: int
    mean_iou: float
    share: float
    threshold: float


def input_boxes(data: DetectionData, transform: GeneralizedRCNNTransform) -> Tensor:
    """The boxes (n, 4) of all objects of a split as a detector gets them: xyxy in pixels of its resized images, not augmented."""
    boxes, sizes = data.targets.boxes().double(), data.targets.sizes()
    if transform.fixed_size is not None:
        scales = torch.tensor(transform.fixed_size, dtype=torch.float64) / sizes
    else:
        shorter, longer = sizes.min(1).values, sizes.max(1).values
        scales = (transform.min_size[-1] / shorter).minimum(transform.max_size / longer)[:, None].expand(-1, 2)
    return boxes * scales.repeat(1, 2).repeat_interleave(data.targets.counts(), 0)


def best_overlaps(grid: AnchorGrid, boxes: Tensor, most: int = MEASURED) -> Tensor:
    """(n,) IoU of each object with its best anchor; of ``most`` objects, evenly taken, where there are more."""
    parts = [grid.overlaps(part).amax(1) for part in evenly(boxes, most).split(4096)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)


def measure(grid: AnchorGrid, boxes: Tensor) -> Fit:
    """The fit of a detector's anchors to objects (n, 4) in pixels of its input; ValueError where there is none."""
    if not len(boxes):
        raise ValueError("there is no object to fit anchors to")
    best = best_overlaps(grid, boxes)
    share = (best >= grid.threshold).double().mean().item()
    return Fit(len(boxes), best.mean().item(), share, grid.threshold)


def fitted(grid: AnchorGrid, boxes: Tensor) -> list[list[list[float]]]:
    """As many anchors per map as ``grid`` has, moved to where they fit ``boxes`` (n, 4): [width, height] of each, in pixels.

    k-means with the IoU for its distance and the mean for its centres, from three beginnings: the detector's own, groups of equal
    number by size, and by ratio within these. An anchor that is the best of no object goes to where it helps most. The best sum of
    mean IoU and share wins, so anchors never fit worse than the detector's own. No draw is made: the same objects give the same
    anchors.
    """
    if not len(boxes):
        raise ValueError("there is no object to fit anchors to")
    boxes = evenly(boxes.double(), MOST)
    sides = boxes[:, 2:] - boxes[:, :2]
    results = []
    for start in (grid.shapes, _by_size(grid, sides), _by_ratio(grid, sides)):
        first = _k_means(grid, boxes, sides, start)
        results += [first, _k_means(grid, boxes, sides, _employed(grid, boxes, sides, first[1]))]
    _, shapes = max(results, key=lambda result: result[0])
    levels = shapes.clamp(min=0.1).split(list(grid.counts))
    ordered = [level[level.prod(1).argsort(stable=True)] for level in levels]
    return plain_levels(torch.cat(ordered), grid.counts)


def evenly(rows: Tensor, most: int) -> Tensor:
    """At most ``most`` rows, in their order, evenly taken from all."""
    return rows if len(rows) <= most else rows[torch.arange(most) * len(rows) // most]


def _k_means(grid: AnchorGrid, boxes: Tensor, sides: Tensor, shapes: Tensor) -> tuple[float, Tensor]:
    """Score and shapes of the best round: a round need not be better than the one before, as the mean is not the best centre."""
    results = []
    for _ in range(ROUNDS):
        best, owner = grid.overlaps(boxes, shapes).max(1)
        results.append(((best.mean() + (best >= grid.threshold).double().mean()).item(), shapes))
        counts = torch.bincount(owner, minlength=len(shapes))[:, None]
        means = torch.zeros_like(shapes).index_add_(0, owner, sides) / counts
        moved = torch.where(counts > 0, means, shapes)
        if torch.equal(moved, shapes):
            break
        shapes = moved
    return max(results, key=lambda result: result[0])


def _employed(grid: AnchorGrid, boxes: Tensor, sides: Tensor, shapes: Tensor) -> Tensor:
    """Each anchor that is the best of no object takes the shape of that of some objects which raises the mean IoU most."""
    best, owner = grid.overlaps(boxes, shapes).max(1)
    candidates, shapes = evenly(sides[sides.prod(1).argsort(stable=True)], CANDIDATES), shapes.clone()
    for idle in (torch.bincount(owner, minlength=len(shapes)) == 0).nonzero()[:, 0].tolist():
        with_each = grid.overlaps(boxes, candidates, grid.strides[idle]).maximum(best[:, None])
        chosen = with_each.sum(0).argmax()
        if with_each[:, chosen].sum() > best.sum():
            shapes[idle], best = candidates[chosen], with_each[:, chosen]
    return shapes


def _by_size(grid: AnchorGrid, sides: Tensor) -> Tensor:
    """The middle shape of groups of equal number in order of area, small ones on the first maps."""
    order = sides.prod(1).argsort(stable=True)
    return torch.stack([sides[group].median(0).values for group in _groups(order, len(grid.shapes))])


def _by_ratio(grid: AnchorGrid, sides: Tensor) -> Tensor:
    """The same with groups by area for the maps, and within these by ratio."""
    order, total, first, shapes = sides.prod(1).argsort(stable=True), len(grid.shapes), 0, []
    for count in grid.counts:
        level = _groups(order, total, first, count)
        rows = torch.cat(level)
        by_ratio = rows[(sides[rows, 0] / sides[rows, 1]).argsort(stable=True)]
        shapes += [sides[group].median(0).values for group in _groups(by_ratio, count)]
        first += count
    return torch.stack(shapes)


def _groups(order: Tensor, total: int, first: int = 0, count: int | None = None) -> list[Tensor]:
    """``count`` of ``total`` groups of equal number from the one with number ``first``; each has one row at least."""
    last = total if count is None else first + count
    edges = [number * len(order) // total for number in range(total + 1)]
    starts = [min(edges[number], len(order) - 1) for number in range(total)]
    return [order[starts[number] : max(edges[number + 1], starts[number] + 1)] for number in range(first, last)]
