"""How many launches a call costs on a GPU: kernels from their launch sites, and torch's operators that are more than a view."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import emulated
from backends import EMULATED
from cls2det_ops import RoIMap, kd_sigmoid_loss, kd_softmax_loss, matched_feature_loss, roi_feature_loss, roi_kd_loss


class Launches(TorchDispatchMode):
    """Counts torch's operators that write something."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        schema = function._schema
        is_fresh = any(str(value.type) == "Tensor" and value.alias_info is None for value in schema.returns)
        if function.namespace == "aten" and is_fresh and "empty" not in schema.name:
            self.count += 1
        return function(*args, **(kwargs or {}))


def launches(run: Callable[[], object]) -> int:
    before = sum(emulated.launched_kernels().values())
    with EMULATED.context(), Launches() as counter:
        run()
    return counter.count + sum(emulated.launched_kernels().values()) - before


def both_directions(loss: Callable[[], Tensor], leaves: list[Tensor]) -> tuple[int, int]:
    results: list[Tensor] = []
    forward = launches(lambda: results.append(loss()))
    upstream = torch.ones(())
    return forward, launches(lambda: torch.autograd.grad(results[0], leaves, upstream))


@pytest.fixture
def scene() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    corners = 4 * torch.rand(6, 2, generator=random)
    boxes = torch.cat([corners, corners + 5], 1)
    return {
        "student_logits": torch.randn(6, 5, generator=random, requires_grad=True),
        "boxes": boxes.requires_grad_(),
        "teacher_logits": torch.randn(3, 4, generator=random),
        "target_boxes": boxes[:3].detach() + 0.3,
        "matched_idxs": torch.tensor([0, 1, 2, 0, 1, -1]),
        "target_image_index": torch.tensor([0, 1, 1]),
    }


PIXELS = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (8, 2)),
        ({"normalizer": 3.0, "cls_weight": 1.0}, (8, 2)),
        ({"weight": torch.linspace(0, 1, 6), "normalizer": torch.tensor(3.0)}, (19, 6)),
    ],
)
def test_roi_kd_loss(emulated_backend, scene, options, expected):
    """One for the logits; tables, targets, comparison and sums of the map; the sum of each term, and of both."""
    leaves = [scene["student_logits"], scene["boxes"]]
    assert both_directions(lambda: roi_kd_loss(**scene, maps=RoIMap(PIXELS, 2, 4), **options).loss, leaves) == expected


@pytest.mark.parametrize("options", [{}, {"normalizer": 2.5}, {"reduction": "sum"}])
def test_a_loss_of_rows_is_its_kernels_a_sum_and_one_kernel_backward(emulated_backend, scene, options):
    logits, boxes = scene["student_logits"], scene["boxes"]
    matched = scene["matched_idxs"]
    both = (scene["teacher_logits"], matched)
    assert both_directions(lambda: kd_softmax_loss(logits, *both, **options), [logits]) == (2, 1)
    assert both_directions(lambda: kd_sigmoid_loss(logits, *both, background="last", **options), [logits]) == (2, 1)
    places = (None, scene["target_boxes"], scene["target_image_index"], matched, 2, 4)
    assert both_directions(lambda: roi_feature_loss(PIXELS, boxes, *places, std=0.5, **options), [boxes]) == (5, 1)
    crops = torch.rand(6, 3, 8, 8, requires_grad=True)
    assert both_directions(lambda: matched_feature_loss(crops, PIXELS[:, :, :8, :8], matched, 4, **options), [crops]) == (5, 1)
