"""The rows of a run as tables: of the operators, and of the training steps."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

TEACHER_PARTS = ("teacher on targets", "teacher on predictions")
Table = list[list[str]]  # the first line is the head

MEMORY_RESOLUTION = 100_000  # bytes: less than this the resident set does not tell
OP_HEAD = [
    "op", "shape", "pass", "native ms", "reference ms", "ratio", "best baseline ms", "which", "ratio", "of the limit", "cold ms",
    "cold ratio", "memory MB", "ratio",
]  # fmt: skip
ALONE_HEAD = ["alone ms", "alone ratio", "alone, best", "ratio"]  # before the memory, where there are two clocks
STEP_HEAD = [
    "student", "images", "positives", "terms", "implementation", "step ms", "tax", "tax by parts", "released / this",
    "eager / this", "extra memory MB",
]  # fmt: skip
OP_NOTES = (
    "ratio: baseline time over native time, higher is better for native. memory: peak of one forward and backward above the inputs,",
    "native / reference, to 0.1 MB. torch.compile is tried at one shape or two per op. of the limit: native's share of the",
    "machine's copy bandwidth, by the bytes that no implementation can leave out (of maps, what boxes lie on), or of the float32",
    "rate of a matrix product, by its flops. It can exceed 100 % where the data fit in a cache, where more is read than written, and",
    "where a GPU convolves in TF32. cold: before each call more than the last cache holds is written. On a CPU malloc keeps what is",
    "freed, so that all write to memory that is already there.",
)
ALONE_NOTES = (
    "Two clocks on a GPU. The queue's, for ms, cold ms, their ratios and the limit: the GPU is kept busy while the call is enqueued",
    "behind, as in training, so its own time counts; a call that waits for the GPU in its middle lets the queue run empty, and from",
    "there the host's time counts too. alone: from an idle GPU, launches and the autograd engine's hand-over included.",
)
STEP_NOTES = (
    "step: forward and backward, median. tax: (distilled step - plain step) / plain step, of each round, median. tax by parts: all",
    "that is not the student's over the student's part, within the same steps, so that noise from step to step does not enter;",
    "where one thread runs in its CPU time, in which others on the machine do not count. released / this, eager / this: of taxes",
    "by parts. KD-loc is with loc on pixels. extra memory: peak above the plain step's.",
)
TEACHER_HEAD = [
    "teacher", "layer of KD-loc", "crops", "traced", "agreement", "hooks / frozen", "plain / frozen", "tax frozen", "tax hooks",
    "tax plain",
]  # fmt: skip
TEACHER_NOTES = (
    "SSD300's step with KD-cls, KD-loc and loc, and a teacher that is read in three ways. agreement: the largest difference of the",
    "frozen reader from the plain network, as a share of the output's largest value. hooks / frozen, plain / frozen: of the",
    "teacher's parts of a step, on ground truths and on predictions with backward. tax: all that is not the student's over the",
    "student's part, within the same steps; medians of the rounds.",
)
IDLE_NOTES = (
    "On a GPU a step begins when the GPU is idle: the host's time counts where the GPU waits for it. extra memory there is without",
    "what a contender keeps from step to step: captured graphs of the teacher, the last positives.",
)


def two_clocks(rows: Sequence[Mapping]) -> bool:
    return any(row.get("alone_ms") for row in rows)


def op_notes(rows: Sequence[Mapping]) -> tuple[str, ...]:
    return OP_NOTES + (ALONE_NOTES if two_clocks(rows) else ())


def step_notes(rows: Sequence[Mapping]) -> tuple[str, ...]:
    return STEP_NOTES + (IDLE_NOTES if any("clock" in row for row in rows) else ())


def best_baseline(row: Mapping, clock: str = "ms") -> tuple[str, float]:
    return min(((name, ms) for name, ms in row[clock].items() if name != "native"), key=lambda pair: pair[1])


def of_the_limit(row: Mapping, machine: Mapping[str, float]) -> str:
    """The share of the machine's limit that the native call reaches with warm caches; "-" for runs that did not measure it."""
    for work, limit, name in (("bytes", "copy_gb_per_s", "copy"), ("flops", "float32_gflop_per_s", "float32")):
        if work in row.get("least", ()) and limit in machine:
            percent = 100 * row["least"][work] / (row["ms"]["native"] * 1e6 * machine[limit])
            return (f"{percent:.0f} % " if percent >= 1 else "< 1 % ") + name
    return "-"


def times_as_fast(baseline: float, native: float) -> str:
    return f"{baseline / native:.1f}x" + ("" if baseline > native else " LOSES")


def op_table(rows: Sequence[Mapping], machine: Mapping[str, float]) -> Table:
    both = two_clocks(rows)
    lines = [OP_HEAD[:-2] + ALONE_HEAD + OP_HEAD[-2:] if both else OP_HEAD]
    for row in rows:
        name, best = best_baseline(row)
        native, plain = row["ms"]["native"], row["ms"]["reference"]
        memory = row["memory"]
        mega = f"{memory['native'] / 1e6:.2f} / {memory['reference'] / 1e6:.1f}" if memory else ""
        share = f"1/{memory['reference'] / max(memory['native'], MEMORY_RESOLUTION):.0f}" if memory else ""
        cold = row.get("cold_ms")
        colds = [f"{cold['native']:.3f}", times_as_fast(cold["reference"], cold["native"])] if cold else ["", ""]
        alones = []
        if both and (alone := row.get("alone_ms")):
            rival, quickest = best_baseline(row, "alone_ms")
            alones = [f"{alone['native']:.3f}", times_as_fast(alone["reference"], alone["native"]),
                      rival, times_as_fast(quickest, alone["native"])]  # fmt: skip
        elif both:
            alones = [""] * len(ALONE_HEAD)
        lines.append([row["op"], row["shape"], row["pass"], f"{native:.3f}", f"{plain:.3f}", times_as_fast(plain, native),
                      f"{best:.3f}", name, times_as_fast(best, native), of_the_limit(row, machine), *colds, *alones,
                      mega, share])  # fmt: skip
    return lines


def tax(step: Mapping, plain: Mapping) -> float:
    """The median over rounds of what a whole step takes longer than the plain step of its round, as a share of the latter."""
    return statistics.median(
        distilled / undistilled - 1 for distilled, undistilled in zip(step["ms"], plain["ms"], strict=True)
    )


def parts_of(step: Mapping) -> Mapping[str, float]:
    """Milliseconds, in CPU time where it was measured."""
    return step["parts_cpu_ms"] or step["parts_ms"]


def tax_by_parts(step: Mapping) -> float:
    parts = parts_of(step)
    return sum(parts.values()) / parts["student"] - 1


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
                costs = [f"{100 * tax(step, plain):.1f} %", f"{100 * tax_by_parts(step):.1f} %"]
                costs += [_tax_ratio(step, steps.get((terms, rival))) for rival in ("as released", "eager")]
                costs.append(f"{(step['memory'] - plain['memory']) / 1e6:.0f}" if step["memory"] and plain["memory"] else "")
            lines.append(about + costs)
    return lines


def teacher_table(rows: Sequence[Mapping]) -> Table:
    lines = [TEACHER_HEAD]
    for row in rows:
        ways = {way["implementation"]: way for way in row["contenders"]}
        spent = {name: sum(parts_of(way)[part] for part in TEACHER_PARTS) for name, way in ways.items()}
        about = [
            row["teacher"],
            row["layer"],
            str(row["crop"]),
            "yes" if row["traced"] else "no, hooks",
            f"{row['agreement']:.0e}",
        ]
        ratios = [times_as_fast(spent[way], spent["frozen"]) for way in ("hooks", "plain")]
        lines.append(about + ratios + [f"{100 * tax_by_parts(ways[way]):.0f} %" for way in ("frozen", "hooks", "plain")])
    return lines


def _tax_ratio(step: Mapping, rival: Mapping | None) -> str:
    """The rival's tax over this step's; empty where there is nothing to compare."""
    if rival is None or step is rival or step["implementation"] == "as released":
        return ""
    ratio = tax_by_parts(rival) / tax_by_parts(step)
    return f"{ratio:.2f}x" + ("" if ratio > 1 else " LOSES")


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
    parts = [heading(record) + "\n"]
    if record["rows"]:
        parts.append(
            "\n".join([markdown(op_table(record["rows"], record.get("machine", {}))), *op_notes(record["rows"])]) + "\n"
        )
    if record.get("training_steps"):
        parts.append("\n".join([markdown(step_table(record["training_steps"])), *step_notes(record["training_steps"])]) + "\n")
    if record.get("teachers"):
        parts.append("\n".join([markdown(teacher_table(record["teachers"])), *TEACHER_NOTES]) + "\n")
    return "\n".join(parts)


def heading(record: Mapping) -> str:
    facts = [f"{key} {value}" for key, value in record["about"].items()]
    if machine := record.get("machine"):
        facts.append(f"copy bandwidth {machine['copy_gb_per_s']:.1f} GB/s")
        facts.append(f"matrix product {machine['float32_gflop_per_s']:.0f} GFLOP/s in float32")
        facts.append(f"last cache {machine['last_cache_mib']:.0f} MiB")
    return ", ".join(facts)
