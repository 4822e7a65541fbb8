"""What only the emulator can show of the CUDA kernels: other orders of threads, every kernel launched, indices past 2^31."""

from __future__ import annotations

import re

import pytest
import torch

import emulated
from backends import EMULATED
from helpers import cast, evaluate, run_python
from op_cases import PUBLIC_OPS, large_case, make_case

pytestmark = pytest.mark.skipif(bool(EMULATED.missing), reason=EMULATED.missing)
ORDERS = ("reverse", "random:1", "random:2", "random:3")
CUDA = emulated.ROOT / "csrc/cuda"


def bits(name: str) -> list[torch.Tensor]:
    case = large_case(name, k=40, c=37, height=18, width=35)
    output, grads = evaluate(EMULATED, case.function, cast(case.tensors, torch.float32), case.options, case.gradients)
    return [output, *grads.values()]


@pytest.mark.parametrize("variable", ["CLS2DET_EMULATOR_ORDER", "CLS2DET_EMULATOR_BLOCKS"])
@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_no_order_of_threads_and_no_size_of_the_grid_changes_a_bit(
    emulated_backend, name: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grid may be smaller than the work: its blocks then stride over it."""
    expected = bits(name)
    for value in {"CLS2DET_EMULATOR_ORDER": ORDERS, "CLS2DET_EMULATOR_BLOCKS": ("1", "2", "3")}[variable]:
        monkeypatch.setenv(variable, value)
        for actual, target in zip(bits(name), expected, strict=True):
            assert torch.equal(actual, target), f"{variable}={value}"


def test_unknown_order_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLS2DET_EMULATOR_ORDER", "sideways")
    case = make_case("kd_softmax_loss")
    with pytest.raises(RuntimeError, match="must be forward, reverse or random:SEED, found sideways"):
        evaluate(EMULATED, case.function, case.tensors)


DRIVER = """
import sys
sys.path[:0] = sys.argv[1:]
import emulated, kernel_driver
kernel_driver.main("emulated")
print("LAUNCHED", *emulated.launched_kernels())
"""


def test_kernel_driver_launches_every_kernel() -> None:
    """So compute-sanitizer, which runs it on a GPU (gpu_check.py), leaves no kernel out; nor do tests over all operators."""
    result = run_python(DRIVER, str(emulated.EMU), str(emulated.EMU.parent))
    assert result.returncode == 0, result.stderr
    launched = {name.rpartition("::")[2] for name in result.stdout.split("LAUNCHED")[1].split()}
    defined = set()
    for source in [*CUDA.glob("*.cu"), *CUDA.glob("*.cuh")]:
        defined |= set(re.findall(r"__global__ void\s+(?:__launch_bounds__\([\w, ]+\)\s+)?(\w+)\(", source.read_text()))
    assert len(defined) > 8
    assert defined == launched


NOT_EMULATED = (
    r"\basm\b|__CUDA_ARCH__|\bwmma\b|mma\.h|cuda_pipeline|__pipeline_|cp\.async|cooperative_groups|\bcub::|<<<|__shared__"
)


def test_what_cannot_be_emulated_stays_in_its_one_file() -> None:
    """launch.cuh lists the constructs that the emulator cannot run, each behind a helper with a portable body."""
    for source in sorted([*CUDA.glob("*.cu"), *CUDA.glob("*.cuh")]):
        code = re.sub(r"//.*", "", source.read_text())
        if source.name != "launch.cuh":
            assert not re.search(NOT_EMULATED, code), f"{source.name}: {re.search(NOT_EMULATED, code).group()}"
