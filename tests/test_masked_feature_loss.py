"""masked_feature_loss: against the formula by einsum, and every back end against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cls2det_ops import masked_feature_loss
from helpers import ANYWHERE, DTYPES, ORACLE, assert_close, cast, channels_last, compare, evaluate

MAPS = ("student", "teacher")
MASKS = ((), ("mask",), ("channel_mask",), ("mask", "channel_mask"))


def scene(batch: int = 3, channels: int = 5, height: int = 7, width: int = 6, masks: tuple = MASKS[-1]) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(channels)
    shapes = {"mask": (batch, height, width), "channel_mask": (batch, channels)}
    tensors = {name: torch.randn(batch, channels, height, width, generator=random, dtype=torch.float64) for name in MAPS}
    return tensors | {name: torch.rand(shapes[name], generator=random, dtype=torch.float64) for name in masks}


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("masks", MASKS, ids="+".join)
def test_equals_the_formula(backend, masks, reduction):
    def literal(student: Tensor, teacher: Tensor, mask: Tensor | None = None, channel_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones(3, 7, 6, dtype=torch.float64) if mask is None else mask
        channel_mask = torch.ones(3, 5, dtype=torch.float64) if channel_mask is None else channel_mask
        rows = torch.einsum("bchw,bhw,bc->b", (student - teacher) ** 2, mask, channel_mask) / 14.0
        return {"none": rows, "sum": rows.sum(), "mean": rows.mean()}[reduction]

    options = {"normalizer": 14.0, "reduction": reduction}
    output, grads = evaluate(backend, masked_feature_loss, scene(masks=masks), options, MAPS)
    expected, expected_grads = evaluate(ORACLE, literal, scene(masks=masks), None, MAPS)
    assert_close(output, expected)
    for name in MAPS:
        assert_close(grads[name], expected_grads[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (2, 3, 1, 9), (3, 1, 5, 4), (2, 17, 9, 31), (1, 130, 5, 1), (2, 2, 33, 70), (2, 8, 7, 10)],
    ids=str,
)
def test_matches_reference(backend, dtype, last, shape):
    layouts = dict.fromkeys(MAPS, channels_last) if last else None
    output, grads = compare(backend, masked_feature_loss, scene(*shape), {"normalizer": 3.0}, dtype, MAPS, layouts)
    assert output.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    order = torch.channels_last if last else torch.contiguous_format
    assert backend.name == "reference" or all(grad.is_contiguous(memory_format=order) for grad in grads.values())


@pytest.mark.parametrize("gradients", [("student",), ("teacher",)])
def test_one_gradient_alone(backend, gradients):
    compare(backend, masked_feature_loss, scene(), None, torch.float32, gradients)


@pytest.mark.parametrize("of", MAPS)
def test_maps_in_different_orders(backend, of):
    compare(backend, masked_feature_loss, scene(2, 6, 5, 9), None, torch.float32, MAPS, {of: channels_last})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ANYWHERE.values(), ids=ANYWHERE)
def test_images_that_begin_anywhere(backend, dtype, layout):
    compare(backend, masked_feature_loss, scene(3, 8, 7, 10), None, dtype, MAPS, {"student": layout})


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
def test_several_tiles_of_either_order(backend, last):
    layouts = dict.fromkeys(MAPS, channels_last) if last else None
    compare(backend, masked_feature_loss, scene(2, 7, 101, 165), None, torch.float32, MAPS, layouts)
    compare(backend, masked_feature_loss, scene(1, 16400, 2, 3), None, torch.float32, MAPS, layouts)


@pytest.mark.parametrize(("dtype", "channels"), [(torch.float32, 144), (torch.bfloat16, 272)])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
def test_gradient_larger_than_the_caches(native_backend, last, dtype, channels):
    layouts = dict.fromkeys(MAPS, channels_last) if last else None
    compare(native_backend, masked_feature_loss, scene(2, channels, 128, 128), None, dtype, MAPS, layouts)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("of", ["mask", "channel_mask"])
def test_nan_under_a_mask_of_zero_is_out(backend, of, last):
    tensors = scene()
    where = (slice(None), slice(None), 2, 3) if of == "mask" else (slice(None), 1)
    tensors[of][(slice(None), *where[2:]) if of == "mask" else where] = 0
    expected, expected_grads = evaluate(backend, masked_feature_loss, tensors, None, MAPS)
    tensors["student"][where] = float("nan")
    tensors["teacher"][where] = float("inf")
    layouts = dict.fromkeys(MAPS, channels_last) if last else None
    output, grads = evaluate(backend, masked_feature_loss, tensors, None, MAPS, layouts=layouts)
    assert_close(output, expected)
    for name in MAPS:
        assert_close(grads[name], expected_grads[name])
        assert (grads[name][where] == 0).all()


def test_nan_stays_in_its_image(backend):
    tensors = scene()
    tensors["student"][1, 2, 3, 4] = float("nan")
    output, grads = evaluate(backend, masked_feature_loss, tensors, {"reduction": "none"}, MAPS)
    assert output.isnan().tolist() == [False, True, False]
    assert int(grads["student"].isnan().sum()) == 1


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_no_images(backend, reduction):
    tensors = {name: value[:0] for name, value in scene().items()}
    output, grads = evaluate(backend, masked_feature_loss, tensors, {"reduction": reduction}, MAPS)
    assert output.shape == ((0,) if reduction == "none" else ())
    assert (output == 0).all()
    assert grads["student"].shape == (0, 5, 7, 6)


def test_no_gradient_reaches_the_masks(backend):
    tensors = {key: value.to(backend.device).requires_grad_() for key, value in scene().items()}
    with backend.context():
        masked_feature_loss(**tensors).backward()
    assert tensors["mask"].grad is None
    assert tensors["channel_mask"].grad is None
    assert torch.equal(tensors["teacher"].grad, -tensors["student"].grad)


def test_normalizer_of_zero_as_tensor_counts_as_one(backend):
    tensors = scene()
    tensors["mask"].zero_()  # no object in the batch: positions that the loss is divided by
    output, grads = evaluate(
        backend, lambda **t: masked_feature_loss(**t, normalizer=2 * t["mask"].sum()), tensors, None, MAPS
    )
    assert output == 0
    assert all((grad == 0).all() for grad in grads.values())


def test_mixed_dtypes(backend):
    tensors = scene()
    halved = cast(tensors, torch.bfloat16)
    mixed = halved | {"teacher": halved["teacher"].float(), "mask": halved["mask"].double()}
    output, grads = evaluate(backend, masked_feature_loss, mixed, None, MAPS)
    expected, _ = evaluate(ORACLE, masked_feature_loss, cast(halved, torch.float64))
    assert output.dtype == torch.float32
    assert_close(output, expected)
    assert grads["student"].dtype == torch.bfloat16


def test_gradcheck(backend):
    tensors = {key: value.to(backend.device) for key, value in scene(2, 3, 4, 2).items()}
    with backend.context():
        assert torch.autograd.gradcheck(
            lambda student, teacher: masked_feature_loss(
                student, teacher, tensors["mask"], tensors["channel_mask"], normalizer=2.0, reduction="none"
            ),
            (tensors["student"].requires_grad_(), tensors["teacher"].requires_grad_()),
        )
