"""Inputs, contenders and timers of the benchmarks.

A workload is one call of a public function at one shape. Its contenders get the same tensors: the compiled kernels
("native"), the plain PyTorch definition ("reference"), the same under torch.compile ("reference, compiled"), and whatever
else a test file adds. Rounds are interleaved, one call of each contender per round, so that a noisy machine slows all alike.
On a GPU there are two clocks. The queue's clock gives the GPU's own time of a call while the host is ahead, as in training. The
other times a call alone, from an idle GPU, where launches and the autograd engine count too.
`Least` is the work that no implementation can leave out; limits.py compares the times with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cls2det_ops import reference, use_backend

SECONDS = {"cpu": 2.5, "cuda": 0.8}  # of measuring per test, rounds permitting
ROUNDS = {"cpu": (5, 60), "cuda": (5, 20)}
SLEEP_CYCLES = 20_000_000  # of a calibrating sleep, about 10 ms
# The GPU's sleep before a call lasts the host's time for that call times the factor, plus the margin in ms, at most the last.
AHEAD_FACTOR, AHEAD_MARGIN, AHEAD_MOST = 2.0, 0.2, 50.0
COMPILED = "compiled"
# torch.compile's, the strongest first. On a CPU they differ for matrix products, of which no operator has any.
COMPILE_MODES = {"cpu": (None,), "cuda": ("max-autotune", "max-autotune-no-cudagraphs", None)}
STEP_ROUNDS = {"cpu": 3, "cuda": 5}  # of training steps, which take seconds on a CPU
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
TOLERANCE = 1e-3  # of the summed magnitude: by rounding, the derivative of a sample on a pixel centre may take the other side


@dataclass(frozen=True)
class Least:
    """The least work of a workload. By default: read every input once, and once more for the backward."""

    parts: Callable[[], dict[str, int]] = dict  # bytes of the inputs of which only a part is read
    reread: tuple[str, ...] | None = None  # what the backward must read again; None: every input
    flops: Callable[[bool], int] | None = None  # with or without backward, where arithmetic is the limit and not memory


@dataclass(frozen=True)
class Workload:
    function: Callable[..., Tensor]
    inputs: dict[str, Tensor]
    leaves: tuple[str, ...]  # what the backward differentiates
    baselines: dict[str, Callable[..., Tensor]] = field(default_factory=dict)  # besides the reference
    compile: bool = False
    least: Least = Least()
    maps: tuple[str, ...] = ()  # the inputs that a call on a single row needs whole


def operator_benchmarks() -> dict[str, Path]:
    """The file of every operator's benchmark, by the operator's name."""
    paths = sorted(Path(__file__).parent.glob("test_bench_*.py"))
    names = {path.stem.removeprefix("test_bench_"): path for path in paths}
    return {name: path for name, path in names.items() if name not in ("step", "teachers")}


def load(path: Path) -> Any:
    """A benchmark's module: ``workload(shape, device)``, and ``SHAPES`` by name unless it is one of training steps."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def generator(device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def scene(shape: dict, device: str) -> dict[str, Tensor]:
    """Ground truths with sides of 16 pixels to the image's, log-uniform; predictions within 15 % of a side around theirs."""
    random = generator("cpu")
    height, width = shape["image"]
    size = torch.tensor([width, height], dtype=torch.float32)
    g, k = shape["g"], shape["k"]
    side = 16 * (0.9 * size / 16) ** torch.rand(g, 2, generator=random)
    low = 2 + torch.rand(g, 2, generator=random) * (size - side - 4)
    targets = torch.cat([low, low + side], 1)
    match = torch.randint(g, (k,), generator=random)
    jitter = (torch.rand(k, 4, generator=random) - 0.5) * 0.3 * side.repeat(1, 2)[match]
    boxes = (targets[match] + jitter).clamp(min=2.3).minimum((size - 2.3).repeat(2))
    of_target = torch.arange(g) % shape["images"]
    tensors = {
        "boxes": boxes,
        "target_boxes": targets,
        "matched_idxs": match,
        "target_image_index": of_target,
        "image_index": of_target[match],
    }
    return {key: value.to(device) for key, value in tensors.items()}


def feature_map(shape: dict, channels: int, stride: int, device: str) -> Tensor:
    height, width = (-(-n // stride) for n in shape["image"])
    return torch.randn(shape["images"], channels, height, width, generator=generator(device), device=device)


def bytes_under(features: Tensor, boxes: Tensor, image_index: Tensor, samples: int, scale: float = 1.0) -> int:
    """Of the positions of a map that a sample of any box touches, which are those with a gradient; a position counts once."""
    plane = torch.zeros_like(features[:, :1], requires_grad=True)
    crops = reference.roi_crop(plane, boxes, image_index, (samples, samples), scale)
    (touched,) = torch.autograd.grad(crops.sum(), plane)
    return int(touched.count_nonzero()) * features.shape[1] * features.element_size()


def compared_bytes(features: Tensor, boxes: dict[str, Tensor], samples: int, scale: float) -> int:
    """``bytes_under`` both the predictions and the ground truths that they match."""
    both = torch.cat([boxes["boxes"], boxes["target_boxes"][boxes["matched_idxs"]]])
    return bytes_under(features, both, boxes["image_index"].repeat(2), samples, scale)


def logits(shape: dict, columns: int, device: str) -> dict[str, Tensor]:
    random = generator(device)
    return {
        "student_logits": torch.randn(shape["k"], columns, generator=random, device=device) * 3,
        "teacher_logits": torch.randn(shape["g"], shape["c"], generator=random, device=device) * 3,
        "matched_idxs": torch.randint(shape["g"], (shape["k"],), generator=random, device=device),
    }


def keep_freed_memory() -> None:
    """Have glibc's malloc keep what is freed, for the rest of this process; elsewhere nothing.

    It gives large blocks back to the system otherwise, by a rule that depends on what ran before, and fresh pages take longer
    than many kernels: the ratios would be those of the contenders' order.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_TRIM_THRESHOLD, -1)  # never
        mallopt(M_MMAP_MAX, 0)  # none in pages of its own


class Contender:
    """One way to compute a workload, forward alone or forward and backward."""

    def __init__(self, workload: Workload, function: Callable, backend: str, backward: bool) -> None:
        self.function, self.backend, self.backward = function, backend, backward
        self.inputs = {
            key: value.detach().requires_grad_(backward and key in workload.leaves) for key, value in workload.inputs.items()
        }
        self.leaves = [self.inputs[key] for key in workload.leaves]
        self.upstream: Tensor | None = None
        self.device = next(iter(self.inputs.values())).device.type
        self.queued: list[bool] = []  # of each call timed by the queue: whether all of it was enqueued before it began
        self._ahead: float | None = None

    def run(self) -> list[Tensor]:
        with contextlib.nullcontext() if self.backward else torch.no_grad():
            output = self.function(**self.inputs)
            if not self.backward:
                return [output]
            if self.upstream is None:
                self.upstream = torch.randn(output.shape, generator=generator(output.device.type), device=output.device)
            return [output.detach(), *torch.autograd.grad(output, self.leaves, self.upstream)]

    def timed(self, before: Callable[[], object] = lambda: None) -> float:
        """Milliseconds of a call after ``before``, which does not count; on a GPU by the clock of the queue."""
        with use_backend(self.backend):
            if self.device == "cuda":
                duration, queued = queue_milliseconds(self.run, self.ahead(), before)
                self.queued.append(queued)
                return duration
            before()
            return milliseconds(self.run, self.device)

    def timed_alone(self) -> float:
        with use_backend(self.backend):
            return milliseconds(self.run, self.device)

    def ahead(self) -> float:
        """Milliseconds of sleep that cover what the host takes to enqueue a call."""
        if self._ahead is None:
            times = []
            for _ in range(3):
                torch.cuda.synchronize()
                begin = time.perf_counter()
                self.run()
                times.append((time.perf_counter() - begin) * 1e3)
            self._ahead = min(AHEAD_FACTOR * statistics.median(times) + AHEAD_MARGIN, AHEAD_MOST)
        return self._ahead


@cache
def cycles_per_ms() -> float:
    """Of ``torch.cuda._sleep``, the highest of four rates: the first sleeps wake an idle GPU up."""
    return max(SLEEP_CYCLES / milliseconds(lambda: torch.cuda._sleep(SLEEP_CYCLES), "cuda") for _ in range(4))


def queue_milliseconds(
    run: Callable[[], object], ahead: float, before: Callable[[], object] = lambda: None
) -> tuple[float, bool]:
    """The GPU's own time of one call, and whether all of it was enqueued before its beginning.

    The GPU sleeps for ``ahead`` ms, and then does what ``before`` asks, while the host enqueues the call between two events. A
    call that waits for the GPU in its middle (for a number of elements, say) empties the queue there; from then on the host's
    time counts, as it would for a user.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    cycles = round(ahead * cycles_per_ms())
    torch.cuda.synchronize()
    torch.cuda._sleep(cycles)
    before()
    start.record()
    run()
    end.record()
    queued = not start.query()
    end.synchronize()
    return start.elapsed_time(end), queued


def milliseconds(run: Callable[[], object], device: str) -> float:
    """Of one call; on a GPU between two events, the queue empty at the start, so that the host counts."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) * 1e3


def contenders(workload: Workload, backward: bool) -> dict[str, Contender]:
    """By name; a compiled function once for each mode."""
    by_name = {
        "native": Contender(workload, workload.function, "native", backward),
        "reference": Contender(workload, workload.function, "reference", backward),
    }
    for name, function in workload.baselines.items():
        by_name[name] = Contender(workload, function, "reference", backward)
    if workload.compile:
        eager = {name: call for name, call in workload.baselines.items() if not name.startswith(("torchvision", "triton"))}
        for mode in COMPILE_MODES[next(iter(workload.inputs.values())).device.type]:
            for name, function in {"reference": workload.function, **eager}.items():
                compiled = torch.compile(function, mode=mode)
                label = f"{name}, {COMPILED}" + (f" ({mode})" if mode else "")
                by_name[label] = Contender(workload, compiled, "reference", backward)
    return by_name


def warmed_and_checked(candidates: dict[str, Contender]) -> dict[str, Contender]:
    """Compile and warm up all candidates, and compare every result with the reference.

    Of compiled candidates the strongest mode that works stays. Where none works, a warning says so.
    """
    with exact_convolutions():
        expected = results(candidates["reference"])
    working: dict[str, Contender] = {}
    for name, contender in candidates.items():
        stronger = name.partition(COMPILED)[0] + COMPILED
        if COMPILED in name and any(rival.startswith(stronger) for rival in working):
            continue
        try:
            results(contender)
            with exact_convolutions():
                values = results(contender)  # the last: a CUDA graph writes each call's over those before
        except Exception as error:
            if COMPILED not in name:
                raise
            warnings.warn(f"{name} is left out: {type(error).__name__}: {str(error).splitlines()[0]}", stacklevel=2)
            continue
        check_close(name, values, expected)
        working[name] = contender
    return working


def check_close(name: str, values: list[Tensor], expected: list[Tensor], tolerance: float = TOLERANCE) -> None:
    for value, exact in zip(values, expected, strict=True):
        difference = ((value - exact).abs().sum() / exact.abs().sum()).item()
        assert difference <= tolerance, f"{name} differs from the reference by {difference:.3g}"  # so does NaN


@contextlib.contextmanager
def exact_convolutions() -> Iterator[None]:
    """On a GPU, float32 ones as such. They are timed as torch sets them up, in TF32, where two algorithms differ in 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def results(contender: Contender) -> list[Tensor]:
    with use_backend(contender.backend):
        return contender.run()


def timed_by_all_clocks(contender: Contender) -> dict[str, float]:
    times = {"ms": contender.timed()}
    return times | {"alone_ms": contender.timed_alone()} if contender.device == "cuda" else times


def rounds_for(rivals: dict[str, Contender], device: str) -> int:
    begin = time.perf_counter()
    for contender in rivals.values():
        timed_by_all_clocks(contender)
    one_round = time.perf_counter() - begin
    least, most = ROUNDS[device]
    return max(least, min(most, int(SECONDS[device] / one_round)))


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}
