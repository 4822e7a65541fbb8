"""How far a classifier's confidence is from its accuracy. A stronger but over-confident teacher can hurt (paper, Table 3b)."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def calibration(probabilities: Tensor, classes: Tensor, bins: int = 15) -> dict[str, Any]:
    """Top-1 accuracy and calibration of probabilities (N, C) for true ``classes`` (N,), in percent.

    ``ece`` is the expected calibration error (Guo et al., ICML 2017, eq. 3): the mean over crops of ``|accuracy - confidence|``
    of the crop's bin, of ``bins`` equal bins of confidence. ``overconfidence`` is mean confidence minus accuracy.
    ``bins`` holds (confidence, accuracy, crops) of those that are not empty. N = 0 gives None for every number.
    """
    if not len(classes):
        return {"accuracy": None, "ece": None, "overconfidence": None, "bins": []}
    confidence, answers = probabilities.double().max(1)
    correct = (answers == classes).double()
    bin_index = (confidence * bins).long().clamp(max=bins - 1)
    table = []
    for index in bin_index.unique():
        inside = bin_index == index
        table.append((100 * confidence[inside].mean().item(), 100 * correct[inside].mean().item(), int(inside.sum())))
    return {
        "accuracy": 100 * correct.mean().item(),
        "ece": sum(abs(mean - accuracy) * count for mean, accuracy, count in table) / len(classes),
        "overconfidence": 100 * (confidence.mean() - correct.mean()).item(),
        "bins": table,
    }
