"""The positives of a torchvision detector, taken out of its own training code.

    tap = PositiveTap(model)
    with tap:
        losses = model(images, targets)      # torchvision's forward and loss, untouched
    positives = tap.positives                # what that loss just used

Nothing is written again and nothing stays on the model: inside the ``with`` the method that receives the matches is
wrapped, after it the model is as before. SSD, RetinaNet and Faster R-CNN are known. Which attributes are
used was read in torchvision 0.29; ``PositiveTap(model)`` checks that they are there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD


@dataclasses.dataclass(frozen=True)
class Positives:
    """K positives of B images with G ground truths. Boxes are xyxy in pixels of ``images``.

    Attributes:
        images: (B, 3, H, W), as the network sees them: resized, normalised, padded to one size
        logits: (K, columns), the student's, with gradient
        boxes: (K, 4), decoded by the model's own coder and not clipped, with gradient
        image_index: (K,), 0 … B-1
        matched_idxs: (K,), 0 … G-1: the ground truth that the positive was matched to
        target_boxes: (G, 4), target_labels: (G,), target_image_index: (G,): all images' ground truths in one list
        background: column of the background in ``logits``: "first", or "none" (a sigmoid per class, column = label)
    """

    images: Tensor
    logits: Tensor
    boxes: Tensor
    image_index: Tensor
    matched_idxs: Tensor
    target_boxes: Tensor
    target_labels: Tensor
    target_image_index: Tensor
    background: str

    def __len__(self) -> int:
        return len(self.boxes)

    def thinned(self, most: int) -> Positives:
        """At most ``most`` of them, evenly spaced (they are in order of images, so every image keeps its share)."""
        if len(self) <= most:
            return self
        keep = torch.linspace(0, len(self) - 1, most, device=self.boxes.device).long()
        rows = {name: getattr(self, name)[keep] for name in ("logits", "boxes", "image_index", "matched_idxs")}
        return dataclasses.replace(self, **rows)


class PositiveTap:
    """Collects the positives of each training forward that runs inside ``with tap:``."""

    def __init__(self, model: nn.Module):
        kinds = [
            (SSD, ("compute_loss", "box_coder.decode_single"), self._tap_dense),
            (RetinaNet, ("head.compute_loss", "box_coder.decode_single"), self._tap_dense),
            (
                FasterRCNN,
                ("roi_heads.select_training_samples", "roi_heads.box_predictor", "roi_heads.box_coder.decode_single"),
                self._tap_roi_heads,
            ),
        ]
        kind, needed, install = next((entry for entry in kinds if isinstance(model, entry[0])), (None, (), None))
        if kind is None:
            raise TypeError(f"PositiveTap knows torchvision's SSD, RetinaNet and FasterRCNN, not {type(model).__name__}")
        for path in ("transform", *needed):
            if not _has(model, path):
                raise RuntimeError(
                    f"torchvision {torchvision.__version__}: {kind.__name__} has no {path}, "
                    "from which its positives are taken; the tap was written for torchvision 0.29"
                )
        self.model, self._install = model, install
        self._undo: list[Callable[[], Any]] = []
        self._parts: dict[str, Any] = {}  # what Positives is made of
        self._first = torch.empty(0)  # each image's first ground truth in the list of all

    def __enter__(self) -> PositiveTap:
        self._parts = {}
        handle = self.model.transform.register_forward_hook(self._keep_inputs)
        self._undo = [handle.remove]
        self._install()
        return self

    def __exit__(self, *_) -> None:
        while self._undo:
            self._undo.pop()()

    @property
    def positives(self) -> Positives:
        """The positives of the last forward."""
        if "logits" not in self._parts:
            raise RuntimeError("no positives: run the model in training mode, with targets, inside `with tap:`")
        return Positives(**self._parts)

    def _keep_inputs(self, _module: nn.Module, _arguments: tuple, outputs: tuple) -> None:
        images, targets = outputs
        if targets is None:
            return
        counts = [len(target["boxes"]) for target in targets]
        device = images.tensors.device
        self._first = torch.tensor([sum(counts[:number]) for number in range(len(counts))], device=device)
        self._parts = {
            "images": images.tensors,
            "target_boxes": torch.cat([target["boxes"] for target in targets]),
            "target_labels": torch.cat([target["labels"] for target in targets]),
            "target_image_index": torch.repeat_interleave(
                torch.arange(len(counts), device=device), torch.tensor(counts, device=device)
            ),
        }

    def _wrap(self, owner: nn.Module, name: str, before: Callable | None = None, after: Callable | None = None) -> None:
        """Have ``before(*arguments)`` or ``after(result)`` see each call of ``owner.name``, until the tap closes."""
        method = getattr(owner, name)

        def call(*arguments, **keywords):
            if before:
                before(*arguments, **keywords)
            result = method(*arguments, **keywords)
            if after:
                after(result)
            return result

        owner.__dict__[name] = call  # in front of the class's method, for this object alone
        self._undo.append(lambda: owner.__dict__.pop(name))

    # SSD and RetinaNet: one row per anchor, matched_idxs >= 0 is a positive.
    def _tap_dense(self) -> None:
        ssd = isinstance(self.model, SSD)

        def keep(targets, head_outputs, anchors, matched_idxs):
            matched = torch.stack(matched_idxs)
            image, anchor = torch.where(matched >= 0)
            deltas = head_outputs["bbox_regression"][image, anchor].float()
            self._parts |= {
                "logits": head_outputs["cls_logits"][image, anchor],
                "boxes": self.model.box_coder.decode_single(deltas, torch.stack(anchors)[image, anchor]),
                "image_index": image,
                "matched_idxs": matched[image, anchor] + self._first[image],
                "background": "first" if ssd else "none",
            }

        self._wrap(self.model if ssd else self.model.head, "compute_loss", before=keep)

    # Faster R-CNN: sampled proposals, labels > 0 is a positive; it regresses one box per class.
    def _tap_roi_heads(self) -> None:
        heads, sampled = self.model.roi_heads, {}

        def keep_samples(result):
            proposals, matched, labels, _ = result
            counts = torch.tensor([len(rows) for rows in labels], device=labels[0].device)
            sampled.update(
                proposals=torch.cat(proposals),
                matched=torch.cat(matched),
                labels=torch.cat(labels),
                image=torch.repeat_interleave(torch.arange(len(labels), device=counts.device), counts),
            )

        def keep_predictions(_module, _arguments, outputs):
            logits, deltas = outputs
            rows = torch.where(sampled["labels"] > 0)[0]
            image, labels = sampled["image"][rows], sampled["labels"][rows]
            deltas = deltas.reshape(len(deltas), -1, 4)[rows, labels].float()
            self._parts |= {
                "logits": logits[rows],
                "boxes": heads.box_coder.decode_single(deltas, sampled["proposals"][rows])[:, :4],
                "image_index": image,
                "matched_idxs": sampled["matched"][rows] + self._first[image],
                "background": "first",
            }

        self._wrap(heads, "select_training_samples", after=keep_samples)
        self._undo.append(heads.box_predictor.register_forward_hook(keep_predictions).remove)


def _has(model: nn.Module, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(model, name):
            return False
        model = getattr(model, name)
    return True
