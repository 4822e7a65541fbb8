"""Rules of :func:`explain` about indices: of ground truths and of images."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ._box_mistakes import overlap
from ._call import Call


def matches_out_of_range(call: Call) -> str | None:
    if call.all_matches is None or call.count is None:
        return None
    beyond = (call.all_matches >= call.count).nonzero().flatten()
    if not len(beyond):
        return None
    return (
        f"matched_idxs must be below {call.count}, the number of ground truths, found {int(call.all_matches[beyond[0]])} "
        f"({len(beyond)} such of {len(call.all_matches)}): {_not_matches(call)}"
    )


def _not_matches(call: Call) -> str:
    starts_at_one = call.all_matches is not None and int(call.all_matches[call.all_matches >= 0].min()) > 0
    return (
        f"they may be class labels{', or count from 1' if starts_at_one else ''}. A match is the place of the positive's ground "
        "truth in target_boxes, from 0."
    )


def images_out_of_range(call: Call) -> str | None:
    for name, index in (("target_image_index", call.target_images), ("image_index", call.all_images)):
        if index is None or not len(index):
            continue
        of_targets = name == "target_image_index"
        sides = [of_map for of_map in call.maps if (of_map.targets if of_targets else of_map.boxes)]
        images = min((of_map.features.shape[0] for of_map in sides), default=None)
        bad = index < 0 if of_targets else torch.zeros_like(index, dtype=torch.bool)
        if images is not None:
            bad = bad | (index >= images)
        if bool(bad.any()):
            size = "at least 0" if images is None else f"in [0, {images}), the images of {sides[0].name}"
            return (
                f"{name} must be {size}, found {int(index[bad][0])} ({int(bad.sum())} such of {len(index)}): count the images "
                "of the batch from 0; rows of other images are ignored in silence."
            )
    return None


def matches_of_other_images(call: Call) -> str | None:
    """A positive in one image whose ground truth lies in another."""
    if call.images is None or call.target_images is None or not len(call.rows):
        return None
    other = call.target_images[call.matched] != call.images[call.rows]
    if not bool(other.any()):
        return None
    return (
        f"matched_idxs must be places in the ground truths of the whole batch, found {int(other.sum())} of {len(other)} "
        "positives matched to a ground truth of another image: where matches count within each image, add the number of "
        "ground truths of the images before (cls2det's Positives.from_lists does so)."
    )


def targets_per_positive(call: Call) -> str | None:
    """A copy of its ground truth for every positive, and matches that count the ground truths once."""
    targets, images, matches = call.targets, call.target_images, call.all_matches
    if targets is None or images is None or matches is None or len(matches) != len(targets) or len(targets) < 3:
        return None
    different = len(torch.cat([targets, images[:, None].double()], 1).unique(dim=0))
    if different == len(targets) or int(matches.max()) >= different:
        return None
    return (
        f"target_boxes must be the ground truths of the batch, each once, found {different} different ones in {len(targets)} rows, "
        "as many as there are positives: give one row each, or torch.arange as matched_idxs (cls2det's Positives.from_matched takes "
        "copies)."
    )


def unmatched_images(call: Call) -> str | None:
    """No positive belongs to a ground truth of the later images: matches count within each image, or are labels."""
    places, images, matches = call.rows, call.target_images, call.all_matches
    if images is None or matches is None or len(places) < 2 or len(matches[matches >= 0]) < len(images):
        return None
    matches = matches[(matches >= 0) & (matches < len(images))]
    last = int(matches.max())
    later = int((images > images[: last + 1].max()).sum())
    largest = int(images.bincount().max()) if int(images.min()) >= 0 else len(images)
    right, wrong = _fits(call)
    if later < max(3, 0.25 * len(images)) or (right >= 0.8 and wrong < 0.15):
        return None
    if right < 0 and (later < max(6, 0.4 * len(images)) or len(images[images > images[: last + 1].max()].unique()) < 3):
        return None  # where no boxes can tell, there must be more of it
    finding = f"found none of {len(matches)} positives matched beyond place {last} of {len(images)}: "
    expected = "matched_idxs must be places in the ground truths of the whole batch, "
    if last >= largest or int(matches.min()) > 0:
        return expected + finding + _not_matches(call)
    return (
        f"{expected}{finding}they may count within each image, where the number of ground truths of the images before must be "
        "added (cls2det's Positives.from_lists does so), or be class labels."
    )


def matches_elsewhere(call: Call) -> str | None:
    """Predictions that lie on other ground truths than their own."""
    right, wrong = _fits(call)
    if len(call.rows) < 6 or wrong < 0.4 or (right > 0.5 and wrong < 0.6):
        return None
    per_target = call.matched.bincount(minlength=call.count or 0)
    if len(per_target[per_target > 0].unique()) == 1:
        return None  # one each, as a Hungarian matcher gives them: where a young detector's boxes lie says nothing
    return (
        f"matched_idxs must be the ground truth of each positive, found that {wrong:.0%} of boxes lie on another than their own: "
        "check the order of the positives and of target_boxes, and that matches are places in the whole batch, not labels."
    )


def _fits(call: Call) -> tuple[float, float]:
    """Shares of positives that lie at their own ground truth, and on another one instead; -1 where there are no boxes."""
    if call.boxes is None or call.targets is None or not len(call.rows):
        return -1.0, -1.0
    boxes, own = call.boxes[call.rows], call.targets[call.matched]
    on_own = overlap(boxes, own)
    best = torch.cat([overlap(chunk[:, None], call.targets[None]).amax(1) for chunk in boxes.split(256)])
    centre, own_centre = (boxes[:, :2] + boxes[:, 2:]) / 2, (own[:, :2] + own[:, 2:]) / 2
    near = ((centre >= own[:, :2]) & (centre <= own[:, 2:])).all(1)
    near |= ((own_centre >= boxes[:, :2]) & (own_centre <= boxes[:, 2:])).all(1)
    return float(((on_own >= 0.3) | near).double().mean()), float(((on_own < 0.5 * best) & (best >= 0.6)).double().mean())


INDEX_RULES: tuple[Callable[[Call], str | None], ...] = (
    matches_out_of_range,
    images_out_of_range,
    matches_of_other_images,
)
# From weaker evidence: the first that speaks is enough.
MATCH_RULES: tuple[Callable[[Call], str | None], ...] = (targets_per_positive, unmatched_images, matches_elsewhere)
