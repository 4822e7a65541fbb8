"""imitation_mask: against torchvision's box_iou and a Python loop over boxes, and every back end against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cls2det_ops import imitation_mask
from helpers import DTYPES, accumulate, evaluate

ASSIGNMENTS = ("level", "all", "best")
SIZES = (600, 37, 0, 150, 1)


def random_boxes(count: int, seed: int, largest: float = 40.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=random, dtype=torch.float64) * 100
    return torch.cat([low, low + 1 + torch.rand(count, 2, generator=random, dtype=torch.float64) * largest], 1)


def scene(boxes: int = 12, sizes: tuple[int, ...] = SIZES, images: int = 3) -> dict[str, Tensor]:
    index = torch.randint(images, (boxes,), generator=torch.Generator().manual_seed(9))
    return {"anchors": random_boxes(sum(sizes), 1), "boxes": random_boxes(boxes, 2, 60.0), "image_index": index}


def plain_iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = width * height if width > 0 and height > 0 else 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


def by_loops(anchors, boxes, image_index, images, level_sizes, factor, assignment) -> Tensor:
    mask = torch.zeros(images, len(anchors), dtype=torch.bool)
    levels = [list(part) for part in torch.arange(len(anchors)).split(level_sizes)]
    for box, image in zip(boxes.tolist(), image_index.tolist(), strict=True):
        overlaps = [plain_iou(anchor, box) for anchor in anchors.tolist()]
        best = max(range(len(levels)), key=lambda i: max((overlaps[n] for n in levels[i]), default=0.0))
        groups = {"level": levels, "all": [[n for level in levels for n in level]], "best": [levels[best]]}[assignment]
        for group in groups:
            most = max((overlaps[n] for n in group), default=0.0)
            for n in group:
                mask[image, n] |= most > 0 and overlaps[n] > factor * most
    return mask


@pytest.mark.parametrize("factor", [0.3, 0.5, 0.95])
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_equals_a_loop_over_boxes(backend, assignment, factor):
    options = {"images": 3, "level_sizes": SIZES, "factor": factor, "assignment": assignment}
    mask, _ = evaluate(backend, imitation_mask, scene(), options)
    assert mask.dtype == torch.bool
    assert mask.any()
    assert torch.equal(mask.cpu(), by_loops(**scene(), **options))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_equals_box_iou(backend, assignment, dtype):
    """On enough anchors for several blocks and chunks."""
    box_iou = pytest.importorskip("torchvision.ops").box_iou
    sizes = (1500, 700, 90)
    tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in scene(20, sizes).items()}
    iou = box_iou(tensors["boxes"].to(accumulate(dtype)), tensors["anchors"].to(accumulate(dtype)))
    most = torch.stack([part.amax(1) for part in iou.split(sizes, 1)], 1)
    if assignment == "best":
        most = torch.where(most == most.amax(1, keepdim=True), most, torch.inf)
    elif assignment == "all":
        most = most.amax(1, keepdim=True).expand_as(most)
    near = iou > 0.5 * torch.repeat_interleave(most, torch.tensor(sizes), 1)
    expected = torch.stack([near[tensors["image_index"] == image].any(0) for image in range(3)])
    mask, _ = evaluate(backend, imitation_mask, tensors, {"images": 3, "level_sizes": sizes, "assignment": assignment})
    assert torch.equal(mask.cpu(), expected)


def test_assignments_differ_as_they_should(backend):
    """One box, two levels: the second level's best anchor overlaps far less than the first one's."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 2], [0, 0, 10, 3], [0, 0, 10, 6]])
    tensors = {"anchors": anchors, "boxes": anchors[:1], "image_index": torch.tensor([0])}
    expected = {"level": [1, 1, 0, 0, 1], "all": [1, 1, 0, 0, 1], "best": [1, 1, 0, 0, 0]}
    for assignment, marked in expected.items():
        mask, _ = evaluate(backend, imitation_mask, tensors, {"images": 1, "level_sizes": (2, 3), "assignment": assignment})
        assert mask.int().tolist() == [marked], assignment
    tensors["anchors"] = anchors[:4]
    for assignment, marked in {"level": [1, 1, 1, 1], "all": [1, 1, 0, 0], "best": [1, 1, 0, 0]}.items():
        mask, _ = evaluate(backend, imitation_mask, tensors, {"images": 1, "level_sizes": (2, 2), "assignment": assignment})
        assert mask.int().tolist() == [marked], assignment


def test_first_level_of_equal_ones_is_the_best(backend):
    anchors = torch.tensor([[0.0, 0, 4, 4], [0, 0, 10, 10], [0, 0, 10, 10]])
    tensors = {"anchors": anchors, "boxes": anchors[1:2], "image_index": torch.tensor([0])}
    mask, _ = evaluate(backend, imitation_mask, tensors, {"images": 1, "level_sizes": (1, 1, 1), "assignment": "best"})
    assert mask.tolist() == [[False, True, False]]


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("kind", ["nan", "inf", "outside", "inverted", "point", "other image"])
def test_boxes_that_mark_nothing(backend, kind, assignment):
    tensors = scene()
    options = {"images": 3, "level_sizes": SIZES, "assignment": assignment}
    others = {key: value[1:] if key != "anchors" else value for key, value in tensors.items()}
    expected, _ = evaluate(backend, imitation_mask, others, options)
    if kind == "other image":
        tensors["image_index"][0] = 3
    else:
        x1, y1, x2, y2 = tensors["boxes"][0].tolist()
        boxes = {"nan": [x1, float("nan"), x2, y2], "inf": [x1, y1, float("inf"), y2], "outside": [500.0, 500, 600, 600]}
        boxes |= {"inverted": [x2, y1, x1, y2], "point": [x1, y1, x1, y1]}
        tensors["boxes"][0] = torch.tensor(boxes[kind], dtype=torch.float64)
    mask, _ = evaluate(backend, imitation_mask, tensors, options)
    assert torch.equal(mask, expected)


def test_nan_anchors_are_not_marked(backend):
    tensors = scene()
    tensors["anchors"][::2, 2] = float("nan")
    mask, _ = evaluate(backend, imitation_mask, tensors, {"images": 3, "level_sizes": SIZES})
    assert not mask[:, ::2].any()
    assert mask[:, 1::2].any()


@pytest.mark.parametrize(("boxes", "anchors", "images"), [(0, 5, 2), (4, 0, 2), (4, 5, 0), (0, 0, 0)])
def test_empty(backend, boxes, anchors, images):
    tensors = scene(boxes, (anchors,), max(images, 1))
    mask, _ = evaluate(backend, imitation_mask, tensors, {"images": images, "level_sizes": (anchors,)})
    assert mask.shape == (images, anchors)
    assert boxes * anchors * images or not mask.any()


def test_sixteen_levels(backend):
    sizes = tuple(range(3, 19))
    options = {"images": 2, "level_sizes": sizes, "factor": 0.5, "assignment": "level"}
    tensors = scene(9, sizes, 2)
    mask, _ = evaluate(backend, imitation_mask, tensors, options)
    assert torch.equal(mask.cpu(), by_loops(**tensors, **options))
