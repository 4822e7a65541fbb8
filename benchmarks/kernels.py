"""What each call launches on a GPU, and how long each kernel takes: python benchmarks/kernels.py [OPERATOR ...]

One forward and backward of every operator at every shape of its benchmark, by torch's profiler. The times are those of the
kernels alone; what the call costs the host stands in the benchmarks.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from harness import Contender, load, operator_benchmarks, results

CALLS = 5


def kernels(run: Callable[[], object]) -> list[tuple[str, int, float]]:
    """(name, launches in one call, microseconds of one launch) of each kernel, in the order of their first launches."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(CALLS):
            run()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    launches: Counter[str] = Counter()
    time: Counter[str] = Counter()
    for event in sorted(events, key=lambda event: event.time_range.start):
        launches[event.name] += 1
        time[event.name] += event.time_range.elapsed_us()
    return [(name, round(count / CALLS), time[name] / count) for name, count in launches.items()]


def show(title: str, run: Callable[[], object]) -> None:
    rows = kernels(run)
    total = sum(count * microseconds for _name, count, microseconds in rows)
    print(f"{title}: {sum(count for _name, count, _microseconds in rows)} launches, {total:.1f} us")
    for name, count, microseconds in rows:
        print(f"  {count:4} x {microseconds:9.1f} us  {name.removeprefix('void ')[:110]}")


def main(operators: list[str], backend: str) -> None:
    paths = operator_benchmarks()
    for operator in operators or paths:
        benchmark = load(paths[operator])
        for shape in benchmark.SHAPES:
            workload = benchmark.workload(shape, "cuda")
            contender = Contender(workload, workload.function, backend, bool(workload.leaves))
            show(f"{operator} {shape}", partial(results, contender))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help="default: all")
    parser.add_argument("--backend", choices=["native", "reference"], default="native")
    options = parser.parse_args()
    if unknown := set(options.operators) - operator_benchmarks().keys():
        parser.error(f"no benchmark of {', '.join(sorted(unknown))}; there are {', '.join(operator_benchmarks())}")
    if not torch.cuda.is_available():
        sys.exit("no GPU that this torch can use")
    main(options.operators, options.backend)
