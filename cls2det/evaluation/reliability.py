"""The reliability diagram of a teacher: accuracy against confidence."""

from __future__ import annotations

from pathlib import Path

import torch

from cls2det.evaluation.fonts import use_fonts_for_texts


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
    use_fonts_for_texts(figure)
    figure.savefig(path, dpi=150)
