"""How far a gain hangs on the pictures that happen to be in the split: a paired bootstrap over them.

The pictures are drawn anew with replacement, as many as there are. Both arms are scored on the same draw, each seed with its own
detections, and the standard deviation of the mean gain over the draws is its standard error over pictures (Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, ch. 6). That over seeds says how far training is a matter of chance; neither holds the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cls2det.study.report.tide import RECALLS, THRESHOLDS, Matches

DRAWS = 200  # the error's own relative error is 1 / sqrt(2 · 200), one in twenty


def draw_images(images: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """(draws, images): how often each picture is in each draw. The same for every arm, so that draws are paired."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)


def resampled_map(matches: Matches, counts: np.ndarray) -> np.ndarray:
    """(draws,): COCO's mAP in percent of each draw; NaN where a draw has no object.

    Args:
        matches: of the detections of all pictures
        counts: (draws, images), how often each picture is in the draw
    """
    scores = []
    for one in range(matches.truth_category.max(initial=-1) + 1):
        objects = counts[:, matches.truth_image[matches.truth_category == one]].sum(1)
        rows = np.flatnonzero(matches.category == one)
        weights = counts[:, matches.image[rows]].astype(float)
        for level in range(len(THRESHOLDS)):
            keep = ~matches.ignored[level, rows]
            hit = matches.matched[level, rows[keep]] >= 0
            scores.append(_average_precision(weights[:, keep], hit, objects))
    by_class = np.array(scores).reshape(-1, len(THRESHOLDS), len(counts))
    known = ~np.isnan(by_class).all((0, 1))
    result = np.full(len(counts), np.nan)
    result[known] = 100 * np.nanmean(by_class[..., known], (0, 1))
    return result


def _average_precision(weights: np.ndarray, hit: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """(draws,): 101-point AP of one class, a share of 1; NaN without an object.

    Args:
        weights: (draws, n), how often each detection is in the draw, in order of score
        hit: (n,), whether it matches a ground truth
        objects: (draws,), ground truths
    """
    all_so_far = np.cumsum(weights, 1)[:, hit]  # precision is highest, and recall grows, at hits alone
    hits = np.cumsum(weights[:, hit], 1)
    precision = hits / np.maximum(all_so_far, 1)
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    result = np.full(len(weights), np.nan)
    for draw in np.flatnonzero(objects):
        reached = np.searchsorted(hits[draw] / objects[draw], RECALLS, side="left")
        result[draw] = np.append(precision[draw], 0.0)[reached].mean()
    return result


def error_over_images(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """Standard deviation over draws of the mean gain of pairs (with, without) of ``resampled_map``; None without pairs."""
    if not pairs:
        return None
    gains = np.mean([with_ - without for with_, without in pairs], axis=0)
    gains = gains[~np.isnan(gains)]
    return float(gains.std(ddof=1)) if len(gains) > 1 else None
