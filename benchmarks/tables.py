"""The rows of a run as tables: of the operators, and of the training steps."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

Table = list[list[str]]  # the first line is the head

MEMORY_RESOLUTION = 100_000  # bytes: less than this the resident set does not tell
OP_HEAD = [
    "op", "shape", "pass", "native ms", "reference ms", "ratio", "best baseline ms", "which", "ratio", "memory MB", "ratio",
]  # fmt: skip
STEP_HEAD = [
    "student", "images", "positives", "terms", "implementation", "step ms", "tax", "tax in CPU time", "released tax / this",
    "eager tax / this", "extra memory MB",
]  # fmt: skip
OP_NOTES = (
    "ratio: baseline time over native time, higher is better for native. memory: peak of one forward",
    "and backward above the inputs, native / reference, to 0.1 MB. torch.compile is tried at one shape per op.",
)
STEP_NOTES = (
    "step: forward and backward. tax: (distilled step - plain step) / plain step, median over rounds; in CPU time what others on the",
    "machine took is not counted. tax / this: in CPU time where there is one. KD-loc is with loc on pixels. extra memory: peak above",
    "the plain step's.",
)


def best_baseline(row: Mapping) -> tuple[str, float]:
    return min(((name, ms) for name, ms in row["ms"].items() if name != "native"), key=lambda pair: pair[1])


def op_table(rows: Sequence[Mapping]) -> Table:
    lines = [OP_HEAD]
    for row in rows:
        name, best = best_baseline(row)
        native, plain = row["ms"]["native"], row["ms"]["reference"]
        used = row["memory"]
        mega = f"{used['native'] / 1e6:.2f} / {used['reference'] / 1e6:.1f}" if used else ""
        share = f"1/{used['reference'] / max(used['native'], MEMORY_RESOLUTION):.0f}" if used else ""
        lines.append([row["op"], row["shape"], row["pass"], f"{native:.3f}", f"{plain:.3f}", f"{plain / native:.1f}x",
                      f"{best:.3f}", name, f"{best / native:.1f}x" + ("" if best > native else " LOSES"), mega, share])  # fmt: skip
    return lines


def tax(step: Mapping, plain: Mapping, clock: str) -> float | None:
    """Of each round with the plain step of that round; the median. ``clock``: "ms" or "cpu_ms"."""
    if not step[clock] or not plain[clock]:
        return None
    return statistics.median(mine / other - 1 for mine, other in zip(step[clock], plain[clock], strict=True))


def step_table(rows: Sequence[Mapping]) -> Table:
    lines = [STEP_HEAD]
    for row in rows:
        steps = {(step["terms"], step["implementation"]): step for step in row["contenders"]}
        plain = steps[("", "plain")]
        for (terms, implementation), step in steps.items():
            about = [row["student"], str(row["images"]), str(row["positives"]), terms, implementation]
            about.append(f"{statistics.median(step['ms']):.0f}")
            if step is plain:
                costs = ["", "", "", "", f"{step['memory'] / 1e6:.0f} in all" if step["memory"] else ""]
            else:
                costs = [_percent(tax(step, plain, clock)) for clock in ("ms", "cpu_ms")]
                costs += [_tax_ratio(steps, terms, other, step, plain) for other in ("as released", "eager")]
                costs.append(f"{(step['memory'] - plain['memory']) / 1e6:.0f}" if step["memory"] and plain["memory"] else "")
            lines.append(about + costs)
    return lines


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _tax_ratio(steps: Mapping, terms: str, other: str, step: Mapping, plain: Mapping) -> str:
    """How many times this step's tax the other implementation's is."""
    if (terms, other) not in steps or step["implementation"] in (other, "as released"):
        return ""
    clock = "cpu_ms" if plain["cpu_ms"] else "ms"
    own, theirs = tax(step, plain, clock), tax(steps[(terms, other)], plain, clock)
    return f"{theirs / own:.1f}x" + ("" if theirs > own else " LOSES") if own > 0 else "no tax seen"


def markdown(table: Table) -> str:
    head, *body = table
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(line) + " |" for line in body)]
    return "\n".join(lines) + "\n"


def aligned(table: Table) -> list[str]:
    """For a terminal."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]


def document(record: Mapping) -> str:
    """A whole run: what it ran on, and its tables."""
    parts = [", ".join(f"{key} {value}" for key, value in record["about"].items()) + "\n"]
    for rows, table, notes in ((record["rows"], op_table, ()), (record.get("training_steps"), step_table, STEP_NOTES)):
        if rows:
            parts.append("\n".join([markdown(table(rows)), *notes]).strip() + "\n")
    return "\n".join(parts)
