"""The report's AP by class: mean over seeds, by arm."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from cls2det.evaluation.by_class import Row
from cls2det.study.report.runs import RunRecord, by_arm


def class_rows(runs: Iterable[RunRecord]) -> list[Row]:
    """A row per class in the data's order: ``objects`` and, by arm, the mean AP over seeds; None where a run lacks it."""
    arms = by_arm(runs)
    results = [run.result for group in arms.values() for run in group]
    names = dict.fromkeys(name for result in results for name in result.get("AP by class", {}))
    counts: dict[str, int] = next((result["objects by class"] for result in results if "objects by class" in result), {})
    return [
        {"class": name, "objects": counts.get(name)}
        | {arm: _mean([run.result.get("AP by class", {}).get(name) for run in group]) for arm, group in arms.items()}
        for name in names
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None
