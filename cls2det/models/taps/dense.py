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

        boxes = decode(of_positives(regression).float(), of_positives(torch.stack(anchors)))
        tap.keep_positives(
            logits=of_positives(logits),
            boxes=boxes,
            image_index=torch.div(rows, matched.shape[1], rounding_mode="floor"),
            matched=of_positives(matched),
            outputs=(logits, regression),
            head=head,
            background="first",
        )
        labels = (matched + 1).clamp(max=0)  # 0 is background, -1 an anchor between the thresholds
        labels.view(-1)[rows] = tap.positives.target_labels[tap.positives.matched_idxs]
        tap.keep_grid(logits=logits, regression=regression, labels=labels, decode=decode, head=head)

    tap.wrap(owner, "compute_loss", before=keep)


SSD_FAMILY = Family({"compute_loss": LOSS, "box_coder.decode_single": DECODE}, tap_ssd)
RETINANET_FAMILY = Family({"head.compute_loss": LOSS, "box_coder.decode_single": DECODE}, tap_retinanet)
FCOS_FAMILY = Family({"head.compute_loss": LOSS, "head.box_coder.decode": DECODE}, tap_fcos)
