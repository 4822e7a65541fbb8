"""matched_feature_loss: against adaptive_avg_pool2d + l1_loss, and every back end against the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cls2det_ops import matched_feature_loss
from helpers import ANYWHERE, DTYPES, ORACLE, assert_close, channels_last, compare, evaluate


def scene(channels: int = 5, height: int = 7, width: int = 6, k: int = 9, g: int = 4) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(channels)
    return {
        "features": torch.randn(k, channels, height, width, generator=random, dtype=torch.float64),
        "target_features": torch.randn(g, channels, height, width, generator=random, dtype=torch.float64),
        "matched_idxs": torch.randint(g, (k,), generator=random),
    }


@pytest.mark.parametrize("bins", [3, 7, (2, 5)])
@pytest.mark.parametrize("loss", ["l1", "l2", "smooth_l1"])
def test_equals_adaptive_pooling_and_torch_loss(backend, loss, bins):
    def literal(features: Tensor, target_features: Tensor, matched_idxs: Tensor) -> Tensor:
        distance = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}[loss]
        pooled = F.adaptive_avg_pool2d(features, bins)
        target = F.adaptive_avg_pool2d(target_features, bins)[matched_idxs]
        return distance(pooled, target, reduction="none").mean((1, 2, 3))

    options = {"output_size": bins, "loss": loss, "reduction": "none"}
    output, grads = evaluate(backend, matched_feature_loss, scene(), options, ("features",))
    expected, expected_grads = evaluate(ORACLE, literal, scene(), None, ("features",))
    assert_close(output, expected)
    assert_close(grads["features"], expected_grads["features"])


@pytest.mark.parametrize("channels", [1, 17])
@pytest.mark.parametrize("loss", ["l1", "l2", "smooth_l1"])
def test_infinite_difference_is_an_infinite_loss_and_nan_stays(backend, loss, channels):
    tensors = scene(channels)
    tensors["matched_idxs"][:] = 0
    for row, value in enumerate((float("inf"), float("-inf"), float("nan"))):
        tensors["features"][row, 0, 2, 3] = value
    output, grads = evaluate(
        backend, matched_feature_loss, tensors, {"output_size": (7, 6), "loss": loss, "reduction": "none"}, ("features",)
    )
    assert (output[:2] == float("inf")).all()
    assert output[2].isnan()
    assert output[3:].isfinite().all()
    assert loss == "l1" or grads["features"][2, 0, 2, 3].isnan()  # torch's own l1 sends 0
    assert grads["features"][3:].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "height", "width", "bins", "loss", "last", "index"),
    [
        (1, 5, 9, 3, "l1", False, torch.int64),
        (3, 28, 28, 8, "l1", True, torch.int32),
        (4, 1, 1, 1, "l2", False, torch.int64),
        (7, 3, 2, (5, 4), "smooth_l1", True, torch.int64),
        (16, 14, 14, 7, "l1", False, torch.int64),
        (17, 4, 4, 4, "l2", True, torch.int32),
        (64, 28, 28, 8, "l1", False, torch.int64),
        (33, 6, 11, (6, 2), "smooth_l1", False, torch.int64),
        (18, 7, 9, 1, "l1", False, torch.int64),
        (64, 7, 7, 1, "l2", False, torch.int64),
        (5, 7, 6, (3, 1), "l2", False, torch.int64),
        (5, 7, 6, (3, 1), "l2", True, torch.int64),
        (18, 7, 9, 1, "l1", True, torch.int64),
        (16, 2, 3, (4, 5), "l1", True, torch.int64),
        (64, 28, 28, 8, "l1", True, torch.int64),
        (3, 16, 14, 14, "l1", False, torch.int64),
        (2, 2, 131, (1, 5), "l1", False, torch.int64),
        (1, 23, 23, 23, "l2", False, torch.int64),
    ],
)
def test_matches_reference(backend, dtype, channels, height, width, bins, loss, last, index):
    layout = {"features": channels_last, "target_features": channels_last} if last else None
    options = {"output_size": bins, "loss": loss, "beta": 0.2, "reduction": "none"}
    tensors = scene(channels, height, width)
    output, grads = compare(backend, matched_feature_loss, tensors, options, dtype, ("features",), layout, index)
    assert output.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    order = torch.channels_last if last else torch.contiguous_format
    assert backend.name != "cpu" or grads["features"].is_contiguous(memory_format=order)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ANYWHERE.values(), ids=ANYWHERE)
@pytest.mark.parametrize("of", ["features", "target_features"])
def test_crops_that_begin_anywhere(backend, dtype, layout, of):
    compare(backend, matched_feature_loss, scene(8, 7, 10), {"output_size": 3}, dtype, ("features",), {of: layout})


def test_rows_without_match_are_ignored(backend):
    tensors = scene()
    tensors["matched_idxs"][[0, 3, 4, 8]] = torch.tensor([-1, -2, 4, 2**40])
    output, grads = compare(
        backend, matched_feature_loss, tensors, {"output_size": 3, "reduction": "none"}, torch.float64, ("features",)
    )
    assert (output[[0, 3, 4, 8]] == 0).all()
    assert (grads["features"][[0, 3, 4, 8]] == 0).all()
    assert (output[[1, 2, 5, 6, 7]] > 0).all()


def test_no_gradient_reaches_the_target(backend):
    tensors = {key: value.to(backend.device) for key, value in scene().items()}
    tensors["features"].requires_grad_()
    tensors["target_features"].requires_grad_()
    with backend.context():
        matched_feature_loss(**tensors, output_size=3).backward()
    assert tensors["target_features"].grad is None
    assert (tensors["features"].grad != 0).any()


def test_equal_features_give_zero_without_gradient(backend):
    tensors = scene()
    tensors["features"] = tensors["target_features"][tensors["matched_idxs"]]
    output, grads = evaluate(backend, matched_feature_loss, tensors, {"output_size": 3}, ("features",))
    assert output == 0
    assert (grads["features"] == 0).all()


def test_nan_features_stay_in_their_row(backend):
    tensors = scene()
    clean, _ = evaluate(backend, matched_feature_loss, tensors, {"output_size": 3, "reduction": "none"})
    tensors["features"][2, 1, 3, 3] = float("nan")
    output, _ = evaluate(backend, matched_feature_loss, tensors, {"output_size": 3, "reduction": "none"})
    others = torch.arange(len(output)) != 2
    assert output[2].isnan()
    assert_close(output[others], clean[others])


@pytest.mark.parametrize("loss", ["l1", "l2", "smooth_l1"])
def test_gradcheck(backend, loss):
    tensors = {key: value.to(backend.device) for key, value in scene(2, 5, 4, k=3).items()}
    with backend.context():
        assert torch.autograd.gradcheck(
            lambda features: matched_feature_loss(
                features, tensors["target_features"], tensors["matched_idxs"], 3, loss=loss, beta=0.4, reduction="none"
            ),
            (tensors["features"].requires_grad_(),),
        )
