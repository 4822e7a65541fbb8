"""The back ends every operator test runs on. A new one is an entry in BACKENDS; no test file needs to change."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent / "emu")]  # for helpers, whatever the import mode

import cls2det_ops
import emulated
from cls2det_ops import _library, use_backend
from helpers import Backend

torch.set_num_threads(
    1
)  # small tensors gain nothing from more, and a busy machine loses much; test_determinism.py sets its own


def _cuda_missing() -> str:
    if not torch.cuda.is_available():
        return "no GPU that this torch can use"
    return _library.cuda_missing


BACKENDS = {  # name: (the back end, why it cannot run here or "")
    "reference": (Backend("reference", "cpu", lambda: use_backend("reference")), ""),
    "cpu": (Backend("cpu", "cpu", lambda: use_backend("native")), _library.cpu_missing),
    "emulated": (Backend("emulated", "cpu", emulated.Emulated), emulated.missing()),  # the CUDA kernels, on the CPU
    "cuda": (Backend("cuda", "cuda", lambda: use_backend("native")), _cuda_missing()),
}


def pytest_report_header() -> list[str]:
    state = ", ".join(f"{name} ({missing or 'runs'})" for name, (_, missing) in BACKENDS.items())
    return [
        f"cls2det_ops {cls2det_ops.__version__} from {cls2det_ops.__file__}",
        f"torch {torch.__version__}, threads {torch.get_num_threads()}, back ends: {state}",
    ]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    found, missing = BACKENDS[request.param]
    if missing:
        pytest.skip(f"{request.param}: {missing}")
    return found


@pytest.fixture(params=["cpu", "cuda"])
def native_backend(request: pytest.FixtureRequest) -> Backend:
    """The compiled back ends only, for what plain PyTorch does not promise."""
    found, missing = BACKENDS[request.param]
    if missing:
        pytest.skip(f"{request.param}: {missing}")
    return found
