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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torchvision.ops import box_convert

from cls2det.errors import LibraryChanged
from cls2det.models.taps.detr import LIBRARY
from cls2det.models.taps.family import Family

MATCHER = "HungarianMatcher"  # how the class of every matcher ends
Labels = list[dict[str, Tensor]]  # of each image: "class_labels" (n,) from 0, "boxes" (n, 4), "size" (2,) or nothing


def is_transformers_detector(model: nn.Module) -> bool:
    """Whether the model is one of transformers' ``…ForObjectDetection``, or derived from one; imports nothing."""
    kinds = type(model).__mro__
    return any(kind.__module__.startswith("transformers.") and kind.__name__.endswith("ForObjectDetection") for kind in kinds)


def tap_matcher(tap: Any) -> None:
    signature = inspect.signature(tap.model.forward)
    inputs: dict[str, Tensor] = {}

    def keep_inputs(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        call = signature.bind(*arguments, **keywords).arguments
        inputs.clear()
        inputs.update((name, call[name]) for name in ("pixel_values", "pixel_mask") if call.get(name) is not None)
        tap.forget()

    def keep_matches(module: nn.Module, arguments: tuple[Any, ...], pairs: list[tuple[Tensor, Tensor]]) -> None:
        if not type(module).__name__.endswith(MATCHER) or not inputs:
            return
        images, mask = inputs["pixel_values"], inputs.get("pixel_mask")
        inputs.clear()  # the calls that follow are for other decoder layers
        outputs, labels = arguments[:2]
        logits, device = outputs["logits"], images.device
        sizes = _sizes(images, mask, labels)
        tap.keep_inputs(
            images,
            boxes=[_in_pixels(label["boxes"], size) for label, size in zip(labels, sizes, strict=True)],
            labels=[label["class_labels"] + 1 for label in labels],
        )
        counts = [len(queries) for queries, _ in pairs]
        image = torch.tensor([number for number, count in enumerate(counts) for _ in range(count)], dtype=torch.int64)
        queries, matched = (torch.cat(column).to(device) for column in zip(*pairs, strict=True))
        image = image.to(device)
        boxes = outputs["pred_boxes"][image, queries]
        is_softmax = _is_softmax(tap.model.config, logits.shape[-1])
        tap.keep_positives(
            logits=logits[image, queries],
            boxes=_in_pixels(boxes.float(), sizes[image]),
            image_index=image,
            matched=matched,
            outputs=(logits, outputs["pred_boxes"]),
            head="softmax" if is_softmax else "sigmoid",
            background="last" if is_softmax else "none",
        )

    tap.undo(tap.model.register_forward_pre_hook(keep_inputs, with_kwargs=True).remove)
    tap.undo(register_module_forward_hook(keep_matches).remove)


def _sizes(images: Tensor, mask: Tensor | None, labels: Labels) -> Tensor:
    """(B, 2), float32: height and width that each image's boxes are shares of."""
    if all("size" in label for label in labels):
        return torch.stack([label["size"].to(images.device) for label in labels]).float()
    if mask is None:
        return torch.tensor(images.shape[-2:], device=images.device).float().expand(len(images), 2)
    return torch.stack((mask[:, :, 0].sum(1), mask[:, 0].sum(1)), 1).float()


def _in_pixels(boxes: Tensor, size: Tensor) -> Tensor:
    """xyxy in pixels of boxes (n, 4) as centre and sides in shares of ``size``, (2,) or (n, 2)."""
    corners: Tensor = box_convert(boxes, "cxcywh", "xyxy")
    return corners * size.flip(-1).repeat(*[1] * (size.dim() - 1), 2)


def _is_softmax(config: Any, columns: int) -> bool:
    """A softmax has a column for "no object", the last; a sigmoid per class has none."""
    if columns not in (config.num_labels, config.num_labels + 1):
        raise LibraryChanged(LIBRARY, f"the class head has {columns} columns for {config.num_labels} classes")
    return bool(columns == config.num_labels + 1)


def check_config(model: nn.Module) -> None:
    """The loss is one that matches, and the head is of a kind that the tap tells apart."""
    if getattr(model.config, "use_focal_loss", True) is False:
        raise LibraryChanged(LIBRARY, f"{type(model).__name__} with use_focal_loss=False has a head that is not known here")


FAMILY = Family({"forward": None, "config.num_labels": None}, tap_matcher, LIBRARY, check_config, reads_transform=False)
