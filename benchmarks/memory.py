"""Memory of one forward, and backward where there is one, above its inputs, once per contender.

python memory.py FILE SHAPE DEVICE [TERMS ...]

On CPU the growth of the resident set at its peak, read from /proc, in a forked copy of a process that holds the inputs and has
run one thread only; whatever the kernels allocate is in it, whichever allocator they use. On CUDA torch's own peak.
TERMS choose contenders of training steps. Prints {contender: bytes} as JSON; nothing where the system cannot tell.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent))

from cls2det_ops import use_backend
from harness import Contender, Workload

PAGE_BYTES = 1024


def load_workload(path: str, shape: str, device: str):
    """A ``Workload``, or for training steps what has ``runs``."""
    spec = importlib.util.spec_from_file_location("bench", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.workload(shape, device)


def resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) * PAGE_BYTES


def step(workload: Workload, backend: str, function) -> None:
    with use_backend(backend):
        Contender(workload, function, backend, backward=bool(workload.leaves)).run()


def one_row(workload: Workload) -> Workload:
    """A step that needs next to no memory itself, but every page of the libraries that the full one needs."""
    maps = ("features", "images", "map0", "map1", "anchors") if "boxes" in workload.inputs else ()
    inputs = {key: value if key in maps else value[:1] for key, value in workload.inputs.items()}
    inputs = {key: value if value.is_floating_point() else torch.zeros_like(value) for key, value in inputs.items()}
    return Workload(workload.function, inputs, workload.leaves, workload.baselines)


def growth_on_cpu(run: Callable[[], None], warm: Callable[[], None]) -> int:
    """In a forked child; every growth is counted, also of memory that is freed before the end."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        warm()  # a fork starts without the pages of the libraries
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        run()
        os.write(write, str(resident("VmHWM") - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    found = os.read(read, 64)
    os.close(read)
    return int(found or -1)


def growth_on_cuda(run: Callable[[], None], _warm: Callable[[], None]) -> int:
    """Without what is kept from call to call: of a training step the graphs that its teacher has captured."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def runs(workload) -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
    """Of each contender what is measured, and what goes before it.

    Nothing goes before a training step: the libraries' pages, some tens of MB, are in the plain one too.
    """
    if not isinstance(workload, Workload):
        return {name: (run, lambda: None) for name, run in workload.runs().items()}
    ways = {"native": ("native", workload.function), "reference": ("reference", workload.function)}
    ways |= {name: ("reference", function) for name, function in workload.baselines.items()}
    small = one_row(workload)
    return {name: (partial(step, workload, *way), partial(step, small, *way)) for name, way in ways.items()}


def growth(workload, device: str) -> dict[str, int]:
    measure = growth_on_cpu if device == "cpu" else growth_on_cuda
    return {name: measure(*both) for name, both in runs(workload).items()}


if __name__ == "__main__":
    torch.set_num_threads(1)  # a process with worker threads must not fork
    path, shape, device, *terms = sys.argv[1:]
    loaded = load_workload(path, shape, device)
    if terms:
        loaded.contenders(terms)  # which ``runs`` then takes
    print(json.dumps(growth(loaded, device)))
