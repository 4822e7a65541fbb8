"""Finds and loads the two compiled libraries, and decides which back end a call uses.

``_C`` holds the operator schemas, the CPU kernels and the build record; ``_C_cuda`` the CUDA kernels. Either may be
missing: a package built without a compiler works in plain PyTorch, one built without a CUDA toolkit runs CUDA tensors
through the reference.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

BACKENDS = ("auto", "native", "reference")


def _load_cpu() -> tuple[dict[str, str], str]:
    """Load ``_C``: (its build record, "") or ({}, why not)."""
    try:
        library = importlib.import_module("cls2det_ops._C")
    except ModuleNotFoundError:
        return {}, _not_built()
    except ImportError as error:
        return {}, f"the compiled library could not be loaded: {error}"
    return library.build_info(), ""


def _not_built() -> str:
    source = Path(__file__).parents[1]
    if (source / "setup.py").is_file():
        return (
            f"it was imported from the source folder {source}, which holds no compiled library: "
            "leave that folder to use the installed package, or install with `pip install -e`"
        )
    return "the package was built without its compiled library (no C++ compiler, or CLS2DET_NO_EXT=1)"


def _load_cuda() -> str:
    """Load ``_C_cuda``: "" or why not. It has no Python module: loading it registers its kernels."""
    if not build_info:
        return "the CPU library, which declares the operators, is missing"
    if torch.version.cuda is None:
        return "this torch has no CUDA support"
    folder = Path(importlib.import_module("cls2det_ops._C").__file__).parent
    found = sorted(folder.glob("_C_cuda*.so")) + sorted(folder.glob("_C_cuda*.pyd"))
    if not found:
        return build_info.get("cuda_missing") or "the package was built without CUDA kernels"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return f"the CUDA library could not be loaded: {error}"
    return ""


build_info, cpu_missing = _load_cpu()
cuda_missing = _load_cuda()

if cpu_missing:
    warnings.warn(f"cls2det_ops runs in plain PyTorch, slower: {cpu_missing}. See `python -m cls2det_ops`.", stacklevel=2)


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(map(repr, BACKENDS))}, found {name!r}")
    if name == "native" and cpu_missing:
        raise RuntimeError(f"{source} is 'native', but {cpu_missing}")
    return name


_backend = _checked(os.environ.get("CLS2DET_BACKEND", "auto"), "CLS2DET_BACKEND")


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the implementation for every call inside the block, in all threads.

    ``"native"``: the compiled kernels, an error where there are none for the tensor's device; ``"reference"``: plain
    PyTorch; ``"auto"`` (the default): native where it exists. ``CLS2DET_BACKEND`` in the environment sets the default.
    """
    global _backend
    before, _backend = _backend, _checked(name, "use_backend: name")
    try:
        yield
    finally:
        _backend = before


def native(tensor: Tensor) -> bool:
    """Whether a call on this tensor goes to the compiled kernels."""
    if _backend == "reference":
        return False
    kind = tensor.device.type
    missing = {"cpu": cpu_missing, "cuda": cuda_missing}.get(kind, f"there are no kernels for {kind}")
    if missing and _backend == "native":
        raise RuntimeError(f"the native back end was asked for a {kind} tensor, but {missing}")
    return not missing
