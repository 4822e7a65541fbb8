"""Two diagnostics at the best anchors, which vary less from seed to seed than mAP does.

At the default box that overlaps an object most (the same box for every student of one shape) one can ask, without a threshold
and without suppression: is the best foreground class the true one, and how well does the decoded box fit?
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from cls2det.data.targets import CLASSES_FROM

DIAGNOSTICS = ("class acc", "mean IoU")


class BestAnchors:
    """Looks at each object's best anchor, in every forward in eval mode inside ``with BestAnchors(detector) as anchors:``.

    A detector other than SSD or RetinaNet has no anchors to look at, and a table of None.
    """

    def __init__(self, detector: nn.Module):
        self.detector = detector
        self.applies = isinstance(detector, SSD | RetinaNet)
        self.outputs: dict[str, Any] = {}  # of the last forward
        self.correct: list[Tensor] = []
        self.overlaps: list[Tensor] = []
        self.handles: list = []

    def __enter__(self) -> BestAnchors:
        for name in ("transform", "head", "anchor_generator") if self.applies else ():
            module = getattr(self.detector, name)
            self.handles.append(module.register_forward_hook(lambda *call, name=name: self.outputs.update({name: call[-1]})))
        return self

    def __exit__(self, *_) -> None:
        while self.handles:
            self.handles.pop().remove()

    def add(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
        """Take the last forward's outputs; ``images`` and ``targets`` are its batch."""
        if not self.applies:
            return
        coder: BoxCoder = self.detector.box_coder
        sizes = self.outputs["transform"][0].image_sizes
        for index, (image, target) in enumerate(zip(images, targets, strict=True)):
            if not len(target["boxes"]):
                continue
            height, width = image.shape[-2:]
            scale = torch.tensor([sizes[index][1] / width, sizes[index][0] / height] * 2, device=target["boxes"].device)
            truth, anchors = target["boxes"] * scale, self.outputs["anchor_generator"][index]
            best = box_iou(truth, anchors).argmax(1)
            # Column 0 is background in SSD, unused in RetinaNet.
            logits = self.outputs["head"]["cls_logits"][index, best, CLASSES_FROM:]
            codes = self.outputs["head"]["bbox_regression"][index, best]
            boxes = coder.decode_single(codes, anchors[best])
            self.correct.append(logits.argmax(1) + CLASSES_FROM == target["labels"])
            self.overlaps.append(box_iou(boxes, truth).diagonal())

    def table(self) -> dict[str, float | None]:
        """Both in percent, over all objects so far; None where there was none."""
        if not self.overlaps:
            return dict.fromkeys(DIAGNOSTICS)
        return {
            "class acc": 100 * torch.cat(self.correct).float().mean().item(),
            "mean IoU": 100 * torch.cat(self.overlaps).cpu().numpy().mean().item(),
        }
