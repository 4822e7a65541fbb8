"""How far a classifier's confidence is from its accuracy. A stronger but over-confident teacher can hurt (paper, Table 3b)."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
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


def log_likelihood(logits: Tensor, classes: Tensor, *, sigmoid: bool) -> float:
    """Mean log-probability, in nats, that logits (N, columns) give to true ``classes`` (N,): 0 is the best.

    It is a proper score: it falls with wrong answers and with a wrong confidence alike.

    Args:
        sigmoid: each column is a yes or no of its own, and the log-probabilities of all columns add up
    """
    if not sigmoid:
        return -F.cross_entropy(logits.double(), classes).item()
    truth = F.one_hot(classes, logits.shape[1]).double()
    return -F.binary_cross_entropy_with_logits(logits.double(), truth, reduction="none").sum(1).mean().item()


def best_temperature(logits: Tensor, classes: Tensor, *, sigmoid: bool) -> float:
    """What the logits must be divided by for the highest ``log_likelihood``, from 0.05 to 20 (Guo et al., ICML 2017, section 4.2).

    Above 1, the classifier is too sure of itself. Found to 1 % by golden sections of its logarithm.
    """
    low, high, share = math.log(0.05), math.log(20.0), (math.sqrt(5) - 1) / 2

    def score(value: float) -> float:
        return log_likelihood(logits / math.exp(value), classes, sigmoid=sigmoid)

    while high - low > 0.01:
        first, second = high - share * (high - low), low + share * (high - low)
        low, high = (low, second) if score(first) > score(second) else (first, high)
    return math.exp((low + high) / 2)
