"""What is probably wrong with a call of a loss at boxes, in sentences: for mistakes that give a number and no error."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _checks as check
from ._call import Map, read_call
from ._mistakes import sentences

if TYPE_CHECKING:
    from .ops.roi_feature_loss import RoIMap

POSITIVES = {"student_logits": 2, "boxes": 2, "matched_idxs": 1, "image_index": 1, "weight": 1}  # dimensions
TARGETS = {"teacher_logits": 2, "target_boxes": 2, "target_image_index": 1, "target_labels": 1}
INDICES = ("matched_idxs", "image_index", "target_image_index", "target_labels")
UNREAD = ("temperature", "cls_weight", "loss", "beta", "padding_mode", "clip", "normalizer", "output_size", "sampling_size")

_told: set[str] = set()  # sentences without their numbers, that debug mode has said in this process


def explain(
    student_logits: Tensor | None = None,
    boxes: Tensor | None = None,
    teacher_logits: Tensor | None = None,
    target_boxes: Tensor | None = None,
    matched_idxs: Tensor | None = None,
    target_image_index: Tensor | None = None,
    maps: RoIMap | Sequence[RoIMap] = (),
    *,
    target_labels: Tensor | None = None,
    image_index: Tensor | None = None,
    features: Tensor | None = None,
    spatial_scale: float = 1.0,
    target_features: Tensor | None = None,
    target_spatial_scale: float | None = None,
    std: float = 1.0,
    head: str = "softmax",
    background: str | None = None,
    loc_weight: float = 0.15,
    weight: Tensor | None = None,
    **others: Any,
) -> list[str]:
    """Sentences that name the likely mistakes of a call and their remedies; an empty list for a right call.

    Call it as :func:`roi_kd_loss`, with the same arguments. It also takes those of :func:`roi_feature_loss`,
    :func:`kd_softmax_loss` and :func:`kd_sigmoid_loss` by name, and judges by what is there.

    It finds labels in the place of matches, matches that count within an image, indices out of range, the wrong background
    column, boxes that are shares of the image, have a width and height or are in another picture's pixels, probabilities in
    the place of logits, detached boxes, maps without their scale, teachers with another order of classes, and pixel terms
    without effect. It would rather miss a mistake than speak of a right call. So some need company: a wrong background column
    a student that knows its classes, another order of classes a dozen labels, wrong matches several images or boxes that fit.

    Args:
        student_logits, boxes, teacher_logits, target_boxes, matched_idxs, target_image_index: as in :func:`roi_kd_loss`
        maps, head, background, weight: as in :func:`roi_kd_loss`
        loc_weight: as in :func:`roi_kd_loss`; with 0 boxes need no gradient
        target_labels: (G,) int64 or int32, the class of each ground truth, from 1: label 1 is the teacher's column 0
        image_index: (K,) the image of each positive, as in :func:`roi_feature_loss`
        features, spatial_scale, target_features, target_spatial_scale, std: as in :func:`roi_feature_loss`
        others: further arguments of these functions, which no rule reads

    Returns:
        The sentences.

    It reads values, and so waits for a GPU once. Under DDP every process judges its own call and waits for no other.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape or device, or of no loss.
    """
    name = "explain"
    if unknown := others.keys() - {*UNREAD, "mode", "reduction"}:
        raise TypeError(f"{name}: {', '.join(sorted(unknown))} must be an argument of a loss at boxes, found no such argument")
    check.choice(name, "head", head, ("softmax", "sigmoid"))
    if background is not None:
        check.choice(name, "background", background, check.BACKGROUNDS)
    tensors: dict[str, Tensor | None] = {
        "student_logits": student_logits,
        "boxes": boxes,
        "target_boxes": target_boxes,
        "teacher_logits": teacher_logits,
        "matched_idxs": matched_idxs,
        "target_image_index": target_image_index,
        "target_labels": target_labels,
        "image_index": image_index,
        "weight": weight,
    }
    present = {argument: tensor for argument, tensor in tensors.items() if tensor is not None}
    for group in (POSITIVES, TARGETS):
        _check_rows(name, {argument: tensor for argument, tensor in present.items() if argument in group}, group)
    check.number(name, "loc_weight", loc_weight)
    listed = _maps(name, maps, loc_weight)
    if features is not None:
        listed += _sides("features", features, spatial_scale, target_features, target_spatial_scale, std, None)
    for of_map in listed:
        check.feature_map(name, f"features of {of_map.name}", of_map.features)
        check.positive(name, f"spatial_scale of {of_map.name}", of_map.scale)
        check.positive(name, f"std of {of_map.name}", of_map.std)
    check.same_device(name, **present, **{of_map.name: of_map.features for of_map in listed})
    is_weighted = isinstance(loc_weight, Tensor) or loc_weight != 0
    return sentences(read_call(present, listed, head, background, is_weighted))


def warn_of_mistakes(function: str, **arguments: Any) -> None:
    """Debug mode: a warning of each mistake, once in a process."""
    is_compiled = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
    if is_compiled or any(type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_meta for tensor in tensors):
        return  # nothing has a value there
    for sentence in explain(**arguments):
        kind = re.sub(r"[-\d., ]+", " ", sentence)  # its numbers differ from step to step
        if kind not in _told:
            _told.add(kind)
            warnings.warn(f"{function}: {sentence}", stacklevel=3)


def _check_rows(name: str, present: dict[str, Tensor], dimensions: dict[str, int]) -> None:
    """Dtypes and shapes of tensors that have a row each for the same things."""
    first = None
    for argument, tensor in present.items():
        rows: int | str = "rows" if first is None else len(present[first])
        if argument in INDICES:
            check.index(name, argument, tensor, len(tensor) if first is None else len(present[first]), first or argument)
        else:
            columns: tuple[int | str, ...] = () if dimensions[argument] == 1 else (4 if "boxes" in argument else "columns",)
            check.floating(name, argument, tensor, (rows, *columns), first)
        first = first or argument


def _maps(name: str, maps: RoIMap | Sequence[RoIMap], loc_weight: float) -> list[Map]:
    from .ops.roi_kd_loss import list_of_maps  # whose module imports this one, for debug mode

    sides: list[Map] = []
    listed = list_of_maps(name, maps)
    for number, one in enumerate(listed):
        sides += _sides(
            f"maps[{number}]" if len(listed) > 1 else "maps",
            one.features,
            one.spatial_scale,
            one.target_features,
            one.target_spatial_scale,
            one.std,
            None if isinstance(loc_weight, Tensor) or isinstance(one.weight, Tensor) else loc_weight * one.weight,
        )
    return sides


def _sides(
    name: str,
    features: Tensor,
    scale: float,
    target_features: Tensor | None,
    target_scale: float | None,
    std: float,
    weight: float | None,
) -> list[Map]:
    """A map for both kinds of boxes, or one for each."""
    if target_features is None and target_scale is None:
        return [Map(name, features, scale, std=std, weight=weight)]
    others = features if target_features is None else target_features
    return [
        Map(name, features, scale, targets=False, std=std, weight=weight),
        Map(f"{name} (target_features)", others, scale if target_scale is None else target_scale, boxes=False),
    ]
