"""What costs a detector its AP, in the manner of TIDE (Bolya et al., ECCV 2020), at each of COCO's ten IoU thresholds.

At a threshold t, detections are matched to ground truths as COCO does it. Every false positive is one of these, the
first that applies (IoU with "its" ground truth: the one it overlaps most):

    localisation    0.1 ≤ IoU < t with a ground truth of its class
    classification  IoU ≥ t with a ground truth of another class
    duplicate       IoU ≥ t with a ground truth of its class, which a detection with a higher score has taken
    background      IoU ≤ 0.1 with every ground truth
    both            the rest: neither the class nor the box is right
    missed          (no false positive) a ground truth that no detection found, and no error of the first two kinds is about

The size of an error is what mAP gains, in percent points, when an oracle mends it and nothing else. Localisation and
classification: of all false positives of these two kinds about one ground truth that was not found, the one with the highest
score gets the right box or class; every other one, and those about a ground truth that was found, is removed. Duplicate,
background, both: removed. Missed: these ground truths no longer count. Gains do not add up to 100 - mAP.

These are the numbers of the authors' library ``tidecv`` but for details in which they are COCO's: a class with no ground truth
is left out of the mean, the limit of 100 detections is per image and class, and detections of equal scores keep their order when
others are mended (tidecv's change places, which lowers its gains).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")
THRESHOLDS = np.linspace(0.5, 0.95, 10)
BACKGROUND = 0.1
MOST_DETECTIONS = 100  # per image and class, as in COCO's mAP
RECALLS = np.linspace(0, 1, 101)


def error_gains(matches: Matches) -> dict[str, list[float]]:
    """Gain in AP (percent) of every error in ``ERRORS`` at the ten thresholds, and ``AP`` itself, from ``match``."""
    if not len(matches.truth_category):
        raise ValueError("the ground truth holds no object (crowds do not count)")
    gains: dict[str, list[float]] = {name: [] for name in ("AP", *ERRORS)}
    for level in range(len(THRESHOLDS)):
        now, mended = _oracles(matches, level)
        gains["AP"].append(100 * now)
        for name in ERRORS:
            gains[name].append(100 * (mended[name] - now))
    return gains


@dataclasses.dataclass(frozen=True)
class Matches:
    """n detections in order of score, m ground truths that are no crowd, T thresholds. Categories and images count from 0."""

    image: np.ndarray  # (n,)
    category: np.ndarray  # (n,)
    matched: np.ndarray  # (T, n): the ground truth that the detection matches, or -1
    ignored: np.ndarray  # (T, n): in a crowd
    same: np.ndarray  # (n,): largest IoU with a ground truth of the same class, whether matched or not
    same_truth: np.ndarray  # (n,): and which that is, or -1
    other: np.ndarray  # (n,): the same for the other classes
    other_truth: np.ndarray  # (n,)
    truth_category: np.ndarray  # (m,)
    truth_image: np.ndarray  # (m,)


def match(truth: Any, detections: Sequence[Mapping[str, Any]]) -> Matches:
    """COCO's greedy matching, image by image and class by class.

    Args:
        truth: ``pycocotools.coco.COCO`` of the ground truth; its crowds absorb detections and are not looked for
        detections: in COCO's result format
    """
    place = {category: number for number, category in enumerate(sorted(truth.cats))}
    by_image: dict[int, list] = {image: [] for image in sorted(truth.imgs)}
    for detection in detections:
        if detection["image_id"] not in by_image or detection["category_id"] not in place:
            raise ValueError(
                f"a detection is of image {detection['image_id']}, category {detection['category_id']}, which the ground truth lacks"
            )
        by_image[detection["image_id"]].append(detection)
    parts: list[dict[str, np.ndarray]] = []
    truth_category: list[int] = []
    truth_image: list[int] = []
    for number, (image, of_image) in enumerate(by_image.items()):
        annotations = truth.imgToAnns[image]
        objects = [note for note in annotations if not note.get("iscrowd", 0)]
        crowds = [note for note in annotations if note.get("iscrowd", 0)]
        if of_image:
            part = _match_image(of_image, objects, crowds, place)
            for name in ("matched", "same_truth", "other_truth"):
                part[name][part[name] >= 0] += len(truth_category)
            parts.append(part | {"image": np.full(len(part["score"]), number)})
        truth_category += [place[note["category_id"]] for note in objects]
        truth_image += [number] * len(objects)
    joined = {name: np.concatenate([part[name] for part in parts], -1) for name in parts[0]} if parts else _nothing()
    order = np.argsort(-joined.pop("score"), kind="stable")
    return Matches(
        **{name: values[..., order] for name, values in joined.items()},
        truth_category=np.array(truth_category, dtype=int),
        truth_image=np.array(truth_image, dtype=int),
    )


def _match_image(detections: list, objects: list, crowds: list, place: Mapping[int, int]) -> dict[str, np.ndarray]:
    score = np.array([detection["score"] for detection in detections])
    category = np.array([place[detection["category_id"]] for detection in detections])
    order = np.argsort(-score, kind="stable")
    kept = np.sort(np.concatenate([np.flatnonzero(category[order] == one)[:MOST_DETECTIONS] for one in np.unique(category)]))
    order = order[kept]
    score, category = score[order], category[order]
    boxes = [detections[number]["bbox"] for number in order]
    overlap = _iou(boxes, objects, crowd=False)
    alike = category[:, None] == np.array([place[note["category_id"]] for note in objects], dtype=int)
    matched = np.full((len(THRESHOLDS), len(order)), -1)
    for one in np.unique(category[(overlap * alike >= THRESHOLDS[0]).any(1)]):
        rows, columns = np.flatnonzero(category == one), np.flatnonzero(alike[category == one][0])
        chosen = _greedy(overlap[np.ix_(rows, columns)])
        matched[:, rows] = np.where(chosen < 0, -1, columns[chosen])
    in_crowd = _iou(boxes, crowds, crowd=True)
    in_crowd = in_crowd * (category[:, None] == np.array([place[note["category_id"]] for note in crowds], dtype=int))
    same, same_truth = _largest(overlap, alike)
    other, other_truth = _largest(overlap, ~alike)
    return {
        "score": score,
        "category": category,
        "matched": matched,
        "ignored": (matched < 0) & (in_crowd.max(1, initial=0.0) >= THRESHOLDS[:, None]),
        "same": same,
        "same_truth": same_truth,
        "other": other,
        "other_truth": other_truth,
    }


def _nothing() -> dict[str, np.ndarray]:
    flat = {name: np.zeros(0) for name in ("score", "same", "other")}
    flat |= {name: np.zeros(0, dtype=int) for name in ("image", "category", "same_truth", "other_truth")}
    levels = np.zeros((len(THRESHOLDS), 0), dtype=int)
    return {**flat, "matched": levels, "ignored": levels.astype(bool)}


def _iou(boxes: list, notes: list, *, crowd: bool) -> np.ndarray:
    """(n, m); with a crowd, the share of the detection that lies in it."""
    from pycocotools import mask

    if not notes:
        return np.zeros((len(boxes), 0))
    others = np.array([note["bbox"] for note in notes], dtype=float).reshape(-1, 4)
    return mask.iou(np.array(boxes, dtype=float).reshape(-1, 4), others, [crowd] * len(notes))


def _largest(overlap: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest IoU of each row among the allowed columns and its column; 0 and -1 where it overlaps none."""
    if not overlap.shape[1]:
        return np.zeros(len(overlap)), np.full(len(overlap), -1)
    allowed_overlap = overlap * allowed
    best = allowed_overlap.max(1)
    return best, np.where(best > 0, allowed_overlap.argmax(1), -1)


def _greedy(overlap: np.ndarray) -> np.ndarray:
    """(T, n): the column that each row takes, rows in order: the best that is free and at the threshold. Of equals the last."""
    levels, columns = np.arange(len(THRESHOLDS)), overlap.shape[1]
    free = np.ones((len(levels), columns), dtype=bool)
    chosen = np.full((len(levels), len(overlap)), -1)
    for row in np.flatnonzero(overlap.max(1) >= THRESHOLDS[0]):
        possible = np.where(free, overlap[row], -1.0)
        best = columns - 1 - possible[:, ::-1].argmax(1)
        hit = possible[levels, best] >= THRESHOLDS
        chosen[hit, row] = best[hit]
        free[levels[hit], best[hit]] = False
    return chosen


def _oracles(matches: Matches, level: int) -> tuple[float, dict[str, float]]:
    """mAP at one threshold as it is, and with each error mended; shares of 1."""
    keep, hit = ~matches.ignored[level], matches.matched[level] >= 0
    detected = np.zeros(len(matches.truth_category), dtype=bool)
    detected[matches.matched[level][hit]] = True
    counts = np.bincount(matches.truth_category)
    kinds = dict(_kinds(matches, keep & ~hit, THRESHOLDS[level]))

    about = np.where(kinds["localisation"], matches.same_truth, -1)
    about = np.where(kinds["classification"], matches.other_truth, about)
    open_to_mend = np.flatnonzero((about >= 0) & ~detected[about])
    best = np.zeros_like(keep)
    best[open_to_mend[np.unique(about[open_to_mend], return_index=True)[1]]] = True  # the first has the highest score

    mended = {}
    for name, wrong in kinds.items():
        right = wrong & best
        kept = keep & ~wrong | right
        category = np.where(right, matches.truth_category[about], matches.category)
        mended[name] = mean_average_precision(category[kept], (hit | right)[kept], counts)
    missed = ~detected
    missed[about[open_to_mend]] = False
    left = counts - np.bincount(matches.truth_category[missed], minlength=len(counts))
    now = mean_average_precision(matches.category[keep], hit[keep], counts)
    # With nothing left to find, the oracle has done all there is to do.
    mended["missed"] = mean_average_precision(matches.category[keep], hit[keep], left) if left.any() else 1.0
    return now, mended


def _kinds(matches: Matches, wrong: np.ndarray, threshold: float) -> Iterator[tuple[str, np.ndarray]]:
    """The false positives by kind, each in one; ``both`` is what is left."""
    tests = {
        "localisation": (matches.same >= BACKGROUND) & (matches.same < threshold),
        "classification": matches.other >= threshold,
        "duplicate": matches.same >= threshold,
        "background": np.maximum(matches.same, matches.other) <= BACKGROUND,
        "both": np.ones_like(wrong),
    }
    for name, test in tests.items():
        yield name, wrong & test
        wrong = wrong & ~test


def mean_average_precision(category: np.ndarray, hit: np.ndarray, counts: np.ndarray) -> float:
    """COCO's 101-point AP, mean over the classes with ground truths; a share of 1. One class at least must have some.

    Args:
        category: (n,) class of each detection, in order of score
        hit: (n,) whether it matches a ground truth
        counts: (C,) ground truths by class
    """
    values = []
    for one in np.flatnonzero(counts):
        hits = np.cumsum(hit[category == one])
        precision = hits / np.arange(1, len(hits) + 1)
        precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # recall that is not reached: precision 0
        values.append(precision[np.searchsorted(hits / counts[one], RECALLS, side="left")].mean())
    return float(np.mean(values))
