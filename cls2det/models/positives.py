"""The positives of one training batch: what every distiller at boxes reads, of any detector in any trainer.

A trainer holds them in one of three forms. ``Positives(...)`` takes one list of all images' ground truths, and matches that
count within it. ``Positives.from_lists`` takes an entry per image, with matches that count within the image (torchvision,
transformers). ``Positives.from_matched`` takes a copy of the ground-truth box for every positive (detectron2, mmdetection,
Ultralytics). All three give the same losses. :class:`cls2det.models.taps.PositiveTap` reads them out of known detectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

HEADS = ("softmax", "sigmoid")
BACKGROUNDS = ("first", "last", "none")


@dataclasses.dataclass(frozen=True)
class Positives:
    """K positives of B images with G ground truths. Boxes are xyxy in pixels of ``images``.

    Attributes:
        images: (B, 3, H, W), as the network sees them: resized, normalised, padded to one size
        logits: (K, columns), the student's, with gradient
        boxes: (K, 4), decoded by the model's own coder and not clipped, with gradient
        image_index: (K,), 0 … B-1
        matched_idxs: (K,), 0 … G-1: the ground truth that the positive was matched to
        target_boxes: (G, 4): all images' ground truths in one list
        target_labels: (G,), from 1
        target_image_index: (G,), 0 … B-1
        head: "softmax" over the columns of ``logits``, or a "sigmoid" of each
        background: the column of ``logits`` that is no class: "first" (column = label; unused where the head is sigmoid),
            "last" (column = label - 1), or "none" (column = label - 1)
        origins: (G,), from which annotation each ground truth comes, see ``data.origins``: a bank of teacher's outputs is read
            by it; None where none is read
    """

    images: Tensor
    logits: Tensor
    boxes: Tensor
    image_index: Tensor
    matched_idxs: Tensor
    target_boxes: Tensor
    target_labels: Tensor
    target_image_index: Tensor
    head: str
    background: str
    origins: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, value, choices in (("head", self.head, HEADS), ("background", self.background, BACKGROUNDS)):
            if value not in choices:
                raise ValueError(f"Positives: {name} must be one of {', '.join(choices)}; found {value!r}")
        rows = {"logits": 2, "boxes": 2, "image_index": 1, "matched_idxs": 1}
        targets = {"target_boxes": 2, "target_labels": 1, "target_image_index": 1}
        for group in (rows, targets):
            shapes = {name: tuple(getattr(self, name).shape) for name in group}
            are_boxes = all(shapes[name][1:] == (4,) for name in shapes if "boxes" in name)
            fit = len({shape[:1] for shape in shapes.values()}) == 1 and all(
                len(shapes[name]) == group[name] for name in group
            )
            if not (are_boxes and fit):
                rows_of_each = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
                raise ValueError(f"Positives: expected as many rows of each, boxes with 4 columns; found {rows_of_each}")
        if self.origins is not None and len(self.origins) != len(self.target_boxes):
            raise ValueError(
                f"Positives: expected origins of {len(self.target_boxes)} ground truths, found {len(self.origins)}; an augmentation "
                "that drops boxes must drop their origins too (data.origins.carried)"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def from_lists(
        cls,
        images: Tensor,
        logits: Sequence[Tensor],
        boxes: Sequence[Tensor],
        matched_idxs: Sequence[Tensor],
        target_boxes: Sequence[Tensor],
        target_labels: Sequence[Tensor],
        *,
        head: str,
        background: str,
        origins: Sequence[np.ndarray] | None = None,
    ) -> Positives:
        """Of lists with an entry per image, with matches that count within each image. Nothing waits for a GPU.

        Args:
            images: (B, 3, H, W), as the network sees them
            logits: of each image (K_i, columns), of its positives
            boxes: of each image (K_i, 4), decoded, xyxy in pixels of ``images``
            matched_idxs: of each image (K_i,), 0 … G_i - 1
            target_boxes: of each image (G_i, 4), xyxy in pixels of ``images``
            target_labels: of each image (G_i,), from 1
            head: "softmax" or "sigmoid"
            background: "first", "last" or "none", see the class
            origins: of each image (G_i,), see ``data.origins.make_origins``; None where no bank is read

        Raises:
            ValueError: lists of other lengths than the number of images, or entries that do not belong together
        """
        lists = {
            "logits": logits,
            "boxes": boxes,
            "matched_idxs": matched_idxs,
            "target_boxes": target_boxes,
            "target_labels": target_labels,
        }
        for name, parts in lists.items():
            if len(parts) != len(images):
                raise ValueError(f"from_lists: {name} must have an entry for each of {len(images)} images, found {len(parts)}")
        for first, second in (("logits", "boxes"), ("logits", "matched_idxs"), ("target_boxes", "target_labels")):
            for image, (one, other) in enumerate(zip(lists[first], lists[second], strict=True)):
                if len(one) != len(other):
                    raise ValueError(
                        f"from_lists: image {image} has {len(one)} rows of {first} and {len(other)} rows of {second}"
                    )
        counts = [len(rows) for rows in boxes]
        starts = [0]
        for rows in target_boxes:
            starts.append(starts[-1] + len(rows))
        return cls(
            images=images,
            logits=torch.cat(list(logits)),
            boxes=torch.cat(list(boxes)),
            image_index=_image_of_rows(counts, images.device),
            matched_idxs=torch.cat([rows.long() + start for rows, start in zip(matched_idxs, starts, strict=False)]),
            target_boxes=torch.cat(list(target_boxes)),
            target_labels=torch.cat(list(target_labels)),
            target_image_index=_image_of_rows([len(rows) for rows in target_boxes], images.device),
            head=head,
            background=background,
            origins=None if origins is None else np.concatenate(list(origins)),
        )

    @classmethod
    def from_matched(
        cls,
        images: Tensor,
        logits: Tensor,
        boxes: Tensor,
        image_index: Tensor,
        matched_boxes: Tensor,
        matched_labels: Tensor,
        *,
        head: str,
        background: str,
        origins: np.ndarray | None = None,
    ) -> Positives:
        """Of positives that each have a copy of their ground truth: equal copies in one image are one ground truth.

        A ground truth without a positive is not among them, and none is missed: no term reads it. Counting the different
        ground truths waits for a GPU, once.

        Args:
            images: (B, 3, H, W), as the network sees them
            logits: (K, columns)
            boxes: (K, 4), decoded, xyxy in pixels of ``images``
            image_index: (K,), 0 … B - 1
            matched_boxes: (K, 4), of the ground truth of each positive, xyxy in pixels of ``images``
            matched_labels: (K,), its label, from 1
            head: "softmax" or "sigmoid"
            background: "first", "last" or "none", see the class
            origins: (K,), of the ground truth of each positive, see ``data.origins.make_origins``; None where no bank is read

        Raises:
            ValueError: other numbers of rows
        """
        for name, rows in (("matched_boxes", matched_boxes), ("matched_labels", matched_labels), ("image_index", image_index)):
            if len(rows) != len(boxes):
                raise ValueError(f"from_matched: {name} must have a row for each of {len(boxes)} positives, found {len(rows)}")
        # float64 holds every float32 coordinate, image and label as it is
        keys = torch.cat([image_index[:, None].double(), matched_labels[:, None].double(), matched_boxes.detach().double()], 1)
        targets, matched_idxs = keys.unique(dim=0, return_inverse=True)
        if origins is not None:
            origins = origins[np.unique(matched_idxs.cpu().numpy(), return_index=True)[1]]
        return cls(
            images=images,
            logits=logits,
            boxes=boxes,
            image_index=image_index.long(),
            matched_idxs=matched_idxs,
            target_boxes=targets[:, 2:].to(matched_boxes.dtype),
            target_labels=targets[:, 1].long(),
            target_image_index=targets[:, 0].long(),
            head=head,
            background=background,
            origins=origins,
        )

    def thinned(self, count: int) -> Positives:
        """At most ``count`` of them, evenly spaced: they are in order of images, so every image keeps its share."""
        if len(self) <= count:
            return self
        keep = torch.linspace(0, len(self) - 1, count, device=self.boxes.device).long()
        rows = {name: getattr(self, name)[keep] for name in ("logits", "boxes", "image_index", "matched_idxs")}
        return dataclasses.replace(self, **rows)


def _image_of_rows(counts: Sequence[int], device: torch.device) -> Tensor:
    """0 … B - 1, each as often as ``counts`` says."""
    return torch.tensor([image for image, count in enumerate(counts) for _ in range(count)], dtype=torch.int64, device=device)
