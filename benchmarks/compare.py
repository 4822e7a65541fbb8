"""The gate on speed: python benchmarks/compare.py RESULT.json [--instructions COUNTS.json]

Compares a run with the committed runs of the same kind of machine, every figure with the newest run that has it. All figures are
ratios within one run: the reference's time over the operator's, the reference's memory over the operator's, and eager's tax over
that of a training step. Counts of instructions are compared with results/instructions.json. Exits with 1 where a figure is
worse than --tolerance allows, and with 3 where there is nothing to compare.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from tables import MEMORY_RESOLUTION, tax_by_parts

RESULTS = Path(__file__).parent / "results"
COUNTS = RESULTS / "instructions.json"
KIND = ("device", "instructions", "threads")
COUNT_TOLERANCE = 0.02  # other compilers, not noise


def ratios(record: Mapping) -> dict[str, float]:
    """By name; higher is better."""
    by_name = {}
    for row in record["rows"]:
        name = f"{row['op']} {row['shape']} {row['pass']}"
        by_name[f"{name}: speed"] = row["ms"]["reference"] / row["ms"]["native"]
        if row["memory"]:
            by_name[f"{name}: memory"] = row["memory"]["reference"] / max(row["memory"]["native"], MEMORY_RESOLUTION)
    for row in record.get("training_steps", ()):
        steps = {(step["terms"], step["implementation"]): step for step in row["contenders"]}
        for (terms, implementation), step in steps.items():
            eager = steps.get((terms, "eager"))
            if eager and implementation.startswith("ours"):
                by_name[f"{row['student']} {terms} {implementation}: tax"] = tax_by_parts(eager) / tax_by_parts(step)
    return by_name


def kind(record: Mapping) -> tuple:
    """What runs must have in common. For a GPU that is its name: such runs record neither instructions nor threads of the host."""
    return tuple(record["about"][key] for key in KIND if key in record["about"])


def committed_like(record: Mapping) -> dict[str, float]:
    """The newest ratio of each name on the same kind of machine; files' names begin with the date."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*-*.json"))]
    return {name: ratio for run in runs if "rows" in run and kind(run) == kind(record) for name, ratio in ratios(run).items()}


def worse(now: Mapping[str, float], before: Mapping[str, float], tolerance: float) -> list[str]:
    """A line for every figure that fell by more than ``tolerance`` of its earlier value, or is gone."""
    lines = [f"{name}: gone" for name in before if name not in now]
    for name in before.keys() & now.keys():
        if not now[name] >= before[name] * (1 - tolerance):  # so does NaN
            lines.append(f"{name}: {now[name]:.3g}, was {before[name]:.3g}")
    return sorted(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--against", type=Path, help="a result; default: the committed ones of the same kind")
    parser.add_argument("--instructions", type=Path, help="counts by benchmarks/instructions.py")
    parser.add_argument("--tolerance", type=float, default=0.3, help="share of a ratio that may be lost: machines are noisy")
    options = parser.parse_args()
    record = json.loads(options.result.read_text(encoding="utf-8"))
    lines, compared = [], 0
    before = ratios(json.loads(options.against.read_text(encoding="utf-8"))) if options.against else committed_like(record)
    if before:
        now = ratios(record)
        common = before.keys() & now.keys()
        lines += worse(now, {name: before[name] for name in common}, options.tolerance)
        compared += len(common)
        print(f"{len(common)} ratios, of which {len(lines)} are worse by more than {options.tolerance:.0%}")
        print(f"{len(before) - len(common)} of those known were not measured, {len(now) - len(common)} are new")
    else:
        print(f"no committed run on {', '.join(map(str, kind(record)))}")
    if options.instructions and not COUNTS.is_file():
        print("no committed counts of instructions")
    elif options.instructions:
        counted, known = (json.loads(path.read_text(encoding="utf-8")) for path in (options.instructions, COUNTS))
        more = worse({name: 1 / n for name, n in counted.items()}, {name: 1 / n for name, n in known.items()}, COUNT_TOLERANCE)
        print(f"instructions of {len(known)} kernels, of which {len(more)} execute over {COUNT_TOLERANCE:.0%} more")
        for name in sorted(known.keys() & counted.keys()):
            print(f"  {name}: {counted[name]:,} ({counted[name] / known[name] - 1:+.1%})")
        lines += [f"instructions, {line}" for line in more]
        compared += len(known)
    print(*(f"WORSE {line}" for line in lines), sep="\n")
    raise SystemExit(1 if lines else 0 if compared else 3)


if __name__ == "__main__":
    main()
