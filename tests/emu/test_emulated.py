"""The paths inside the CUDA kernels that the sizes of the shared operator tests do not reach, run by the emulator."""

from __future__ import annotations

import pytest
import torch

import cls2det_ops
import emulated
from helpers import DTYPES, Backend, cast, compare, evaluate, safe_boxes
from op_cases import PUBLIC_OPS, make_case

EMULATED = Backend("emulated", "cpu", emulated.Emulated)
pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=emulated.missing())


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def below(size: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(size, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 3, 20, 32, 33, 81, 128, 129, 1203])  # one register per lane, four, or none
def test_rows_of_logits_of_any_length(classes: int, dtype: torch.dtype) -> None:
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
        compare(EMULATED, function, tensors, {"reduction": "none", **options}, dtype, ("student_logits",))


# (bins, samples): one lane per bin, 4 and 16; more bins than the map gradient holds at once; overlapping bins; upsampling
POOLINGS = [(1, 1), (7, 14), (8, 28), (3, 60), ((2, 40), (9, 40)), (40, 33), ((33, 5), (7, 64))]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("sizes", POOLINGS, ids=str)
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_pools_of_many_shapes(sizes: tuple, layout: str, padding_mode: str) -> None:
    bins, samples = sizes
    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    tensors = {
        "features": normal(2, 17, 21, 38).contiguous(memory_format=memory),
        "boxes": safe_boxes(5, 21, 38, samples),
        "image_index": torch.tensor([0, 1, 1, 7, 0]),
    }
    options = {"output_size": bins, "sampling_size": samples, "padding_mode": padding_mode}
    compare(EMULATED, cls2det_ops.roi_avg_pool, tensors, options, torch.float32, ("features", "boxes"))


@pytest.mark.parametrize("size", [1, (3, 40), (40, 3), (2, 1100)], ids=str)
def test_crops_of_many_shapes(size: int | tuple[int, int]) -> None:
    boxes = safe_boxes(4, 19, 35, size, margin=1e-5)
    boxes[1] = boxes[1, [2, 3, 0, 1]]  # inverted
    tensors = {"images": normal(2, 3, 19, 35), "boxes": boxes, "image_index": torch.tensor([1, 0, -1, 1])}
    compare(EMULATED, cls2det_ops.roi_crop, tensors, {"output_size": size}, torch.float64, ("images", "boxes"))


@pytest.mark.parametrize("channels", [1, 9, 40])
def test_map_gradients_of_more_boxes_than_a_block_has_threads(channels: int) -> None:
    """Also in more than one part of the channels: the emulation's scratch memory is small."""
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
    compare(EMULATED, cls2det_ops.roi_feature_loss, tensors, options, torch.float64, ("features", "boxes"))


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_the_order_of_threads_changes_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(name)
    results = []
    for order in ("forward", "reverse"):
        monkeypatch.setenv("CLS2DET_EMULATOR_ORDER", order)
        results.append(evaluate(EMULATED, case.function, cast(case.tensors, torch.float32), case.options, case.gradients))
    (output, grads), (again, grads_again) = results
    assert torch.equal(output, again)
    assert all(torch.equal(grads[key], grads_again[key]) for key in grads)
