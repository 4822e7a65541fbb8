"""Faster R-CNN: of the sampled proposals those with a label above 0 are positives; a box is regressed for every class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from cls2det.errors import LibraryChanged
from cls2det.models.taps.family import TORCHVISION, Family


def tap_roi_heads(tap: Any) -> None:
    heads = tap.model.roi_heads
    sampled: dict[str, Any] = {}

    def keep_samples(result: tuple[list[Tensor], ...]) -> None:
        proposals, matched, labels, targets = result
        counts, device = [len(rows) for rows in labels], labels[0].device
        sampled.update(
            image_proposals=proposals,
            proposals=torch.cat(proposals),
            targets=torch.cat(targets),
            matched=torch.cat(matched),
            labels=torch.cat(labels),
            image=torch.repeat_interleave(
                torch.arange(len(counts), device=device), torch.tensor(counts, device=device), output_size=sum(counts)
            ),
        )

    def keep_predictions(result: tuple[Tensor, Tensor]) -> None:
        if not sampled:  # an evaluation
            return
        logits, regression = result
        rows = torch.where(sampled["labels"] > 0)[0]
        labels = sampled["labels"][rows]
        deltas = regression.reshape(len(regression), -1, 4)[rows, labels].float()
        boxes = heads.box_coder.decode_single(deltas, sampled["proposals"][rows])[:, :4]
        tap.keep_positives(
            logits=logits.index_select(0, rows),  # the gradient of logits[rows] sorts them
            boxes=boxes,
            image_index=sampled["image"][rows],
            matched=sampled["matched"][rows],
            outputs=(logits, regression),
            head="softmax",
            background="first",
        )
        tap.keep_regions(
            proposals=sampled["image_proposals"],
            logits=logits,
            regression=regression,
            labels=sampled["labels"],
            targets=sampled["targets"],
        )
        sampled.clear()

    rpn = tap.model.rpn
    outputs: dict[str, Any] = {}

    def keep_anchors(
        objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> None:
        outputs.update(objectness=objectness, deltas=pred_bbox_deltas, labels=labels)

    def keep_grid(samples: tuple[list[Tensor], list[Tensor]]) -> None:
        labels = outputs["labels"]
        logits, regression = (outputs[name].view(len(labels), len(labels[0]), -1) for name in ("objectness", "deltas"))

        def find_labels() -> Tensor:
            positive, negative = (torch.stack(masks).bool() for masks in samples)
            return torch.where(positive | negative, torch.stack(labels).long(), -1)

        tap.keep_grid(
            logits=logits, regression=regression, find_labels=find_labels, decode=rpn.box_coder.decode_single, head="sigmoid"
        )
        outputs.clear()

    tap.wrap(rpn, "compute_loss", before=keep_anchors)
    tap.wrap(rpn, "fg_bg_sampler", after=keep_grid)  # called in compute_loss
    tap.wrap(heads, "select_training_samples", after=keep_samples)
    tap.hook(heads.box_predictor, keep_predictions)


def check_samples(model: FasterRCNN) -> None:
    """``select_training_samples`` gives proposals, matches, labels and one thing more, in this order: tried on one box."""
    box = torch.tensor([[10.0, 10.0, 40.0, 40.0]])
    target = {"boxes": box, "labels": torch.tensor([1])}
    target |= {"masks": torch.zeros(1, 64, 64), "keypoints": torch.zeros(1, 17, 3)}  # Mask and Keypoint R-CNN ask for them
    with torch.random.fork_rng(devices=[]):  # it draws a sample
        result = model.roi_heads.select_training_samples([box], [target])
    count = len(result[0][0])
    expected = [box.tolist() * count, [0] * count, [1] * count]
    if len(result) != 4 or [part[0].tolist() for part in result[:3]] != expected:
        raise LibraryChanged(
            TORCHVISION,
            f"{type(model).__name__}.roi_heads.select_training_samples does not give proposals, matched_idxs, "
            "labels and regression targets, from which its positives are taken",
        )


FAMILY = Family(
    {
        "roi_heads.select_training_samples": ("proposals", "targets"),
        "roi_heads.box_predictor": None,
        "rpn.fg_bg_sampler": None,
        "rpn.compute_loss": ("objectness", "pred_bbox_deltas", "labels", "regression_targets"),
        "rpn.box_coder.decode_single": ("rel_codes", "boxes"),
        "roi_heads.box_coder.decode_single": ("rel_codes", "boxes"),
    },
    tap_roi_heads,
    check=check_samples,
)
