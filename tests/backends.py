"""The back ends that operator tests run on. A new one is an entry in BACKENDS; no test file needs to change."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent / "emu"))

import emulated
from cls2det_ops import _library, use_backend


@dataclass(frozen=True)
class Backend:
    """One implementation: where its tensors live and what makes the public functions use it."""

    name: str
    device: str
    context: Callable[[], AbstractContextManager]
    missing: str = ""  # why it cannot run here


def _cuda_missing() -> str:
    return _library.cuda_missing if torch.cuda.is_available() else "no GPU that this torch can use"


REFERENCE = Backend("reference", "cpu", lambda: use_backend("reference"))
EMULATED = Backend("emulated", "cpu", emulated.Emulated, emulated.missing())  # the CUDA kernels, on the CPU
BACKENDS = {
    backend.name: backend
    for backend in (
        REFERENCE,
        Backend("cpu", "cpu", lambda: use_backend("native"), _library.cpu_missing),
        EMULATED,
        Backend("cuda", "cuda", lambda: use_backend("native"), _cuda_missing()),
    )
}
