"""Rules of :func:`explain` about boxes: their form, their unit, and the maps on which they lie."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._call import Call, Map

CORNERS = "(x1, y1, x2, y2) in pixels of the network's input"
CONVERT = "convert them with torchvision.ops.box_convert"


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes (…, 4), broadcast; 0 for a box without an area."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1) for boxes in (first, second)]
    return torch.nan_to_num(shared / (areas[0] + areas[1] - shared), nan=0.0)


def not_finite(call: Call) -> str | None:
    for name, boxes in _named(call):
        bad = (~boxes.isfinite().all(1)).nonzero().flatten()
        if len(bad):
            return (
                f"{name} must be finite, found {_text(boxes[bad[0]])} ({len(bad)} such): look for a division by 0 before it."
            )
    return None


def normalised(call: Call) -> str | None:
    """Boxes in shares of the image: nothing reaches beyond 2 pixels of a map of many."""
    extent = call.extent
    if extent is None or max(extent) < 16:
        return None
    flat = {name for name, boxes in _named(call) if len(boxes) and 0 < float(boxes.abs().max()) <= 2}
    if "target_boxes" not in flat and (call.boxes is None or len(call.boxes) < 3):
        return None  # one or two predictions may be anywhere
    if not flat:
        return None
    width, height = extent
    named, values = " and ".join(sorted(flat)), dict(_named(call))
    largest = max(float(values[name].max()) for name in flat)
    return (
        f"{named} must be {CORNERS}, found no coordinate above {largest:.3g} on images of {height:.0f} x {width:.0f}: "
        "they look like shares of the image. Multiply x by its width and y by its height "
        "(of transformers' outputs, which are centre and size, convert to corners too)."
    )


def other_corners(call: Call) -> str | None:
    """Ground truths with x2 < x1 or y2 < y1, or many such predictions."""
    for name, boxes in _named(call):
        inverted = boxes[:, :2] > boxes[:, 2:]
        count, of_all = int(inverted.any(1).sum()), len(boxes)
        if count == 0 or (name == "boxes" and (count < 0.3 * of_all or of_all < 3)):
            continue  # a young regression may turn a prediction over
        return (
            f"{name} must be {CORNERS}, found x2 < x1 or y2 < y1 in {count} of {of_all} rows, such as "
            f"{_text(boxes[inverted.any(1)][0])}: {_likely_form(call, name, boxes, inverted)}."
        )
    return None


def _likely_form(call: Call, name: str, boxes: Tensor, inverted: Tensor) -> str:
    """What the four numbers may be, by whether the boxes then lie within the images, or on their partners."""
    partner = _partners(call, name)
    forms = {form: change(boxes) for form, change in FORMS.items()}
    if partner is not None:
        places, others = partner
        fits = {form: float(overlap(changed[places], others).median()) for form, changed in forms.items()}
        best = max(fits, key=lambda form: fits[form])
        if fits[best] >= 0.4 and float(overlap(boxes[places], others).median()) < fits[best]:
            return f"they look like {best}; {CONVERT if 'corners' not in best else 'sort them'}"
    possible = [form for form in FORMS if "corners" not in form and _lie_within(call, forms[form])]
    if bool((inverted == inverted[0]).all()) and (len(boxes) > 2 or not possible):
        possible.append("corners in another order, as after a flip of the image without one of its boxes")
    if not possible:
        possible = ["corners in another order, as after a flip of the image without one of its boxes"]
    return f"they look like {' or '.join(possible)}; {CONVERT}, or sort the corners"


def beyond_the_map(call: Call) -> str | None:
    """Ground truths whose centre lies outside of the images, by the maps' own sizes."""
    if call.targets is None or not len(call.targets):
        return None
    centres = (call.targets[:, :2] + call.targets[:, 2:]) / 2
    wrong: dict[Map, float] = {}
    fitting = []
    for of_map in call.maps:
        if of_map.targets:
            limit = torch.tensor(of_map.extent, dtype=torch.float64) + of_map.slack
            share = float(((centres > limit) | (centres < -of_map.slack)).any(1).double().mean())
            wrong |= {of_map: share} if share >= 0.25 else {}
            fitting += [of_map] if share < 0.25 else []
    if not wrong:
        return None
    of_map, share = next(iter(wrong.items()))
    width, height = of_map.extent
    expected = (
        f"target_boxes must lie on {of_map.name}, {height:.0f} x {width:.0f} pixels of the input with its "
        f"spatial_scale of {of_map.scale:.4g}, found the centres of {share:.0%} outside"
    )
    larger = [other for other in fitting if other.extent[0] > 1.25 * width + of_map.slack + other.slack]
    if of_map.scale > 1:
        return f"{expected}: spatial_scale is the map's width over the images', such as 1/4, not the stride."
    if larger or not (of_map.is_pictures or of_map.scale != 1):
        return f"{expected}: give spatial_scale, the map's width over the images' (1 / stride)."
    return f"{expected}: they may be in pixels of the original picture. Scale them as the picture was resized."


def other_scales(call: Call) -> str | None:
    """Two maps that disagree about the size of the input."""
    if len(call.maps) < 2:
        return None
    widest = max(call.maps, key=lambda of_map: of_map.extent[0])
    for of_map in call.maps:
        gap = widest.extent[0] - of_map.extent[0]
        if gap > 0.25 * of_map.extent[0] + of_map.slack + widest.slack:
            return (
                f"maps must cover the same images, found {of_map.name} {of_map.extent[0]:.0f} and {widest.name} "
                f"{widest.extent[0]:.0f} pixels wide: check the spatial_scale of both, the map's width over the images' (1 / stride)."
            )
    return None


def other_form(call: Call) -> str | None:
    """Boxes that lie on their ground truths once one side is read in another form, and do not as they are."""
    partner = _partners(call, "target_boxes")
    if partner is None or call.boxes is None or call.targets is None or len(call.matched.unique()) < 5:
        return None
    places, boxes = partner
    targets = call.targets[places]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((middle > targets[:, :2]) & (middle < targets[:, 2:])).all(1).double().mean()
    if float(overlap(targets, boxes).median()) > 0.3 or float(inside) > 0.5:
        return None  # a young detector's boxes may be small, but lie on their objects
    for form, change in FORMS.items():
        for name, fit in (("target_boxes", overlap(change(targets), boxes)), ("boxes", overlap(targets, change(boxes)))):
            if float(fit.quantile(0.25)) >= 0.5:
                return f"{name} must be {CORNERS}, found that they fit their partners as {form}: {CONVERT}."
    return _other_unit(targets, boxes)


def _other_unit(targets: Tensor, boxes: Tensor) -> str | None:
    """Ground truths that lie on the predictions once they are multiplied by one number per axis."""
    centres = [(rows[:, :2] + rows[:, 2:]) / 2 for rows in (targets, boxes)]
    ratio = (centres[1] / centres[0]).median(0).values
    if not bool(((ratio > 0) & ratio.isfinite()).all()) or bool(((ratio > 0.8) & (ratio < 1.25)).all()):
        return None
    spread = centres[0].std(0) / centres[0].mean(0)
    if float(overlap(targets * ratio.repeat(2), boxes).quantile(0.25)) < 0.5 or float(spread.min()) < 0.15:
        return None  # where all lie in one place, a number that brings them there always exists
    x, y = ratio.tolist()
    return (
        f"target_boxes and boxes must be in pixels of the same image, the network's input, found that they fit where "
        f"target_boxes are multiplied by {x:.3g} in x and {y:.3g} in y: one of them is in pixels of the original picture."
    )


def copies(call: Call) -> str | None:
    """Predictions that are the ground truths themselves."""
    partner = _partners(call, "target_boxes") if call.maps else None
    if partner is None or call.targets is None or len(partner[0]) < 3:
        return None
    places, boxes = partner
    if not torch.equal(call.targets[places], boxes):
        return None
    return (
        "boxes must be the predicted boxes, found those of the ground truths in every row: decode the detector's regression."
    )


def _corners_of_size(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def _corners_of_centre(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)


def _sorted_corners(boxes: Tensor) -> Tensor:
    return torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], 1)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "(x, y, width, height)": _corners_of_size,
    "(centre x, centre y, width, height)": _corners_of_centre,
    "corners in another order": _sorted_corners,
}


def _named(call: Call) -> list[tuple[str, Tensor]]:
    """Both kinds of boxes; of predictions those that count."""
    boxes = [] if call.targets is None else [("target_boxes", call.targets)]
    if call.boxes is not None:
        boxes.append(("boxes", call.boxes if call.matches is None else call.boxes[call.rows]))
    return boxes


def _partners(call: Call, name: str) -> tuple[Tensor, Tensor] | None:
    """For the boxes of ``name``: places of those that have a partner on the other side, and the partners."""
    if call.boxes is None or call.targets is None or call.matches is None or not len(call.rows):
        return None
    if name == "target_boxes":
        return call.matched, call.boxes[call.rows]
    return torch.arange(len(call.rows)), call.targets[call.matched]


def _lie_within(call: Call, boxes: Tensor) -> bool:
    """Whether (nearly) all lie in the images, as far as their size is known."""
    if call.extent is None:
        return bool((boxes > -2).all(1).double().mean() > 0.9)
    limit = torch.tensor(call.extent * 2, dtype=torch.float64) * 1.02 + 2
    return bool(((boxes > -2) & (boxes < limit)).all(1).double().mean() > 0.9)


def _text(box: Tensor) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in box.tolist()) + ")"


FORM_RULES: tuple[Callable[[Call], str | None], ...] = (not_finite, normalised, other_corners)
PLACE_RULES: tuple[Callable[[Call], str | None], ...] = (beyond_the_map, other_scales, other_form, copies)
