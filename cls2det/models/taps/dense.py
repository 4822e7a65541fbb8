"""SSD, RetinaNet and FCOS: one row per anchor or place, ``matched_idxs >= 0`` is a positive.

-1 is background, and -2 in RetinaNet an anchor between the thresholds, which no loss looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cls2det.models.taps.family import Family

LOSS = ("targets", "head_outputs", "anchors", "matched_idxs")
DECODE = ("rel_codes", "boxes")


def tap_ssd(tap: Any) -> None:
    _tap(tap, tap.model, tap.model.box_coder.decode_single, "softmax")


def tap_retinanet(tap: Any) -> None:
    _tap(tap, tap.model.head, tap.model.box_coder.decode_single, "sigmoid")


def tap_fcos(tap: Any) -> None:
    _tap(tap, tap.model.head, tap.model.head.box_coder.decode, "sigmoid")


def _tap(tap: Any, owner: nn.Module, decode: Callable[[Tensor, Tensor], Tensor], head: str) -> None:
    def keep(targets: Any, head_outputs: dict[str, Tensor], anchors: list[Tensor], matched_idxs: list[Tensor]) -> None:
        matched = torch.stack(matched_idxs)
        rows = torch.where(matched.flatten() >= 0)[0]
        logits, regression = head_outputs["cls_logits"], head_outputs["bbox_regression"]

        def of_positives(values: Tensor) -> Tensor:  # the gradient of an index (image, anchor) sorts it, this one's does not
            return values.flatten(0, 1).index_select(0, rows)

        def find_labels() -> Tensor:
            labels = (matched + 1).clamp(max=0)  # 0 is background, -1 an anchor between the thresholds
            labels.view(-1)[rows] = positives.target_labels[positives.matched_idxs]
            return labels

        image_index = torch.div(rows, matched.shape[1], rounding_mode="floor")
        places = rows - image_index * matched.shape[1]  # the anchors of every image are the same
        tap.keep_positives(
            logits=of_positives(logits),
            boxes=decode(of_positives(regression).float(), anchors[0].index_select(0, places)),
            image_index=image_index,
            matched=of_positives(matched),
            outputs=(logits, regression),
            head=head,
            background="first",
        )
        positives = tap.positives
        tap.keep_grid(logits=logits, regression=regression, find_labels=find_labels, decode=decode, head=head)

    tap.wrap(owner, "compute_loss", before=keep)


SSD_FAMILY = Family({"compute_loss": LOSS, "box_coder.decode_single": DECODE}, tap_ssd)
RETINANET_FAMILY = Family({"head.compute_loss": LOSS, "box_coder.decode_single": DECODE}, tap_retinanet)
FCOS_FAMILY = Family({"head.compute_loss": LOSS, "head.box_coder.decode": DECODE}, tap_fcos)
