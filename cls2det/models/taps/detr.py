"""DETR: the queries that the last decoder layer's matching gives a ground truth are the positives, one each."""

from __future__ import annotations

import inspect
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from cls2det.errors import LibraryChanged
from cls2det.models.students import detr
from cls2det.models.taps.family import Family


def tap_detr(tap: Any) -> None:
    def keep(labels: Any, layers: list[dict[str, Tensor]], matches: list[detr.Matches]) -> None:
        outputs, pairs, device = layers[-1], matches[-1], layers[-1]["logits"].device
        counts = torch.tensor([len(queries) for queries, _ in pairs], device=device)
        image = torch.repeat_interleave(torch.arange(len(pairs), device=device), counts)
        queries, matched = (torch.cat(column).to(device) for column in zip(*pairs, strict=True))
        boxes = outputs["pred_boxes"][image, queries]
        tap.keep_positives(
            logits=outputs["logits"][image, queries],
            boxes=detr.pixel_boxes(boxes, boxes.new_tensor(tap.image_sizes)[image]),
            image_index=image,
            matched=matched,
            outputs=(outputs["logits"], outputs["pred_boxes"]),
            head="softmax",
            background="last",
        )

    tap.wrap(tap.model, "compute_loss", before=keep)


def check_transformers(model: nn.Module) -> None:
    """The matching and the losses, whose arguments are given by position, take the arguments that they took in 5.24."""
    losses = detr.loss_functions()
    signatures = {
        "HungarianMatcher.forward": ("self", "outputs", "targets"),
        "ImageLoss.loss_labels": ("self", "outputs", "targets", "indices", "num_boxes"),
        "ImageLoss.loss_boxes": ("self", "outputs", "targets", "indices", "num_boxes"),
    }
    for path, arguments in signatures.items():
        owner, _, name = path.partition(".")
        method = getattr(getattr(losses, owner, None), name, None)
        parameters = tuple(inspect.signature(method).parameters) if method else "nothing"
        if parameters != arguments:
            raise LibraryChanged(
                LIBRARY, f"{path} should take {arguments}, from which DETR's positives are taken; found {parameters}"
            )


try:
    LIBRARY = f"transformers {version('transformers')} (5.24 is known to fit)"
except PackageNotFoundError:  # then there is no DETR to tap either
    LIBRARY = "transformers"

FAMILY = Family({"compute_loss": ("labels", "layers", "matches")}, tap_detr, LIBRARY, check_transformers)
