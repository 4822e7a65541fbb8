"""Sizes that fit no block, warp or vector, and boxes that fit no map: every back end against the reference in float64."""

from __future__ import annotations

import pytest
import torch

import cls2det_ops
from helpers import DTYPES, compare, safe_boxes

CLASSES = (1, 3, 20, 32, 33, 80, 81, 91, 128, 129, 1000, 1203)  # of rows held in registers once, four times, or not at all

MAPS = {  # channels, height, width, bins, samples
    "one pixel": (3, 1, 1, 2, 4),
    "one row": (5, 1, 23, (1, 3), (2, 7)),
    "one column": (4, 23, 1, (3, 1), (7, 2)),
    "1 channel, 1 bin": (1, 9, 11, 1, 1),
    "20 channels, overlapping bins": (20, 13, 9, 8, 28),
    "33 channels, more samples than pixels": (33, 5, 6, 7, 33),
    "80 channels": (80, 7, 9, 2, 5),
    "81 channels, several blocks per box": (81, 10, 12, 8, 12),
    "91 channels": (91, 6, 5, 3, 7),
    "1000 channels": (1000, 4, 3, 2, 3),
    "1203 channels": (1203, 3, 4, (1, 2), (3, 5)),
    "more bins than samples": (2, 8, 9, 7, 5),
    "many bins along each axis": (17, 21, 38, (2, 40), 40),
    "more bins than the tile of a map gradient": (17, 21, 38, (33, 5), (7, 64)),
    "wide bins": (3, 37, 64, 3, 60),
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def below(size: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(size, (count,), generator=torch.Generator().manual_seed(seed))


def awkward_boxes(count: int, height: int, width: int, samples: int | tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Boxes of zero area, without height, inverted, and outside on each side; then ordinary ones."""
    boxes = safe_boxes(count, height, width, samples, seed=seed, margin=1e-5)
    x, y = 0.43 * width + 0.0137, 0.39 * height + 0.0173
    special = [[x, y, x, y], [x - 0.31, y, x + 0.29, y], [-9.3, y, -4.2, y + 1.1], [width + 3.7, y, width + 9.2, y + 2.3],
               [x, -8.1, x + 2.2, -3.3], [x, height + 2.9, x + 1.3, height + 7.7]]  # fmt: skip
    boxes[1] = boxes[1, [2, 3, 0, 1]]
    boxes[2 : 2 + len(special)] = torch.tensor(special, dtype=torch.float64)
    return boxes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", CLASSES)
def test_rows_of_logits(backend, classes, dtype):
    match = below(6, 19) - 1  # -1 is ignored
    for function, columns, options in (
        (cls2det_ops.kd_softmax_loss, classes, {"background": "none"}),
        (cls2det_ops.kd_softmax_loss, classes + 1, {"background": "first"}),
        (cls2det_ops.kd_softmax_loss, classes + 1, {"background": "last"}),
        (cls2det_ops.kd_sigmoid_loss, classes, {"mode": "bce"}),
        (cls2det_ops.kd_sigmoid_loss, classes, {"mode": "l1norm"}),
        (cls2det_ops.kd_sigmoid_loss, classes + 1, {"mode": "l1norm", "background": "last"}),
    ):
        tensors = {"student_logits": normal(19, columns), "teacher_logits": normal(5, classes, seed=1), "matched_idxs": match}
        compare(backend, function, tensors, {"reduction": "none", **options}, dtype, ("student_logits",))


@pytest.mark.parametrize("rows", [1, 8, 9, 257, 1030])
@pytest.mark.parametrize("name", ["kd_softmax_loss", "kd_sigmoid_loss"])
def test_numbers_of_rows(backend, name, rows):
    columns = 6 if name == "kd_softmax_loss" else 5
    tensors = {"student_logits": normal(rows, columns), "teacher_logits": normal(3, 5), "matched_idxs": below(3, rows)}
    function = getattr(cls2det_ops, name)
    compare(backend, function, tensors, {"reduction": "none"}, torch.float32, ("student_logits",))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("shape", MAPS)
def test_roi_avg_pool(backend, shape, padding_mode, channels_last):
    channels, height, width, bins, samples = MAPS[shape]
    memory = torch.channels_last if channels_last else torch.contiguous_format
    tensors = {
        "features": normal(2, channels, height, width).contiguous(memory_format=memory),
        "boxes": awkward_boxes(10, height, width, samples),
        "image_index": torch.tensor([0, 1, 1, 7, 0, 1, 0, 0, 1, -1]),
    }
    options = {"output_size": bins, "sampling_size": samples, "padding_mode": padding_mode, "clip": channels_last}
    compare(backend, cls2det_ops.roi_avg_pool, tensors, options, torch.float64, ("features", "boxes"))


@pytest.mark.parametrize("shape", MAPS)
def test_roi_feature_loss(backend, shape):
    channels, height, width, bins, samples = MAPS[shape]
    tensors = {
        "features": normal(2, channels, height, width),
        "boxes": awkward_boxes(12, height, width, samples),
        "image_index": torch.tensor([0, 0, 1, 1, 0, 1, 1, 0, 1, 0, 2, 1]),
        "target_boxes": awkward_boxes(9, height, width, samples, seed=1),
        "target_image_index": torch.tensor([0, 1, 0, 1, 0, 1, 0, -1, 1]),
        "matched_idxs": torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, -1]),
        "target_features": normal(2, channels, height, width, seed=1),
    }
    options = {"output_size": bins, "sampling_size": samples, "loss": "l2", "reduction": "none", "clip": False}
    compare(backend, cls2det_ops.roi_feature_loss, tensors, options, torch.float64, ("features", "boxes"))


@pytest.mark.parametrize("shape", MAPS)
def test_matched_feature_loss(backend, shape):
    channels, height, width, bins, _ = MAPS[shape]
    tensors = {
        "features": normal(11, channels, height, width),
        "target_features": normal(3, channels, height, width, seed=1),
        "matched_idxs": below(5, 11) - 1,
    }
    options = {"output_size": bins, "loss": "smooth_l1", "reduction": "none"}
    compare(backend, cls2det_ops.matched_feature_loss, tensors, options, torch.float64, ("features",))


@pytest.mark.parametrize("size", [1, (3, 40), (40, 3), (2, 1100)], ids=str)
@pytest.mark.parametrize("shape", ["one pixel", "one row", "one column", "81 channels, several blocks per box", "wide bins"])
def test_roi_crop(backend, shape, size):
    channels, height, width, *_ = MAPS[shape]
    boxes = awkward_boxes(8, height, width, size)
    tensors = {"images": normal(2, channels, height, width), "boxes": boxes, "image_index": below(4, 8) - 1}
    for clip in (True, False):
        options = {"output_size": size, "clip": clip}
        compare(backend, cls2det_ops.roi_crop, tensors, options, torch.float64, ("images", "boxes"))


@pytest.mark.parametrize("channels", [1, 9, 40])
def test_map_gradients_of_more_boxes_than_a_block_has_threads(backend, channels):
    """The emulation has little scratch memory, so that the channels also go in several parts."""
    of_target = torch.tensor([0, 1, 1, 0, 5])  # the last has no image: its rows are ignored
    match = below(5, 800)
    match = match[of_target[match].argsort()]  # image 1 has no box among the first 256, which are searched together
    assert of_target[match[255]] == 0
    tensors = {
        "features": normal(2, channels, 18, 20),
        "boxes": safe_boxes(len(match), 18, 20, 4),
        "image_index": of_target[match],
        "target_boxes": safe_boxes(5, 18, 20, 4, seed=1),
        "target_image_index": of_target,
        "matched_idxs": match,
        "target_features": normal(2, channels, 18, 20, seed=1),
    }
    options = {"output_size": 2, "sampling_size": 4, "loss": "l2"}
    compare(backend, cls2det_ops.roi_feature_loss, tensors, options, torch.float64, ("features", "boxes"))
