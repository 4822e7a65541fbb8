"""roi_crop: against torch's own affine_grid and grid_sample, and every back end against the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cls2det_ops import roi_crop
from helpers import DTYPES, ORACLE, assert_close, cast, compare, evaluate, safe_boxes

HEIGHT, WIDTH = 9, 13
SPECIAL_BOXES = {  # x1, y1, x2, y2 on a 9 x 13 image
    "inside": (2.31, 1.17, 8.92, 6.41),
    "over_left_top": (-3.3, -2.4, 5.17, 4.87),
    "over_right_bottom": (7.63, 5.21, 16.8, 12.7),
    "bigger_than_image": (-4.21, -3.37, 19.1, 15.2),
    "whole_image": (0.0, 0.0, 13.0, 9.0),
    "outside_left": (-9.2, 2.13, -3.1, 6.37),
    "outside_right": (15.3, 2.13, 19.4, 6.37),
    "outside_below": (2.31, 11.2, 6.77, 14.9),
    "zero_width": (4.23, 1.17, 4.23, 6.41),
    "zero_area": (4.23, 3.71, 4.23, 3.71),
    "inverted": (8.92, 6.41, 2.31, 1.17),
    "tiny": (4.231, 3.713, 4.233, 3.718),
    "wide": (0.4, 4.27, 12.3, 4.61),
}


def torch_crop(images: Tensor, boxes: Tensor, image_index: Tensor, size: tuple[int, int], padding: str, clip: bool) -> Tensor:
    """One affine_grid and grid_sample per box, on a copy of its image: nothing of ours.

    Clipping by where: the gradient of clamp at equality differs between versions of torch.
    """
    height, width = images.shape[2:]
    crops = []
    for box, image in zip(boxes, images[image_index], strict=True):
        left, top, right, bottom = box
        if clip:
            left, top = torch.where(left < 0, 0.0, left), torch.where(top < 0, 0.0, top)
            right = torch.where(right > width, float(width), right)
            bottom = torch.where(bottom > height, float(height), bottom)
        zero = torch.zeros_like(left)
        theta = torch.stack([
            torch.stack([(right - left) / width, zero, -1 + (left + right) / width]),
            torch.stack([zero, (bottom - top) / height, -1 + (top + bottom) / height]),
        ])  # fmt: skip
        grid = F.affine_grid(theta[None], [1, images.shape[1], *size], align_corners=False)
        crops.append(F.grid_sample(image[None], grid, padding_mode=padding, align_corners=False)[0])
    return torch.stack(crops)


def scene(images: int = 3, channels: int = 2) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    boxes = torch.tensor(list(SPECIAL_BOXES.values()), dtype=torch.float64)
    return {
        "images": torch.randn(images, channels, HEIGHT, WIDTH, generator=random, dtype=torch.float64),
        "boxes": boxes,
        "image_index": torch.arange(len(boxes)) % images,
    }


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_torch_grid_sample(backend, dtype, padding_mode, clip):
    tensors = cast(scene(), dtype)
    size = (6, 8)  # even: no sample on the middle pixel of the whole image
    options = {"output_size": size, "padding_mode": padding_mode, "clip": clip}
    output, grads = evaluate(backend, roi_crop, tensors, options, ("images", "boxes"))
    exact = cast(tensors, torch.float64)
    fact = {"size": size, "padding": padding_mode, "clip": clip}
    expected, expected_grads = evaluate(backend=ORACLE, function=torch_crop, tensors=exact, options=fact,
                                        gradients=("images", "boxes"))  # fmt: skip
    for row, name in enumerate(SPECIAL_BOXES):
        try:
            assert_close(output[row], expected[row], tolerance={torch.float64: 1e-11, torch.float32: 2e-5}[dtype])
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
    assert_close(grads["images"], expected_grads["images"])
    assert_close(grads["boxes"], expected_grads["boxes"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "height", "width", "size", "padding_mode", "clip", "index"),
    [
        (1, 7, 19, 3, "zeros", True, torch.int64),
        (3, 37, 21, (9, 14), "border", False, torch.int32),
        (4, 16, 16, 8, "zeros", False, torch.int64),
        (7, 5, 6, (17, 2), "border", True, torch.int64),
        (17, 12, 33, 1, "zeros", True, torch.int32),
        (33, 11, 9, (4, 19), "zeros", True, torch.int64),
        (64, 20, 24, 7, "zeros", True, torch.int64),
    ],
)
def test_matches_reference(backend, dtype, channels, height, width, size, padding_mode, clip, index):
    random = torch.Generator().manual_seed(channels)
    tensors = {
        "images": torch.randn(2, channels, height, width, generator=random, dtype=torch.float64),
        "boxes": safe_boxes(9, height, width, size),
        "image_index": torch.randint(2, (9,), generator=random),
    }
    options = {"output_size": size, "padding_mode": padding_mode, "clip": clip}
    output, _ = compare(backend, roi_crop, tensors, options, dtype, ("images", "boxes"), index=index)
    assert output.dtype == dtype
    assert output.is_contiguous()


@pytest.mark.parametrize("gradients", [("images",), ("boxes",)])
def test_one_gradient_at_a_time(backend, gradients):
    compare(backend, roi_crop, scene(), {"output_size": 6}, torch.float64, gradients)


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1)])
def test_one_pixel_maps(backend, shape, padding_mode):
    height, width = shape
    boxes = torch.tensor([[0.11, 0.13, 0.83, 0.97], [-0.7, -0.3, 1.9, 1.4], [0, 0, width, height]], dtype=torch.float64)
    tensors = {"images": torch.full((1, 2, *shape), 2.5, dtype=torch.float64) + torch.arange(width).double(),
               "boxes": boxes, "image_index": torch.zeros(3, dtype=torch.int64)}  # fmt: skip
    options = {"output_size": 4, "padding_mode": padding_mode, "clip": False}
    compare(backend, roi_crop, tensors, options, torch.float64, ("images", "boxes"))


def test_rows_of_unknown_images_are_zero_and_pass_no_gradient(backend):
    tensors = scene()
    bad = torch.tensor([-1, 3, -(2**40), 2**40])
    tensors["image_index"][: len(bad)] = bad
    output, grads = evaluate(backend, roi_crop, tensors, {"output_size": 5}, ("images", "boxes"))
    assert (output[: len(bad)] == 0).all()
    assert (grads["boxes"][: len(bad)] == 0).all()
    kept = {"images": tensors["images"], "boxes": tensors["boxes"][4:], "image_index": tensors["image_index"][4:]}
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    rest, rest_grads = evaluate(backend, roi_crop, kept, {"output_size": 5}, ("images", "boxes"), upstream[4:])
    assert_close(output[4:], rest)
    assert_close(grads["images"], rest_grads["images"])
    assert_close(grads["boxes"][4:], rest_grads["boxes"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("edge", range(4))
def test_box_that_is_not_finite_gives_nan_in_its_row_alone(backend, edge, value):
    tensors = scene()
    clean, _ = evaluate(backend, roi_crop, tensors, {"output_size": 3})
    tensors["boxes"][2, edge] = value
    output, _ = evaluate(backend, roi_crop, tensors, {"output_size": 3})
    clipped = value == (float("-inf") if edge < 2 else float("inf"))  # moved onto the border before it is looked at
    assert output[2].isnan().all().item() is not clipped
    others = torch.arange(len(output)) != 2
    assert_close(output[others], clean[others])


def test_infinite_pixel_shows_only_where_it_is_read(backend):
    """Corner pixels infinite: samples outside of the image, or between other pixels, must not become NaN."""
    tensors = {key: value[:8] for key, value in scene(3).items()}
    tensors["images"] = torch.randn(3, 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clean, _ = evaluate(backend, roi_crop, tensors, {"output_size": 6, "clip": False})
    tensors["images"][:, :, [0, 0, -1, -1], [0, -1, 0, -1]] = float("inf")
    expected = torch_crop(*tensors.values(), (6, 6), "zeros", False)
    output, _ = evaluate(backend, roi_crop, tensors, {"output_size": 6, "clip": False})
    assert expected.isfinite().any() and not expected.isfinite().all()
    assert_close(output, expected, nan=True)
    same = expected.isfinite().to(output.device)
    assert_close(output[same], clean[same])


@pytest.mark.parametrize(("padding_mode", "expected"), [("zeros", [1.0, 3.0]), ("border", [0.0, 3.0])])
def test_gradient_at_pixel_centres_is_the_forward_difference(backend, padding_mode, expected):
    """Samples exactly on pixels 0 and 1 of the row 5, 6, 9, 2: torch's grid_sample differentiates to the right."""
    image = torch.tensor([5.0, 6.0, 9.0, 2.0], dtype=torch.float64).expand(1, 1, 4, 4)
    tensors = {"images": image, "boxes": torch.tensor([[0.0, 0.0, 2.0, 2.0]], dtype=torch.float64),
               "image_index": torch.zeros(1, dtype=torch.int64)}  # fmt: skip
    for sample, slope in enumerate(expected):
        upstream = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
        upstream[..., 0, sample] = 1
        options = {"output_size": 2, "padding_mode": padding_mode}
        _, grads = evaluate(backend, roi_crop, tensors, options, ("boxes",), upstream)
        part = (sample + 0.5) / 2
        assert_close(grads["boxes"][0, [0, 2]], torch.tensor([slope * (1 - part), slope * part], dtype=torch.float64))


def test_clipped_edges_get_no_gradient_and_edges_on_the_border_do(backend):
    tensors = scene(1)
    tensors["boxes"] = torch.tensor([[-1.0, -1.0, 14.0, 10.0], [0.0, 0.0, 13.0, 9.0]], dtype=torch.float64)
    tensors["image_index"] = torch.zeros(2, dtype=torch.int64)
    upstream = torch.randn(1, 2, 6, 8, dtype=torch.float64).expand(2, 2, 6, 8)
    output, grads = evaluate(backend, roi_crop, tensors, {"output_size": (6, 8)}, ("boxes",), upstream)
    assert_close(output[0], output[1])
    assert (grads["boxes"][0] == 0).all()
    assert (grads["boxes"][1] != 0).all()
    free, free_grads = evaluate(backend, roi_crop, tensors, {"output_size": (6, 8), "clip": False}, ("boxes",), upstream)
    assert_close(free[1], output[1])
    assert_close(free_grads["boxes"][1], grads["boxes"][1])


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_gradcheck(backend, padding_mode):
    tensors = {key: value.to(backend.device) for key, value in scene(2, 1).items()}
    tensors["boxes"] = safe_boxes(5, HEIGHT, WIDTH, (3, 4)).to(backend.device)
    tensors["image_index"] = tensors["image_index"][:5]
    with backend.context():
        assert torch.autograd.gradcheck(
            lambda images, boxes: roi_crop(images, boxes, tensors["image_index"], (3, 4), padding_mode=padding_mode),
            (tensors["images"].requires_grad_(), tensors["boxes"].requires_grad_()),
        )
