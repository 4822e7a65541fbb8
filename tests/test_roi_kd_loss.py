"""roi_kd_loss: the sum of its parts, its options, and its zeros."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import cls2det_ops
from cls2det_ops import RoIKDLoss, RoIMap, kd_sigmoid_loss, kd_softmax_loss, roi_feature_loss, roi_kd_loss
from helpers import DTYPES, ORACLE, assert_close, cast, evaluate, safe_boxes

MAP_SCALE = 0.25


def scene(columns: int = 6, k: int = 10) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    return {
        "student_logits": normal(k, columns),
        "boxes": safe_boxes(k, 32, 40, 8),
        "teacher_logits": normal(4, 5),
        "target_boxes": safe_boxes(4, 32, 40, 8, seed=1),
        "matched_idxs": torch.randint(4, (k,), generator=random),
        "target_image_index": torch.tensor([0, 0, 1, 2]),
        "images": normal(3, 3, 32, 40),
        "stem": normal(3, 6, 8, 10),
    }


def composite(images: Tensor, stem: Tensor, **arguments) -> Tensor:
    maps = [RoIMap(images, 4, 8, weight=0.7), RoIMap(stem, 2, 6, MAP_SCALE, weight=1.3)]
    return torch.stack(roi_kd_loss(**arguments, maps=maps))


def parts(
    images: Tensor, stem: Tensor, student_logits: Tensor, boxes: Tensor, teacher_logits: Tensor, target_boxes: Tensor,
    matched_idxs: Tensor, target_image_index: Tensor, head: str = "softmax", background: str | None = None,
    temperature: float = 2.0, cls_weight: float = 0.4, loc_weight: float = 0.15, loss: str = "l1", **rows,
) -> Tensor:  # fmt: skip
    """The composite spelled out with the single losses, which have tests of their own."""
    if head == "softmax":
        cls = kd_softmax_loss(student_logits, teacher_logits, matched_idxs, temperature, background or "first", **rows)
    else:
        cls = kd_sigmoid_loss(
            student_logits, teacher_logits, matched_idxs, temperature, background=background or "none", **rows
        )
    inside = (matched_idxs >= 0) & (matched_idxs < len(target_boxes))
    image_index = torch.where(inside, target_image_index[matched_idxs.clamp(0, len(target_boxes) - 1)], -1)
    match = (boxes, image_index, target_boxes, target_image_index, matched_idxs)
    loc = 0.7 * roi_feature_loss(images, *match, 4, 8, loss=loss, **rows)
    loc = loc + 1.3 * roi_feature_loss(stem, *match, 2, 6, MAP_SCALE, loss=loss, **rows)
    return torch.stack([cls_weight * cls + loc_weight * loc, cls_weight * cls, loc_weight * loc])


OPTIONS = {
    "default": (6, {}),
    "last": (6, {"background": "last", "temperature": 1.0, "loss": "l2"}),
    "no_background": (5, {"background": "none", "cls_weight": 1.5, "loc_weight": 3.0}),
    "sigmoid": (5, {"head": "sigmoid", "loss": "smooth_l1"}),
    "sigmoid_unused_column": (6, {"head": "sigmoid", "background": "first"}),
    "normalizer": (6, {"normalizer": 4.5}),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_is_the_weighted_sum_of_its_parts(backend, dtype, options):
    columns, options = OPTIONS[options]
    tensors = scene(columns)
    tensors["matched_idxs"][[2, 5]] = torch.tensor([-1, -2])
    gradients = ("student_logits", "boxes", "images", "stem")
    tensors = cast(tensors, dtype)
    upstream = torch.tensor([1.0, 0.5, -0.3])
    output, grads = evaluate(backend, composite, tensors, options, gradients, upstream)
    exact = cast(tensors, torch.float64)
    expected, expected_grads = evaluate(ORACLE, parts, exact, options, gradients, upstream)
    assert_close(output, expected, torch.float32 if dtype != torch.float64 else dtype)
    for name in gradients:
        assert_close(grads[name], expected_grads[name])


def test_weight_and_normalizer_as_tensors(backend):
    tensors = scene()
    tensors |= {"weight": torch.linspace(0, 2, 10, dtype=torch.float64), "normalizer": torch.tensor(6.0)}
    output, grads = evaluate(backend, composite, tensors, None, ("boxes", "student_logits"), torch.ones(3))
    expected, expected_grads = evaluate(ORACLE, parts, tensors, None, ("boxes", "student_logits"), torch.ones(3))
    assert_close(output, expected)
    assert_close(grads["boxes"], expected_grads["boxes"])
    assert (grads["boxes"][0] == 0).all()  # weight 0


def test_returns_a_named_tuple_and_takes_one_map_or_none(backend):
    tensors = {key: value.to(backend.device) for key, value in scene().items()}
    images, _ = tensors.pop("images"), tensors.pop("stem")
    tensors["boxes"].requires_grad_()
    with backend.context():
        one = roi_kd_loss(**tensors, maps=RoIMap(images, 4, 8))
        listed = roi_kd_loss(**tensors, maps=(RoIMap(images, output_size=(4, 4), sampling_size=(8, 8)),))
        none = roi_kd_loss(**tensors)
    assert isinstance(one, RoIKDLoss)
    assert one.loss == one[0] == one.cls + one.loc
    assert one.loc > 0
    assert listed == one
    assert none.loc == 0
    assert none.loss == none.cls == one.cls
    assert none.loc.requires_grad  # attached, so that a step without maps still has a graph


def test_another_map_for_the_ground_truth_side(backend):
    tensors = {key: value.to(backend.device) for key, value in scene().items()}
    del tensors["images"]
    stem = tensors.pop("stem")
    teacher_map = torch.nn.functional.interpolate(stem, scale_factor=2)
    with backend.context():
        result = roi_kd_loss(
            **tensors, maps=RoIMap(stem, 2, 6, 0.25, target_features=teacher_map, target_spatial_scale=0.5), loc_weight=1.0
        ).loc
        expected = roi_feature_loss(
            stem, tensors["boxes"], tensors["target_image_index"][tensors["matched_idxs"]], tensors["target_boxes"],
            tensors["target_image_index"], tensors["matched_idxs"], 2, 6, 0.25, target_features=teacher_map,
            target_spatial_scale=0.5,
        )  # fmt: skip
    assert_close(result, expected)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_no_positive_gives_a_zero_with_a_graph(backend, head):
    tensors = scene(6 if head == "softmax" else 5)
    for name in ("student_logits", "boxes", "matched_idxs"):
        tensors[name] = tensors[name][:0]
    gradients = ("student_logits", "boxes", "images", "stem")
    output, grads = evaluate(backend, composite, tensors, {"head": head}, gradients)
    assert (output == 0).all()
    assert all((grad == 0).all() for grad in grads.values())


def test_no_gradient_reaches_the_teacher(backend):
    tensors = {key: value.to(backend.device) for key, value in scene().items()}
    for name in ("teacher_logits", "target_boxes", "student_logits"):
        tensors[name].requires_grad_()
    with backend.context():
        composite(**tensors).sum().backward()
    assert tensors["teacher_logits"].grad is None
    assert tensors["target_boxes"].grad is None
    assert tensors["student_logits"].grad is not None


def test_argument_order_of_the_readme_example():
    """The ten-line example passes these by position."""
    tensors = scene()
    images = tensors.pop("images")
    del tensors["stem"]
    by_position = cls2det_ops.roi_kd_loss(*tensors.values(), RoIMap(images, 4, 8))
    assert by_position == roi_kd_loss(**tensors, maps=[RoIMap(images, 4, 8)])


SCALES = {"levels": (255.0, 0.0), "shares": (1.0, 0.0), "normalised": (1 / 0.226, -0.45 / 0.226)}


@pytest.mark.parametrize("loss", ["l1", "l2", "smooth_l1"])
def test_one_weight_fits_pictures_of_every_scale(backend, loss):
    """With std, the same pictures as 0 to 255, as 0 to 1 and normalised give the same terms and the same pull at the boxes."""
    tensors = scene()
    pictures = torch.rand(tensors.pop("images").shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    del tensors["stem"]
    results = []
    for scale, shift in SCALES.values():

        def terms(images, std=0.226 * scale, **arguments):
            pixels = RoIMap(images, 4, 8, std=std, weight=0.7)
            return torch.stack(roi_kd_loss(**arguments, maps=pixels, loss=loss, beta=0.3, padding_mode="border"))

        images = tensors | {"images": pictures * scale + shift}
        results.append(evaluate(backend, terms, images, None, ("boxes",), torch.tensor([0.0, 0.0, 1.0])))
    for output, grads in results[1:]:
        assert_close(output, results[0][0])
        assert_close(grads["boxes"], results[0][1]["boxes"])


def test_a_std_of_1_changes_no_bit(backend):
    tensors = {key: value.to(backend.device) for key, value in scene().items()}
    images, _ = tensors.pop("images"), tensors.pop("stem")
    with backend.context():
        plain = roi_kd_loss(**tensors, maps=RoIMap(images, 4, 8, weight=0.3)).loc
        assert torch.equal(plain, roi_kd_loss(**tensors, maps=RoIMap(images, 4, 8, weight=0.3, std=1)).loc)
        half = roi_kd_loss(**tensors, maps=RoIMap(images, 4, 8, weight=0.3, std=2.0)).loc
        assert torch.equal(half, plain / 2)
        with pytest.raises(ValueError, match="roi_feature_loss: std must be a positive finite number, found 0"):
            roi_kd_loss(**tensors, maps=RoIMap(images, 4, 8, std=0))
