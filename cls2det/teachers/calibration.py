"""Is a classifier as sure as it is right? A stronger but over-confident teacher was seen to hurt (paper, Table 3b)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


def calibration(probabilities: Tensor, classes: Tensor, bins: int = 15) -> dict:
    """Top-1 accuracy and calibration of probabilities (N, C) for true ``classes`` (N,), in percent.

    ``ece`` is the expected calibration error (Guo et al., ICML 2017, eq. 3): the mean over crops of ``|accuracy - confidence|``
    of the crop's bin, of ``bins`` equal bins of confidence. ``overconfidence`` is mean confidence minus accuracy.
    ``bins`` holds (confidence, accuracy, crops) of those that are not empty. N = 0 gives None for every number.
    """
    if not len(classes):
        return {"accuracy": None, "ece": None, "overconfidence": None, "bins": []}
    confidence, answer = probabilities.double().max(1)
    right = (answer == classes).double()
    number = (confidence * bins).long().clamp(max=bins - 1)
    table = []
    for place in number.unique():
        inside = number == place
        table.append((100 * confidence[inside].mean().item(), 100 * right[inside].mean().item(), int(inside.sum())))
    return {
        "accuracy": 100 * right.mean().item(),
        "ece": sum(abs(sure - true) * count for sure, true, count in table) / len(classes),
        "overconfidence": 100 * (confidence.mean() - right.mean()).item(),
        "bins": table,
    }


def draw_reliability(results: dict[str, dict], path: str | Path) -> None:
    """Reliability diagram of ``calibration``'s results, by name: accuracy against confidence, area by share of the crops."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="grey", linewidth=0.8)
    title = []
    for name, result in results.items():
        if not result["bins"]:
            continue
        confidence, accuracy, counts = (
            torch.tensor(column, dtype=torch.float64) for column in zip(*result["bins"], strict=True)
        )
        axes.scatter(confidence, accuracy, s=(600 * counts / counts.sum()).clamp(min=6), alpha=0.6)
        title.append(
            f"{name}: accuracy {result['accuracy']:.1f} %, ECE {result['ece']:.1f} %, "
            f"over-confidence {result['overconfidence']:+.1f} %"
        )
    axes.set_title("\n".join(title), fontsize=8)
    axes.set(xlabel="confidence, percent", ylabel="accuracy, percent", xlim=(0, 102), ylim=(0, 102))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
