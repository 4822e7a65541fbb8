"""roi_feature_loss: against a literal grid_sample + adaptive_avg_pool2d + l1_loss, and every back end against the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cls2det_ops import roi_feature_loss
from helpers import DTYPES, ORACLE, assert_close, compare, evaluate, safe_boxes


def scene(
    channels: int = 5, height: int = 12, width: int = 15, samples: int | tuple[int, int] = 6, scale: float = 1.0, k: int = 9,
    two_maps: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    random = torch.Generator().manual_seed(channels)
    g = 4
    of_target = torch.tensor([0, 2, 2, 1])
    match = torch.randint(g, (k,), generator=random)
    tensors = {
        "features": torch.randn(3, channels, height, width, generator=random, dtype=torch.float64),
        "boxes": safe_boxes(k, height, width, samples, scale=scale),
        "image_index": of_target[match],
        "target_boxes": safe_boxes(g, height, width, samples, scale=scale, seed=1),
        "target_image_index": of_target,
        "matched_idxs": match,
    }
    if two_maps:  # of another size, at twice the scale
        shape = (3, channels, 2 * height, 2 * width)
        tensors["target_features"] = torch.randn(shape, generator=random, dtype=torch.float64)
    return tensors


def literal(
    features: Tensor, boxes: Tensor, image_index: Tensor, target_boxes: Tensor, target_image_index: Tensor,
    matched_idxs: Tensor, output_size: int, sampling_size: int, loss: str,
) -> Tensor:  # fmt: skip
    """One box at a time with torch's functions, no clipping (the boxes of this test lie inside)."""

    def pool(box: Tensor, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        part = (torch.arange(sampling_size, dtype=box.dtype) + 0.5) / sampling_size
        x = (box[0] + (box[2] - box[0]) * part) * 2 / width - 1
        y = (box[1] + (box[3] - box[1]) * part) * 2 / height - 1
        grid = torch.stack([x.expand(sampling_size, -1), y[:, None].expand(-1, sampling_size)], dim=-1)
        return F.adaptive_avg_pool2d(F.grid_sample(image[None], grid[None], align_corners=False), output_size)

    distance = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}[loss]
    rows = []
    for box, image, match in zip(boxes, image_index, matched_idxs, strict=True):
        with torch.no_grad():
            target = pool(target_boxes[match], features[target_image_index[match]])
        rows.append(distance(pool(box, features[image]), target))
    return torch.stack(rows)


@pytest.mark.parametrize(("samples", "bins"), [(8, 4), (7, 3)])
@pytest.mark.parametrize("loss", ["l1", "l2", "smooth_l1"])
def test_equals_the_literal_formula(backend, loss, samples, bins):
    tensors = scene(samples=samples)
    for name in ("boxes", "target_boxes"):
        tensors[name][:, 0::2] = tensors[name][:, 0::2].clamp(0.013, 14.97)
        tensors[name][:, 1::2] = tensors[name][:, 1::2].clamp(0.013, 11.97)
    options = {"output_size": bins, "sampling_size": samples, "loss": loss}
    output, grads = evaluate(backend, roi_feature_loss, tensors, options | {"reduction": "none"}, ("features", "boxes"))
    expected, expected_grads = evaluate(ORACLE, literal, tensors, options, ("features", "boxes"))
    assert_close(output, expected)
    for name in grads:
        assert_close(grads[name], expected_grads[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "height", "width", "samples", "bins", "scale", "loss", "padding_mode", "two_maps", "index"),
    [
        (1, 30, 17, 14, 7, 1.0, "l1", "zeros", False, torch.int64),
        (3, 40, 44, 28, 4, 1.0, "l1", "zeros", False, torch.int32),
        (4, 8, 9, (6, 4), (2, 3), 0.5, "l2", "zeros", True, torch.int64),
        (7, 9, 5, 5, 7, 0.25, "smooth_l1", "zeros", False, torch.int64),
        (16, 11, 13, 28, 8, 0.25, "l1", "zeros", True, torch.int64),
        (17, 8, 12, 9, 3, 0.5, "l1", "zeros", False, torch.int32),
        (20, 9, 9, 4, 2, 1 / 16, "l2", "border", False, torch.int64),
        (33, 6, 7, 3, 3, 1.0, "smooth_l1", "border", True, torch.int64),
        (64, 19, 19, 28, 8, 0.25, "l1", "zeros", False, torch.int64),
        (91, 5, 6, 14, 7, 0.125, "l1", "zeros", False, torch.int64),
    ],
)
def test_matches_reference(backend, dtype, channels, height, width, samples, bins, scale, loss, padding_mode, two_maps, index):
    tensors = scene(channels, height, width, samples, scale, two_maps=two_maps)
    options = {"output_size": bins, "sampling_size": samples, "spatial_scale": scale, "loss": loss, "beta": 0.3,
               "padding_mode": padding_mode, "reduction": "none", "clip": channels != 4}  # fmt: skip
    if two_maps:
        options["target_spatial_scale"] = 2 * scale
    layout = {"features": lambda t: t.contiguous(memory_format=torch.channels_last)} if channels % 2 == 0 else None
    output, _ = compare(backend, roi_feature_loss, tensors, options, dtype, ("features", "boxes"), layout, index)
    assert output.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("gradients", [("features",), ("boxes",)])
def test_one_gradient_at_a_time(backend, gradients):
    options = {"output_size": 3, "sampling_size": 6}
    compare(backend, roi_feature_loss, scene(), options, torch.float64, gradients)


def test_no_gradient_reaches_the_ground_truth_side(backend):
    tensors = {key: value.to(backend.device) for key, value in scene(two_maps=True).items()}
    for name in ("target_features", "target_boxes", "boxes"):
        tensors[name].requires_grad_()
    with backend.context():
        roi_feature_loss(**tensors, output_size=3, sampling_size=6, target_spatial_scale=2.0).backward()
    assert tensors["target_features"].grad is None
    assert tensors["target_boxes"].grad is None
    assert (tensors["boxes"].grad != 0).any()


def test_gradient_of_a_shared_map_flows_through_the_predicted_boxes_alone(backend):
    tensors = scene()
    options = {"output_size": 3, "sampling_size": 6}
    _, shared = evaluate(backend, roi_feature_loss, tensors, options, ("features",))
    copy = {"target_features": tensors["features"].clone()}
    _, apart = evaluate(backend, roi_feature_loss, tensors | copy, options, ("features",))
    assert_close(shared["features"], apart["features"])


def test_rows_without_match_or_image_are_ignored(backend):
    tensors = scene(k=12)
    tensors["matched_idxs"][[0, 3]] = torch.tensor([-1, -2])
    tensors["matched_idxs"][4] = 4
    tensors["image_index"][[6, 7]] = torch.tensor([-1, 3])
    tensors["target_image_index"][1] = 9  # every row matched to target 1 goes too
    tensors["matched_idxs"][9] = 1
    ignored = torch.zeros(12, dtype=torch.bool)
    ignored[[0, 3, 4, 6, 7, 9]] = True
    ignored |= tensors["matched_idxs"] == 1
    options = {"output_size": 3, "sampling_size": 6, "reduction": "none"}
    output, grads = compare(backend, roi_feature_loss, tensors, options, torch.float64, ("features", "boxes"))
    assert (output[ignored.to(output.device)] == 0).all()
    assert (grads["boxes"][ignored.to(output.device)] == 0).all()
    assert (output[~ignored.to(output.device)] > 0).all()


def test_without_an_image_a_box_lies_on_that_of_its_match(backend):
    tensors = scene()
    tensors["matched_idxs"][[1, 4, 7]] = torch.tensor([-1, 4, -2])
    tensors["target_image_index"][3] = 3  # out of range
    inside = (tensors["matched_idxs"] >= 0) & (tensors["matched_idxs"] < 4)
    images = torch.where(inside, tensors["target_image_index"][tensors["matched_idxs"].clamp(0, 3)], -1)
    options = {"output_size": 3, "sampling_size": 6, "reduction": "none"}
    gradients = ("features", "boxes")
    expected, expected_grads = evaluate(backend, roi_feature_loss, tensors | {"image_index": images}, options, gradients)
    del tensors["image_index"]
    output, grads = evaluate(backend, roi_feature_loss, tensors, options | {"image_index": None}, gradients)
    assert torch.equal(output, expected)
    assert (output[[1, 4, 7]] == 0).all()
    assert (output != 0).any()
    assert all(torch.equal(grads[name], expected_grads[name]) for name in gradients)


def test_box_that_is_not_finite_gives_nan_in_its_row_alone(backend):
    tensors = scene()
    options = {"output_size": 3, "sampling_size": 6, "reduction": "none"}
    clean, _ = evaluate(backend, roi_feature_loss, tensors, options)
    tensors["boxes"][3, 2] = float("nan")
    output, _ = evaluate(backend, roi_feature_loss, tensors, options)
    others = torch.arange(len(output)) != 3
    assert output[3].isnan()
    assert_close(output[others], clean[others])


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_box_that_is_not_finite_leaves_the_other_gradients_alone(kernel_backend, padding_mode):
    tensors = scene()
    options = {"output_size": 3, "sampling_size": 6, "reduction": "none", "padding_mode": padding_mode, "clip": False}
    upstream = torch.linspace(1, 2, 9, dtype=torch.float64)
    silent = tensors | {"matched_idxs": tensors["matched_idxs"].clone()}
    silent["matched_idxs"][3] = -1
    _, expected = evaluate(kernel_backend, roi_feature_loss, silent, options, ("features", "boxes"), upstream)
    others = torch.arange(9) != 3
    for value in (float("nan"), float("inf"), float("-inf")):
        tensors["boxes"][3, 0] = value
        _, grads = evaluate(kernel_backend, roi_feature_loss, tensors, options, ("features", "boxes"), upstream)
        assert_close(grads["boxes"][others], expected["boxes"][others])
        assert_close(grads["features"], expected["features"])


def test_equal_boxes_have_no_distance_and_a_zero_map_has_no_gradient(backend):
    tensors = scene()
    tensors["boxes"] = tensors["target_boxes"][tensors["matched_idxs"]]
    options = {"output_size": 3, "sampling_size": 6, "reduction": "none"}
    output, _ = evaluate(backend, roi_feature_loss, tensors, options)
    assert output.abs().max() < 1e-12
    tensors = scene() | {"features": torch.zeros(3, 5, 12, 15)}
    output, grads = evaluate(backend, roi_feature_loss, tensors, options, ("features", "boxes"))
    assert (output == 0).all()  # |.|'(0) is 0
    assert (grads["boxes"] == 0).all()
    assert (grads["features"] == 0).all()


@pytest.mark.parametrize("loss", ["l1", "l2", "smooth_l1"])
def test_gradcheck(backend, loss):
    tensors = {key: value.to(backend.device) for key, value in scene(2, 5, 6, 4, k=4).items()}
    rest = {key: value for key, value in tensors.items() if key not in ("features", "boxes")}
    rest["target_features"] = tensors["features"].clone()  # the gradient of a shared map leaves one side out on purpose
    with backend.context():
        assert torch.autograd.gradcheck(
            lambda features, boxes: roi_feature_loss(
                features=features, boxes=boxes, **rest, output_size=2, sampling_size=4, loss=loss, beta=0.4, reduction="none"
            ),
            (tensors["features"].requires_grad_(), tensors["boxes"].requires_grad_()),
        )


@pytest.mark.parametrize("loss", ["l1", "l2", "smooth_l1"])
def test_std_divides_the_differences(backend, loss):
    """The value and the boxes' gradient are those of divided features; the features' own gradient is of those too."""
    options = {"output_size": 3, "sampling_size": 6, "loss": loss, "beta": 0.4, "reduction": "none"}
    tensors, std = scene(), 0.226
    upstream = torch.linspace(-1, 2, 9, dtype=torch.float64)
    output, grads = evaluate(backend, roi_feature_loss, tensors, options | {"std": std}, ("features", "boxes"), upstream)
    divided = tensors | {"features": tensors["features"] / std}
    expected, expected_grads = evaluate(ORACLE, roi_feature_loss, divided, options, ("features", "boxes"), upstream)
    assert_close(output, expected)
    assert_close(grads["boxes"], expected_grads["boxes"])
    assert_close(grads["features"], expected_grads["features"] / std)


@pytest.mark.parametrize("loss", ["l1", "l2", "smooth_l1"])
@pytest.mark.parametrize("std", [1, 58.0])
def test_gradcheck_with_std(backend, loss, std):
    tensors = {key: value.to(backend.device) for key, value in scene(2, 5, 6, 4, k=4).items()}
    boxes = tensors.pop("boxes").requires_grad_()
    options = {"output_size": 2, "sampling_size": 4, "loss": loss, "beta": 0.4 / std, "std": std, "normalizer": 3.0}
    with backend.context():
        assert torch.autograd.gradcheck(lambda boxes: roi_feature_loss(boxes=boxes, **tensors, **options), (boxes,))


def test_a_std_of_1_changes_no_bit(backend):
    tensors = {key: value.to(backend.device) for key, value in scene().items()}
    with backend.context():
        plain = roi_feature_loss(**tensors, output_size=3, sampling_size=6, reduction="none")
        assert torch.equal(plain, roi_feature_loss(**tensors, output_size=3, sampling_size=6, reduction="none", std=1.0))
        for wrong in (0, -1.0, float("inf")):
            with pytest.raises(ValueError, match=f"std must be a positive finite number, found {wrong}"):
                roi_feature_loss(**tensors, output_size=3, sampling_size=6, std=wrong)
