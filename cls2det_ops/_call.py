"""The arguments of a loss at boxes as :func:`explain` reads them: on the host, with what all rules ask of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_ROWS, LARGEST_VALUES = 4096, 1 << 20  # of the positives that are looked at; of more, every n-th
NOTHING = torch.zeros(0, dtype=torch.float64)


@dataclass(eq=False)
class Map:
    """A map on which boxes are compared, and what is asked of its values."""

    name: str
    features: Tensor
    scale: float
    boxes: bool = True  # it is read at the predicted boxes, or at the ground truths
    targets: bool = True
    std: float = 1.0
    weight: float | None = None  # of the term; None: nobody said
    spread: float = 0.0  # standard deviation of its values, if they are pictures

    @property
    def is_pictures(self) -> bool:
        return self.features.shape[1] == 3 and self.scale == 1

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the input in pixels."""
        return self.features.shape[3] / self.scale, self.features.shape[2] / self.scale

    @property
    def slack(self) -> float:
        """Pixels by which the extent may be off, because sizes of maps are rounded."""
        return 1.5 / self.scale


@dataclass(eq=False)
class Call:
    """Tensors are float64 on the host, or int64 if they are indices; those that were not given are None.

    Of very many positives only every n-th is looked at: the rows of ``student``, ``boxes``, ``matches`` and ``images`` belong
    together. ``all_matches`` and ``all_images`` have all of them. A match that the loss ignores is -1 in ``matches``.
    """

    student: Tensor | None
    boxes: Tensor | None
    teacher: Tensor | None
    targets: Tensor | None
    target_images: Tensor | None
    labels: Tensor | None
    matches: Tensor | None
    images: Tensor | None
    all_matches: Tensor | None
    all_images: Tensor | None
    maps: list[Map]
    head: str
    background: str | None
    is_weighted: bool  # the location terms have a weight
    needs_gradient: dict[str, bool]  # of each argument that is there

    @functools.cached_property
    def count(self) -> int | None:
        """G, the number of ground truths."""
        tensors = (self.teacher, self.targets, self.target_images, self.labels)
        return next((len(tensor) for tensor in tensors if tensor is not None), None)

    @functools.cached_property
    def rows(self) -> Tensor:
        """Places of the rows that count in the loss."""
        if self.matches is None or self.count is None:
            return NOTHING.long()
        return ((self.matches >= 0) & (self.matches < self.count)).nonzero().flatten()

    @functools.cached_property
    def matched(self) -> Tensor:
        """The ground truth of each of ``rows``."""
        return NOTHING.long() if self.matches is None else self.matches[self.rows]

    @functools.cached_property
    def extent(self) -> tuple[float, float] | None:
        """Width and height of the input in pixels, the largest of the maps; None without maps."""
        if not self.maps:
            return None
        widths, heights = zip(*(of_map.extent for of_map in self.maps), strict=True)
        return max(widths), max(heights)


def read_call(tensors: dict[str, Tensor], maps: Sequence[Map], head: str, background: str | None, is_weighted: bool) -> Call:
    """Of checked arguments by name. A GPU is waited for once."""
    needs_gradient = {name: tensor.requires_grad for name, tensor in tensors.items()}
    needs_gradient["maps"] = any(of_map.features.requires_grad for of_map in maps)
    thinned = dict(tensors)
    student = tensors.get("student_logits")
    first = next((tensors[name] for name in ("student_logits", "boxes", "matched_idxs") if name in tensors), NOTHING)
    limit = min(LARGEST_ROWS, LARGEST_VALUES // max(1, 1 if student is None else student.shape[1]))
    step = max(1, math.ceil(len(first) / max(limit, 1)))
    for name in ("student_logits", "boxes"):
        if name in thinned:
            thinned[name] = thinned[name][::step]
    pictures = [of_map for of_map in maps if of_map.is_pictures and of_map.weight is not None]
    for number, of_map in enumerate(pictures):
        thinned[f"spread {number}"] = of_map.features.detach().float().std().reshape(1)
    here = _on_host(thinned)
    for number, of_map in enumerate(pictures):
        of_map.spread = float(here[f"spread {number}"])
    matches = here.get("matched_idxs")
    counted = matches
    if matches is not None and "weight" in here:
        counted = torch.where(here["weight"] == 0, -1, matches)
    images = here.get("image_index")
    return Call(
        student=here.get("student_logits"),
        boxes=here.get("boxes"),
        teacher=here.get("teacher_logits"),
        targets=here.get("target_boxes"),
        target_images=here.get("target_image_index"),
        labels=here.get("target_labels"),
        matches=None if counted is None else counted[::step],
        images=None if images is None else images[::step],
        all_matches=counted,
        all_images=images,
        maps=list(maps),
        head=head,
        background=background,
        is_weighted=is_weighted,
        needs_gradient=needs_gradient,
    )


def _on_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in float64, of indices in int64. They travel as one."""
    flat = [tensor.detach().to(torch.float64).flatten() for tensor in tensors.values()]
    values = torch.cat(flat).cpu() if flat else NOTHING
    parts = values.split([len(part) for part in flat])
    return {
        name: part.reshape(tensor.shape) if tensor.is_floating_point() else part.long().reshape(tensor.shape)
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }
