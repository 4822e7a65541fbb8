"""Memory of one forward, and backward where there is one, above its inputs, once per contender.

python memory.py FILE SHAPE DEVICE [TERMS ...]

On CPU the growth of the resident set at its peak, read from /proc, in a forked copy of a process that holds the inputs and has
run one thread only; whatever the kernels allocate is in it, whichever allocator they use. On CUDA torch's own peak.
TERMS choose contenders of training steps. Prints {contender: bytes} as JSON; nothing where the system cannot tell.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent))

from cls2det_ops import use_backend
from harness import Contender, Workload, load

PAGE_BYTES = 1024


def resident(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(field + ":")[1].split()[0]) * PAGE_BYTES


def step(workload: Workload, backend: str, function) -> None:
    with use_backend(backend):
        Contender(workload, function, backend, backward=bool(workload.leaves)).run()


def one_row(workload: Workload) -> Workload:
    """A workload that needs hardly any memory itself, but touches every page of the libraries that the full one needs."""
    inputs = {key: value if key in workload.maps else value[:1] for key, value in workload.inputs.items()}
    inputs = {key: value if value.is_floating_point() else torch.zeros_like(value) for key, value in inputs.items()}
    return Workload(workload.function, inputs, workload.leaves, workload.baselines)


def growth_on_cpu(run: Callable[[], None], warm: Callable[[], None]) -> int:
    """Bytes, in a forked child, at the peak: memory that is freed before the end counts too. -1 where the child failed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        warm()  # a fork starts without the pages of the libraries
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts again from here
        run()
        os.write(write, str(resident("VmHWM") - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    message = os.read(read, 64)
    os.close(read)
    return int(message or -1)


def growth_on_cuda(run: Callable[[], None], _warm: Callable[[], None]) -> int:
    """Bytes at the peak of the second call: what stays from call to call, such as a teacher's captured graphs, does not count."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def runs(workload) -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
    """For each contender the call that is measured, and the call before it that warms the libraries up.

    A training step has no such call: the pages of the libraries, tens of MB, are in the plain step too.
    """
    if not isinstance(workload, Workload):
        return {name: (run, lambda: None) for name, run in workload.runs().items()}
    calls = {"native": ("native", workload.function), "reference": ("reference", workload.function)}
    calls |= {name: ("reference", function) for name, function in workload.baselines.items()}
    small = one_row(workload)
    return {name: (partial(step, workload, *call), partial(step, small, *call)) for name, call in calls.items()}


def growth(workload, device: str) -> dict[str, int]:
    measure = growth_on_cpu if device == "cpu" else growth_on_cuda
    return {name: measure(*both) for name, both in runs(workload).items()}


if __name__ == "__main__":
    torch.set_num_threads(1)  # a process with worker threads must not fork
    path, shape, device, *terms = sys.argv[1:]
    workload = load(Path(path)).workload(shape, device)
    if terms:
        workload.contenders(terms)  # ``runs`` takes those that were built last
    print(json.dumps(growth(workload, device)))
