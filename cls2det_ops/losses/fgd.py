"""FGD (Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.masked_feature_loss import masked_feature_loss
from ._common import add_up, attention_masks


class FGDLoss(NamedTuple):
    """The three focal terms, each with its weight."""

    foreground: Tensor
    background: Tensor
    attention: Tensor


def fgd_masks(
    boxes: Tensor, image_index: Tensor, images: int, size: tuple[int, int], stride: float | tuple[float, float]
) -> tuple[Tensor, Tensor]:
    r"""Scale masks of objects and of background on a map.

    A cell is an object's if it lies in [floor(x1 / s), ceil(x2 / s)] by [floor(y1 / s), ceil(y2 / s)], ends included, as in
    the release. The foreground of a cell is the largest 1 / (height width, in cells) of its objects, 0 without one; the
    background is 1 / (cells without object in that image) where there is none.

    Args:
        boxes: (G, 4) xyxy in pixels. image_index: (G,) int; a box with an index outside [0, B) is ignored.
        images: B. size: (h, w) of the map. stride: pixels per cell, or (vertical, horizontal).

    Returns:
        Two (B, h, w) masks, float32 (float64 for float64 boxes), without gradient. No Python loop over boxes.
    """
    name = "fgd_masks"
    check.floating(name, "boxes", boxes, ("G", 4))
    image_index = check.index(name, "image_index", image_index, len(boxes), "boxes")
    check.same_device(name, boxes=boxes, image_index=image_index)
    images = check.count(name, "images", images)
    height, width = check.size_pair(name, "size", size)
    strides = tuple(stride) if isinstance(stride, (tuple, list)) else (stride, stride)
    if len(strides) != 2:
        raise check.fail(name, "stride", "a positive number or a pair (vertical, horizontal) of them", stride)
    down, across = (check.positive(name, "stride", value) for value in strides)
    if check.debug_enabled():
        check.box_values(name, "boxes", boxes)
        check.index_values(name, "image_index", image_index, images, "the batch", ignored=True)
    scaled = boxes.detach().to(check.accumulate_dtype(boxes.dtype)) / boxes.new_tensor([across, down, across, down])
    first, last = scaled[:, :2].floor(), scaled[:, 2:].ceil()
    column, row = (torch.arange(length, device=boxes.device) for length in (width, height))
    across_box = (column >= first[:, :1]) & (column <= last[:, :1])  # (G, w)
    down_box = (row >= first[:, 1:]) & (row <= last[:, 1:])  # (G, h)
    area = (last - first + 1).clamp(min=1).prod(1)
    shares = torch.where(down_box[:, :, None] & across_box[:, None], 1 / area[:, None, None], 0)
    image = torch.where(
        (image_index >= 0) & (image_index < images), image_index, images
    )  # the last one takes boxes of no image
    foreground = scaled.new_zeros(images + 1, height, width)
    foreground = foreground.scatter_reduce(0, image[:, None, None].expand_as(shares), shares, "amax")[:images]
    empty = (foreground == 0).to(foreground.dtype)
    return foreground, empty / empty.sum((1, 2), keepdim=True).clamp(min=1)


def fgd_feature_loss(
    student: Tensor,
    teacher: Tensor,
    foreground: Tensor,
    background: Tensor,
    *,
    temperature: float = 0.5,
    foreground_weight: float = 1.0,
    background_weight: float = 1.0,
    attention_weight: float = 1.0,
) -> FGDLoss:
    r"""Focal distillation of one map: objects and background apart, weighted by the teacher's attention.

    .. math:: L = \frac{1}{B} \sum_{b,c,y,x} \big(\alpha M^{fg} + \beta M^{bg}\big)_{byx} A^s_{byx} A^c_{bc} (S - T)^2_{bcyx}
              + \frac{\gamma}{B} \big(\|A^s_S - A^s_T\|_1 + \|A^c_S - A^c_T\|_1\big)

    A^s and A^c are the attention masks of :func:`fkd_masks`, of one network each. The paper's focal distillation; its
    global one, the relation of pixels in a trained block, is not here.

    Args:
        student, teacher: (B, C, H, W), the student's adapted.
        foreground, background: (B, H, W), of :func:`fgd_masks`.
        temperature: of the attention.
        foreground_weight, background_weight, attention_weight: alpha, beta, gamma.

    Returns:
        The three terms. Gradients flow to ``student``. Means over images: they do not depend on the split into equal shares.
    """
    name = "fgd_feature_loss"
    check.feature_map(name, "student", student)
    check.floating(name, "teacher", teacher, tuple(student.shape))
    temperature = check.positive(name, "temperature", temperature)
    spatial_shape = (student.shape[0], *student.shape[2:])
    check.floating(name, "foreground", foreground, spatial_shape)
    check.floating(name, "background", background, spatial_shape)
    foreground_weight = check.not_negative(name, "foreground_weight", foreground_weight)
    background_weight = check.not_negative(name, "background_weight", background_weight)
    attention_weight = check.not_negative(name, "attention_weight", attention_weight)
    teacher, count = teacher.detach(), max(len(student), 1)
    student_masks, teacher_masks = (attention_masks(features, temperature) for features in (student, teacher))

    def focal(mask: Tensor) -> Tensor:
        return masked_feature_loss(student, teacher, mask * teacher_masks[0], teacher_masks[1], normalizer=count)

    attention = (
        add_up(
            (student_mask - teacher_mask).abs().sum()
            for student_mask, teacher_mask in zip(student_masks, teacher_masks, strict=True)
        )
        / count
    )
    return FGDLoss(foreground_weight * focal(foreground), background_weight * focal(background), attention_weight * attention)
