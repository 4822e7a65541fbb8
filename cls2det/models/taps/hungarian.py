"""transformers' object detectors: what their Hungarian matching gives a ground truth is a positive.

DETR, Conditional, DAB, Deformable, RT-DETR and RT-DETRv2, D-FINE, RF-DETR, LW-DETR, YOLOS, Table Transformer: their losses make
a module whose class ends in ``HungarianMatcher``, and call it with predictions and labels, for the last decoder layer first. So a
forward hook on that class reads all of them alike. Denoising queries are not among the matcher's predictions. The matchers were
read in transformers 5.24.

Labels hold boxes as centre and sides in shares of a size: of the label's "size" where it has one, as transformers' image
processors write it (of the padded batch where they padded it), else of the picture without its padding (``pixel_mask``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from cls2det.errors import LibraryChanged
from cls2det.models.students.hungarian import in_pixels, is_softmax
from cls2det.models.students.hungarian_loss import LIBRARY, MATCHER, Labels, matchers
from cls2det.models.taps.family import Family


def is_transformers_detector(model: nn.Module) -> bool:
    """Whether the model is one of transformers' ``…ForObjectDetection``, or derived from one; imports nothing."""
    kinds = type(model).__mro__
    return any(kind.__module__.startswith("transformers.") and kind.__name__.endswith("ForObjectDetection") for kind in kinds)


def tap_network(tap: Any) -> None:
    """Of one of transformers' own, whose arguments are the images, the mask and the labels."""
    signature = inspect.signature(tap.model.forward)
    inputs: dict[str, Tensor] = {}

    def keep_inputs(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        call = signature.bind(*arguments, **keywords).arguments
        inputs.clear()
        inputs.update((name, call[name]) for name in ("pixel_values", "pixel_mask") if call.get(name) is not None)
        tap.forget()

    def take(outputs: dict[str, Tensor], labels: Labels, pairs: list[tuple[Tensor, Tensor]]) -> None:
        if not inputs:
            return
        images, mask = inputs["pixel_values"], inputs.get("pixel_mask")
        inputs.clear()  # the calls that follow are for other decoder layers
        sizes = _sizes(images, mask, labels)
        tap.keep_inputs(
            images,
            boxes=[in_pixels(label["boxes"], size) for label, size in zip(labels, sizes, strict=True)],
            labels=[label["class_labels"] + 1 for label in labels],
        )
        _keep_positives(tap, tap.model.config, outputs, sizes, pairs)

    tap.undo(tap.model.register_forward_pre_hook(keep_inputs, with_kwargs=True).remove)
    _hook_matcher(tap, take)


def tap_student(tap: Any) -> None:
    """Of a student, whose images and ground truths come from its transform."""

    def take(outputs: dict[str, Tensor], labels: Labels, pairs: list[tuple[Tensor, Tensor]]) -> None:
        if not tap.has_positives:  # the calls that follow are for other decoder layers
            sizes = torch.stack([label["size"] for label in labels])
            _keep_positives(tap, tap.model.network.config, outputs, sizes, pairs)

    _hook_matcher(tap, take)


def _hook_matcher(tap: Any, take: Callable[[dict[str, Tensor], Labels, list[tuple[Tensor, Tensor]]], None]) -> None:
    def keep_matches(module: nn.Module, arguments: tuple[Any, ...], pairs: list[tuple[Tensor, Tensor]]) -> None:
        if type(module).__name__.endswith(MATCHER):
            outputs, labels = arguments[:2]
            take(outputs, labels, pairs)

    tap.undo(register_module_forward_hook(keep_matches).remove)


def _keep_positives(
    tap: Any, config: Any, outputs: dict[str, Tensor], sizes: Tensor, pairs: list[tuple[Tensor, Tensor]]
) -> None:
    """Of the matches of each image: queries (n,), and the ground truth (n,) that each is matched to."""
    logits, boxes = outputs["logits"], outputs["pred_boxes"]
    counts = [len(queries) for queries, _ in pairs]
    image = torch.tensor([number for number, count in enumerate(counts) for _ in range(count)], dtype=torch.int64)
    image = image.to(logits.device)
    queries, matched = (torch.cat(column).to(logits.device) for column in zip(*pairs, strict=True))
    has_softmax = is_softmax(config, logits.shape[-1])
    tap.keep_positives(
        logits=logits[image, queries],
        boxes=in_pixels(boxes[image, queries].float(), sizes[image]),
        image_index=image,
        matched=matched,
        outputs=(logits, boxes),
        head="softmax" if has_softmax else "sigmoid",
        background="last" if has_softmax else "none",
    )


def _sizes(images: Tensor, mask: Tensor | None, labels: Labels) -> Tensor:
    """(B, 2), float32: height and width that each image's boxes are shares of."""
    if all("size" in label for label in labels):
        return torch.stack([label["size"].to(images.device) for label in labels]).float()
    if mask is None:
        return torch.tensor(images.shape[-2:], device=images.device).float().expand(len(images), 2)
    return torch.stack((mask[:, :, 0].sum(1), mask[:, 0].sum(1)), 1).float()


def check_config(model: nn.Module) -> None:
    """The loss is one that matches, and the head is of a kind that the tap tells apart."""
    if getattr(model.config, "use_focal_loss", True) is False:
        raise LibraryChanged(LIBRARY, f"{type(model).__name__} with use_focal_loss=False has a head that is not known here")


def check_student(model: nn.Module) -> None:
    """Its loss makes a matcher whose calls the tap knows."""
    network: Any = model.get_submodule("network")
    check_config(network)
    if not (kinds := matchers(network.loss_function.args[0])):
        raise LibraryChanged(
            LIBRARY, f"the loss of {type(network).__name__} makes no {MATCHER}, which its positives are taken from"
        )
    for kind in kinds:
        if (names := tuple(inspect.signature(kind.forward).parameters)[:3]) != ("self", "outputs", "targets"):
            raise LibraryChanged(LIBRARY, f"{kind.__name__}.forward should take outputs and targets; found {names}")


FAMILY = Family({"forward": None, "config.num_labels": None}, tap_network, LIBRARY, check_config, reads_transform=False)
STUDENT_FAMILY = Family(
    {"network.loss_function": None, "network.config.num_labels": None}, tap_student, LIBRARY, check_student
)
