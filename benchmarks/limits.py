"""What the machine can do at most, measured in the same run, and what a call at least asks of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from harness import Contender, Workload, medians, milliseconds, queue_milliseconds

CACHE_BYTES = 64 * 2**20  # where the machine does not tell
COPIED_BYTES = 256 * 2**20
SIDE = {"cpu": 2048, "cuda": 8192}  # of the multiplied matrices
TRIALS = {"copy": 10, "multiply": 5}
AHEAD = 1.0  # ms of a GPU's sleep, in which the host enqueues a copy or a product
COLD_SECONDS = 0.4  # per test, beside harness.SECONDS
COLD_ROUNDS = (3, 15)


def cache_bytes(device: str, cpus: Path = Path("/sys/devices/system/cpu")) -> int:
    """Of all caches of the last level together: a CPU may have one for every few cores."""
    if device == "cuda":
        return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size or CACHE_BYTES
    levels: dict[int, dict[str, int]] = {}
    for folder in cpus.glob("cpu[0-9]*/cache/index*"):
        try:
            level, size, shared = (
                (folder / name).read_text(encoding="utf-8").strip() for name in ("level", "size", "shared_cpu_list")
            )
        except OSError:
            continue
        levels.setdefault(int(level), {})[shared] = int(size.removesuffix("K")) * 1024
    return (levels and sum(levels[max(levels)].values())) or CACHE_BYTES


def machine_limits(device: str) -> dict[str, float]:
    """Rates of the fastest of several trials: of a copy between tensors that no cache holds, and of a matrix product."""
    source, target = (torch.ones(max(2 * cache_bytes(device), COPIED_BYTES) // 4, device=device) for _ in range(2))
    left, right, product = (torch.ones(SIDE[device], SIDE[device], device=device) for _ in range(3))

    def best(run: Callable[[], object], trials: int) -> float:
        return min(queue_milliseconds(run, AHEAD)[0] if device == "cuda" else milliseconds(run, device) for _ in range(trials))

    copy = best(lambda: target.copy_(source), TRIALS["copy"])
    multiply = best(lambda: torch.mm(left, right, out=product), TRIALS["multiply"])
    return {
        "copy_gb_per_s": 2 * source.nbytes / copy / 1e6,
        "float32_gflop_per_s": 2 * SIDE[device] ** 3 / multiply / 1e6,
        "last_cache_mib": cache_bytes(device) / 2**20,
    }


def least_work(workload: Workload, results: Sequence[Tensor], backward: bool) -> dict[str, int]:
    """``{"flops": n}`` where arithmetic is the limit, otherwise ``{"bytes": n}`` that autograd's two halves must move.

    Forward: each input read, the output written. Backward: the output's gradient and the inputs that it depends on read, the
    gradients of the leaves written. What an implementation stores between the two halves does not count.
    """
    if workload.least.flops is not None:
        return {"flops": workload.least.flops(backward)}
    read = {name: tensor.nbytes for name, tensor in workload.inputs.items()} | workload.least.parts()
    output, *gradients = results
    moved = sum(read.values()) + output.nbytes
    if backward:
        again = read if workload.least.reread is None else workload.least.reread
        moved += sum(read[name] for name in again) + output.nbytes + sum(gradient.nbytes for gradient in gradients)
    return {"bytes": moved}


def cold_medians(contenders: Mapping[str, Contender], device: str) -> dict[str, float]:
    """Milliseconds of calls that find nothing in a cache: before each, more than the last level holds is written."""
    evicting = torch.empty(2 * cache_bytes(device), dtype=torch.uint8, device=device)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    begin = time.perf_counter()
    for turn in range(COLD_ROUNDS[1]):
        if turn >= COLD_ROUNDS[0] and time.perf_counter() - begin > COLD_SECONDS:
            break
        for name, contender in contenders.items():
            times[name].append(contender.timed(before=partial(evicting.fill_, turn)))
    return medians(times)
