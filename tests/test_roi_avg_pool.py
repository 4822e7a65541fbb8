"""roi_avg_pool: against torchvision's roi_align where the two must agree, and every back end against the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cls2det_ops import roi_avg_pool, roi_crop
from helpers import DTYPES, ORACLE, assert_close, compare, evaluate, safe_boxes


def scene(channels: int, height: int, width: int, samples: int | tuple[int, int], scale: float = 1.0, count: int = 8) -> dict:
    random = torch.Generator().manual_seed(channels)
    return {
        "features": torch.randn(3, channels, height, width, generator=random, dtype=torch.float64),
        "boxes": safe_boxes(count, height, width, samples, scale=scale),
        "image_index": torch.randint(3, (count,), generator=random),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("bins", "ratio"), [(7, 2), (4, 3), (1, 5), ((2, 3), 4)])
def test_equals_torchvision_roi_align_inside_the_image(backend, dtype, bins, ratio):
    """Where no sample leaves the map and the bins share no sample, both are one mean of the same bilinear samples."""
    ops = pytest.importorskip("torchvision.ops")
    scale, height, width = 0.25, 21, 30
    random = torch.Generator().manual_seed(1)
    features = torch.randn(2, 5, height, width, generator=random, dtype=dtype)
    low = torch.rand(9, 2, generator=random) * 6 + 1
    high = low + torch.rand(9, 2, generator=random) * torch.tensor([20.0, 11.0]) + 0.5
    boxes = (torch.cat([low, high], 1) / scale).to(dtype)
    image_index = torch.randint(2, (9,), generator=random)
    size = (bins, bins) if isinstance(bins, int) else bins
    rois = torch.cat([image_index[:, None].to(dtype), boxes], 1)
    leaf = features.clone().requires_grad_()
    expected = ops.roi_align(leaf, rois, size, scale, ratio, aligned=True)
    upstream = torch.randn(expected.shape, generator=random, dtype=dtype)
    (expected_grad,) = torch.autograd.grad(expected, leaf, upstream)

    tensors = {"features": features, "boxes": boxes, "image_index": image_index}
    options = {"output_size": bins, "sampling_size": (size[0] * ratio, size[1] * ratio), "spatial_scale": scale}
    output, grads = evaluate(backend, roi_avg_pool, tensors, options, ("features",), upstream)
    assert_close(output, expected.detach())
    assert_close(grads["features"], expected_grad)


@pytest.mark.parametrize(("samples", "bins"), [(28, 8), (5, 7), (6, 6), ((9, 4), (2, 3)), (1, 1), (112, 4)])
def test_equals_adaptive_pooling_of_the_crop(backend, samples, bins):
    """Overlapping bins where P does not divide S, repeated samples where S < P."""
    tensors = scene(3, 15, 22, samples, scale=0.5)
    options = {"output_size": bins, "sampling_size": samples, "spatial_scale": 0.5}
    output, grads = evaluate(backend, roi_avg_pool, tensors, options, ("features", "boxes"))

    def crop_then_pool(features: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(roi_crop(features, boxes * 0.5, image_index, samples), bins)

    expected, expected_grads = evaluate(ORACLE, crop_then_pool, tensors, None, ("features", "boxes"))
    assert_close(output, expected)
    for name in grads:
        assert_close(grads[name], expected_grads[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "height", "width", "samples", "bins", "scale", "padding_mode", "clip", "index"),
    [
        (1, 9, 23, 14, 7, 1 / 16, "zeros", True, torch.int64),
        (3, 38, 31, 28, 4, 1.0, "border", True, torch.int32),
        (4, 12, 12, (6, 9), (3, 2), 0.5, "zeros", False, torch.int64),
        (16, 5, 7, 5, 7, 0.25, "border", False, torch.int64),
        (17, 16, 8, 28, 8, 1 / 8, "zeros", True, torch.int32),
        (20, 7, 9, 3, 3, 0.3, "zeros", True, torch.int64),
        (64, 19, 19, 28, 8, 0.25, "zeros", True, torch.int64),
        (81, 6, 10, 4, 2, 0.5, "border", True, torch.int64),
    ],
)
def test_matches_reference(backend, dtype, channels, height, width, samples, bins, scale, padding_mode, clip, index):
    tensors = scene(channels, height, width, samples, scale)
    options = {"output_size": bins, "sampling_size": samples, "spatial_scale": scale,
               "padding_mode": padding_mode, "clip": clip}  # fmt: skip
    layout = {"features": lambda t: t.contiguous(memory_format=torch.channels_last)} if channels % 2 else None
    output, _ = compare(backend, roi_avg_pool, tensors, options, dtype, ("features", "boxes"), layout, index)
    assert output.dtype == dtype


SPECIAL_BOXES = {
    "outside": [-9.2, 2.13, -3.1, 6.37],
    "zero_area": [4.23, 3.71, 4.23, 3.71],
    "inverted": [8.92, 6.41, 2.31, 1.17],
    "tiny": [4.231, 3.713, 4.233, 3.718],
    "bigger_than_the_map": [-40.2, -30.7, 61.3, 55.9],
    "on_all_borders": [0.0, 0.0, 12.0, 10.0],
    "one_pixel": [3.0, 2.0, 4.0, 3.0],
}


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("shape", SPECIAL_BOXES)
def test_special_boxes(backend, shape, clip, padding_mode):
    random = torch.Generator().manual_seed(0)
    tensors = {
        "features": torch.randn(1, 5, 10, 12, generator=random, dtype=torch.float64),
        "boxes": torch.tensor([SPECIAL_BOXES[shape]], dtype=torch.float64),
        "image_index": torch.zeros(1, dtype=torch.int64),
    }
    options = {"output_size": 3, "sampling_size": 8, "clip": clip, "padding_mode": padding_mode}
    compare(backend, roi_avg_pool, tensors, options, torch.float64, ("features", "boxes"))


@pytest.mark.parametrize("height_width", [(1, 1), (1, 8), (8, 1)])
def test_one_pixel_maps(backend, height_width):
    tensors = scene(6, *height_width, samples=4)
    for padding_mode in ("zeros", "border"):
        options = {"output_size": 2, "sampling_size": 4, "padding_mode": padding_mode, "clip": False}
        compare(backend, roi_avg_pool, tensors, options, torch.float64, ("features", "boxes"))


def test_constant_map_inside_pools_to_the_constant(backend):
    features = torch.full((1, 3, 20, 20), 1.5)
    boxes = torch.tensor([[2.2, 3.3, 17.1, 12.8], [5.0, 5.0, 5.0, 5.0]])
    output, grads = evaluate(
        backend, roi_avg_pool, {"features": features, "boxes": boxes, "image_index": torch.zeros(2, dtype=torch.int64)},
        {"output_size": 4, "sampling_size": 9}, ("boxes", "features"), torch.ones(2, 3, 4, 4),
    )  # fmt: skip
    assert_close(output, torch.full((2, 3, 4, 4), 1.5))
    assert grads["boxes"].abs().max() < 1e-4
    assert_close(grads["features"].sum(), torch.tensor(2.0 * 3 * 16))  # every bin spreads a weight of 1 over the map


def test_rows_of_unknown_images_are_zero_and_nan_boxes_are_nan(backend):
    tensors = scene(4, 9, 9, 6)
    clean, _ = evaluate(backend, roi_avg_pool, tensors, {"output_size": 3, "sampling_size": 6})
    tensors["image_index"][1], tensors["image_index"][4] = -1, 3
    tensors["boxes"][2, 1] = float("nan")
    output, _ = evaluate(backend, roi_avg_pool, tensors, {"output_size": 3, "sampling_size": 6})
    assert (output[[1, 4]] == 0).all()
    assert output[2].isnan().all()
    others = [0, 3, 5, 6, 7]
    assert_close(output[others], clean[others])


@pytest.mark.parametrize("channels", [3, 20])
def test_infinite_pixel_shows_only_where_it_is_read(backend, channels):
    """Two samples per bin on a wide box leave most pixels unread, and their values must not matter."""
    tensors = scene(channels, 24, 40, 4)
    options = {"output_size": 2, "sampling_size": 4, "clip": False}
    clean, _ = evaluate(backend, roi_avg_pool, tensors, options)
    tensors["features"][:, :, ::5, ::3] = float("inf")
    crops, _ = evaluate(ORACLE, roi_crop, {"images": tensors["features"], "boxes": tensors["boxes"],
                                           "image_index": tensors["image_index"]}, {"output_size": 4, "clip": False})  # fmt: skip
    expected = F.adaptive_avg_pool2d(crops, 2)
    assert expected.isfinite().any() and not expected.isfinite().all()
    output, _ = evaluate(backend, roi_avg_pool, tensors, options)
    assert_close(output, expected, nan=True)
    same = expected.isfinite().to(output.device)
    assert_close(output[same], clean[same])


@pytest.mark.parametrize("gradients", [("features",), ("boxes",)])
def test_one_gradient_at_a_time(backend, gradients):
    options = {"output_size": 3, "sampling_size": 8}
    compare(backend, roi_avg_pool, scene(5, 9, 11, 8), options, torch.float64, gradients)


@pytest.mark.parametrize(("samples", "bins", "padding_mode"), [(4, 2, "zeros"), (5, 3, "border"), (2, 3, "zeros")])
def test_gradcheck(backend, samples, bins, padding_mode):
    tensors = {key: value.to(backend.device) for key, value in scene(2, 5, 6, samples, 0.5, count=3).items()}
    with backend.context():
        assert torch.autograd.gradcheck(
            lambda f, b: roi_avg_pool(f, b, tensors["image_index"], bins, samples, 0.5, padding_mode=padding_mode),
            (tensors["features"].requires_grad_(), tensors["boxes"].requires_grad_()),
        )
