"""The anchors near objects, whose positions a student imitates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks as check
from .. import reference
from .._library import native, operators
from ._common import register_fake


def imitation_mask(
    anchors: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    images: int,
    level_sizes: Sequence[int],
    *,
    factor: float = 0.5,
    assignment: str = "level",
) -> Tensor:
    r"""Which anchors overlap a ground truth of their image nearly as much as the best anchor does.

    .. math:: I_{bn} = \bigvee_{g\ \mathrm{on}\ b} \big[\mathrm{IoU}(n, g) > \psi m_g\big] \qquad m_g = \max_n \mathrm{IoU}(n, g)

    with ψ the factor: "Distilling Object Detectors with Fine-grained Feature Imitation" (CVPR 2019). A ground
    truth that no anchor overlaps marks none. The paper has one map; ``assignment`` says what the maximum is over in a pyramid.
    The IoUs are computed twice and never stored. A position is imitated if one of its A anchors is marked:
    ``mask[:, level].view(-1, height, width, A).any(-1)``.

    Args:
        anchors: (N, 4) boxes xyxy that all images share, the levels one after the other, floating point.
        boxes: (G, 4) ground truths of the batch, xyxy.
        image_index: (G,) int64 or int32, the image, in [0, images), of each ground truth; others are ignored.
        images: B, the number of images.
        level_sizes: anchors of each level, 1 to 16 numbers of sum N.
        factor: ψ, positive.
        assignment: "level": m is taken for each level by itself, so that every level with an overlap is marked; "all": over
            all anchors; "best": as "all", but only the level of the maximum is marked, the first of equal ones.

    Returns:
        (B, N) bool.

    Gradients flow to nothing. Boxes and anchors are compared in float32 (float64 where one of them is). An IoU that is not defined
    (NaN or infinite edges, no area) counts as 0.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape, device or value range, named with what was found.
    """
    name = "imitation_mask"
    check.floating(name, "anchors", anchors, ("N", 4))
    check.floating(name, "boxes", boxes, ("G", 4))
    image_index = check.index(name, "image_index", image_index, boxes.shape[0], "boxes")
    check.same_device(name, anchors=anchors, boxes=boxes, image_index=image_index)
    images = check.count(name, "images", images)
    sizes = [check.count(name, "level_sizes", size) for size in level_sizes]
    if not 1 <= len(sizes) <= MOST_LEVELS:
        raise check.fail(name, "level_sizes", f"1 to {MOST_LEVELS} numbers", f"{len(sizes)}")
    if sum(sizes) != anchors.shape[0]:
        raise check.fail(name, "level_sizes", f"of sum {anchors.shape[0]}, the rows of anchors", f"{sum(sizes)}")
    factor = check.positive(name, "factor", factor)
    kind = check.choice(name, "assignment", assignment, ASSIGNMENTS)
    if check.debug_enabled():
        check.index_values(name, "image_index", image_index, images, "images")
        check.box_values(name, "boxes", boxes)
    dtype = check.accumulate_dtype(torch.promote_types(anchors.dtype, boxes.dtype))
    anchors, boxes = anchors.detach().to(dtype), boxes.detach().to(dtype)
    if native(anchors):
        mask: Tensor = operators().imitation_mask(
            anchors, boxes, image_index, images=images, level_sizes=sizes, factor=factor, assignment=kind
        )
        return mask
    return reference.imitation_mask(anchors, boxes, image_index, images, sizes, factor, assignment)


ASSIGNMENTS = ("level", "all", "best")
MOST_LEVELS = 16


@register_fake("imitation_mask")
def _(arguments: Any) -> Tensor:
    anchors: Tensor = arguments.anchors
    return anchors.new_empty(arguments.images, anchors.shape[0], dtype=torch.bool)
