"""What the operator tests share: strict comparison, evaluation with gradients, memory layouts, and boxes without kinks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

import cls2det_ops
from backends import REFERENCE, Backend

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
BOX_ARGUMENTS = ("boxes", "target_boxes", "anchors")


ORACLE = REFERENCE  # fed with float64


def accumulate(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_close(
    actual: Tensor,
    expected: Tensor,
    dtype: torch.dtype | None = None,
    *,
    nan: bool = False,
    tolerance: float | None = None,
    least_scale: float = 1e-30,
) -> None:
    """Equal shapes, and equal values to the tolerance of ``dtype`` times the largest expected value.

    NaN fails unless ``nan``, and then it must stand in the same places; infinities must be the same. ``least_scale``: where
    the values are differences of larger ones, a scale that rounding may be measured by.
    """
    actual, expected = actual.detach().cpu(), expected.detach().cpu()
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    tolerance = TOLERANCE[dtype or actual.dtype] if tolerance is None else tolerance
    actual, expected = actual.double(), expected.double()
    if not nan:
        assert not actual.isnan().any(), f"{int(actual.isnan().sum())} NaN among {actual.numel()} values"
        assert not expected.isnan().any(), "the expected value is NaN"
    wrong = (actual.isnan() != expected.isnan()).nonzero().tolist()
    assert not wrong, f"NaN where none is expected, or none where one is, at {wrong[:5]} ({len(wrong)} such)"
    infinite = expected.isinf() | actual.isinf()
    assert torch.equal(actual[infinite], expected[infinite]), f"{actual[infinite]} where {expected[infinite]} was expected"
    finite = ~infinite & ~expected.isnan()
    actual, expected = actual[finite], expected[finite]
    if expected.numel() == 0:
        return
    scale = expected.abs().max().item()
    error = (actual - expected).abs().max().item()
    assert error <= tolerance * max(scale, least_scale), (
        f"off by {error:.3g} at scale {scale:.3g}, allowed {tolerance:.1g} of it"
    )


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def shifted(value: Tensor) -> Tensor:
    """The same values and order, one place further than an allocation begins."""
    memory = value.new_empty(value.numel() + 1)
    return memory[1:].as_strided(value.shape, value.stride(), 1).copy_(value)


def apart(value: Tensor) -> Tensor:
    """The same values and order, each image one place further from the one before."""
    step = value.stride(0) + 1
    memory = value.new_empty(value.shape[0] * step)
    return memory.as_strided(value.shape, (step, *value.stride()[1:])).copy_(value)


# No load of 16 bytes may begin between two multiples of 16.
ANYWHERE = {
    "shifted": shifted,
    "apart": apart,
    "shifted, channels-last": lambda value: shifted(channels_last(value)),
    "apart, channels-last": lambda value: apart(channels_last(value)),
}


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype, index: torch.dtype = torch.int64) -> dict[str, Tensor]:
    """The tensors of a call in ``dtype``; boxes, which are never stored in 16 bits, in the accumulate dtype."""

    def one(name: str, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value.to(index)
        return value.to(accumulate(dtype) if name in BOX_ARGUMENTS or name == "weight" else dtype)

    return {name: one(name, value) for name, value in tensors.items()}


def evaluate(
    backend: Backend,
    function: Callable,
    tensors: Mapping[str, Tensor],
    options: Mapping | None = None,
    gradients: tuple[str, ...] = (),
    upstream: Tensor | None = None,
    layouts: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The output of one call and the gradients by name, for a random upstream gradient unless one is given."""
    inputs = {}
    for name, value in tensors.items():
        value = (layouts or {}).get(name, lambda same: same)(value.detach().to(backend.device))
        inputs[name] = value.detach().requires_grad_(name in gradients)
    with backend.context():
        output = function(**inputs, **(options or {}))
        if not gradients:
            return output, {}
        if upstream is None:
            upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        upstream = upstream.to(output.device, output.dtype)
        grads = torch.autograd.grad(output, [inputs[name] for name in gradients], upstream)
    return output.detach(), dict(zip(gradients, grads, strict=True))


def compare(
    backend: Backend,
    function: Callable,
    tensors: Mapping[str, Tensor],
    options: Mapping | None = None,
    dtype: torch.dtype = torch.float32,
    gradients: tuple[str, ...] = (),
    layouts: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    index: torch.dtype = torch.int64,
    nan: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run on the back end in ``dtype``, and compare output and gradients with the reference in float64."""
    tensors = cast(tensors, dtype, index)
    output, _ = evaluate(backend, function, tensors, options, layouts=layouts)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(5)).to(output.dtype)
    output, grads = evaluate(backend, function, tensors, options, gradients, upstream, layouts)
    exact, exact_grads = evaluate(ORACLE, function, cast(tensors, torch.float64), options, gradients, upstream)
    assert_close(output, exact, nan=nan)
    for name, grad in grads.items():
        assert grad.dtype == tensors[name].dtype, f"the gradient of {name} is {grad.dtype}"
        try:
            assert_close(grad, exact_grads[name], nan=nan)
        except AssertionError as error:
            raise AssertionError(f"gradient of {name}: {error}") from None
    return output, grads


def _in_nan(tensor: Tensor) -> Tensor:
    """A view into a larger tensor of NaN (of -7 for indices): a read outside of the view shows in the result."""
    fill = float("nan") if tensor.is_floating_point() else -7
    storage = tensor.new_full([n + 3 for n in tensor.shape], fill)
    view = storage[tuple(slice(1, n + 1) for n in tensor.shape)]
    view.copy_(tensor)
    return view


def _odd_offset(tensor: Tensor) -> Tensor:
    storage = tensor.new_zeros(tensor.numel() + 1)
    return storage[1:].view(tensor.shape).copy_(tensor)


def _transposed(tensor: Tensor) -> Tensor:
    if tensor.dim() < 2:
        return torch.stack([tensor, tensor], 1)[:, 0]
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else _transposed(tensor)


LAYOUTS = {
    "in_nan": _in_nan,
    "odd_offset": _odd_offset,
    "transposed": _transposed,
    "channels_last": _channels_last,
}


def safe_boxes(
    count: int,
    height: int,
    width: int,
    samples: int | tuple[int, int],
    *,
    scale: float = 1.0,
    seed: int = 0,
    margin: float = 1e-3,
    outside: float = 0.3,
) -> Tensor:
    """(count, 4) float64 boxes, some reaching over the border, that keep every sample ``margin`` away from pixel centres.

    There bilinear sampling has its kinks, where float32 and float64 may take different sides.
    """
    random = torch.Generator().manual_seed(seed + 1000)
    samples_h, samples_w = (samples, samples) if isinstance(samples, int) else samples
    size = torch.tensor([width, height], dtype=torch.float64)
    boxes = torch.empty(0, 4, dtype=torch.float64)
    for _ in range(1000):
        low = (torch.rand(4 * count + 8, 2, generator=random, dtype=torch.float64) * (1 + outside) - outside / 2) * size
        high = low + (torch.rand(low.shape, generator=random, dtype=torch.float64) * 0.7 + 0.08) * size
        good = torch.ones(len(low), dtype=torch.bool)
        for ends in ((low, high), (low.clamp(min=0), high.minimum(size))):
            for axis, n in ((0, samples_w), (1, samples_h)):
                part = (torch.arange(n, dtype=torch.float64) + 0.5) / n
                u = ends[0][:, axis, None] + (ends[1] - ends[0])[:, axis, None] * part - 0.5
                good &= ((u - u.round()).abs() > margin).all(1)
        boxes = torch.cat([boxes, torch.cat([low, high], 1)[good]])[:count]
        if len(boxes) == count:
            return boxes / scale
    raise AssertionError(f"no {count} boxes with margin {margin} at {samples} samples")


@contextmanager
def default_signal(number: int) -> Iterator[None]:
    """It interrupts or ends this process and those that it starts, also where the caller ignores it (``nohup``, ``make test &``)."""
    handler = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, handler)


def clean_environment(folder: Path | None = None) -> dict[str, str]:
    """Variables for a process that imports cls2det_ops from ``folder``, by default the one under test, without its settings."""
    keep = ("CLS2DET_EMULATOR",)
    env = {name: value for name, value in os.environ.items() if not name.startswith("CLS2DET_") or name in keep}
    return env | {"PYTHONPATH": str(folder or Path(cls2det_ops.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def run_python(code: str, *arguments: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Run Python in a fresh process with :func:`clean_environment`; forked.py has a quicker way."""
    env = clean_environment(folder) | environment
    command = [sys.executable, *(["-c", code] if code else []), *arguments]
    return subprocess.run(command, env=env, cwd=env["PYTHONPATH"], capture_output=True, text=True, timeout=240)
