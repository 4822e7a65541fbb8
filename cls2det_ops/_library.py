"""Finds and loads the two compiled libraries, and decides which back end a call uses.

``_C`` holds the operator schemas, the CPU kernels and the build record; ``_C_cuda`` the CUDA kernels. Both register operators
with torch and are no Python modules, so that one file serves every Python. Either may be missing: a package built without a
compiler works in plain PyTorch, one built without a CUDA toolkit runs CUDA tensors through the reference.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._namespace import NAMESPACE

BACKENDS = ("auto", "native", "reference")
SIMD_LEVELS = ("plain", "avx2", "avx512")  # that CLS2DET_SIMD may name; csrc/cpu/simd_level.h reads it


CPU_LIBRARY, CUDA_LIBRARY = (
    Path(__file__).with_name(name + (".pyd" if os.name == "nt" else ".so")) for name in ("_C", "_C_cuda")
)


def _load_cpu() -> tuple[dict[str, str], str]:
    """Load ``_C``: (its build record, "") or ({}, why not)."""
    if not CPU_LIBRARY.is_file():
        return {}, _not_built()
    if problem := _other_copy():
        return {}, problem
    try:
        _load(CPU_LIBRARY)
        record = _answer("cls2det_build_info")
    except (OSError, RuntimeError, AttributeError) as error:
        cause = error.__cause__ or error  # torch's own message leaves the system's out
        return (
            {},
            f"the compiled library could not be loaded ({cause}); install the package again, for this platform and torch",
        )
    # stays when this module is imported again
    operators()._loaded_from = str(CPU_LIBRARY.resolve())
    build_info = dict(line.split("=", 1) for line in record.splitlines())
    if (namespace := build_info.get("namespace", "cls2det")) != NAMESPACE:
        return {}, f"the compiled library registers torch.ops.{namespace} where torch.ops.{NAMESPACE} was expected"
    return build_info, ""


def operators() -> Any:
    """Where torch keeps the operators of this copy of the package."""
    return getattr(torch.ops, NAMESPACE)


def _load(library: Path) -> None:
    """Register the operators of ``library``; OSError or RuntimeError if the system refuses it, or if its end is missing.

    The system maps a file without its end, and ends the process where it reads beyond. The table of sections is the last part.
    """
    with library.open("rb") as file:
        head = file.read(64)
    if len(head) == 64 and head.startswith(b"\x7fELF\x02\x01"):
        (table,), (entry, entries) = struct.unpack_from("<Q", head, 0x28), struct.unpack_from("<HH", head, 0x3A)
        if (size := library.stat().st_size) < table + entry * entries:
            raise OSError(f"{library.name}: {size} bytes of {table + entry * entries}")
    torch.ops.load_library(str(library))


def _answer(function: str) -> str:
    """What a C function of ``_C`` says, see csrc/library.cpp."""
    symbol = ctypes.CDLL(str(CPU_LIBRARY))[function]
    symbol.restype = ctypes.c_char_p
    return str(symbol().decode())


def cpu_capability() -> str:
    """The instruction set that the CPU kernels use, such as ``"AVX2"``."""
    return "none" if cpu_missing else _answer("cls2det_cpu_capability")


def _not_built() -> str:
    folder = CPU_LIBRARY.parent
    files = [
        path.name for path in (*folder.glob("_C.*"), *folder.glob("_C_cuda.*")) if path.suffix in (".so", ".pyd", ".dylib")
    ]
    if files:
        return (
            f"{', '.join(sorted(files))} in {folder} was built by an earlier version or for another platform: "
            f"this one loads {CPU_LIBRARY.name}, so install the package again"
        )
    if (folder.parent / "setup.py").is_file():
        return (
            f"it was imported from the source folder {folder.parent}, which holds no compiled library: "
            "leave that folder to use the installed package, or install with `pip install -e`"
        )
    return "the package was built without its compiled library (no C++ compiler, or CLS2DET_NO_EXT=1)"


def _other_copy() -> str:
    """What to say where this process has the operators from another file, else "". A second declaration would end the process."""
    if not hasattr(operators(), "roi_crop"):
        return ""
    loaded = getattr(operators(), "_loaded_from", "an unknown place")
    return (
        "" if loaded == str(CPU_LIBRARY.resolve()) else f"another copy of cls2det_ops is loaded in this process, from {loaded}"
    )


def _load_cuda() -> str:
    """Load ``_C_cuda``: "" or why not."""
    if not build_info:
        return "the CPU library, which declares the operators, is missing"
    if torch.version.cuda is None:
        return "this torch has no CUDA support"
    if missing := build_info.get("cuda_missing"):  # a file is there all the same where a source folder was built before
        return f"{missing}; {CUDA_LIBRARY} is of an earlier build" if CUDA_LIBRARY.is_file() else missing
    if not CUDA_LIBRARY.is_file():
        return "the package was built without CUDA kernels"
    built = build_info.get("cuda_version", "")
    if built.split(".")[0] != torch.version.cuda.split(".")[0]:
        return f"its kernels were built for CUDA {built or 'of unknown version'}, this torch uses CUDA {torch.version.cuda}"
    try:
        _load(CUDA_LIBRARY)
    except (OSError, RuntimeError) as error:
        cause = error.__cause__ or error
        return f"the CUDA library could not be loaded ({cause}); install the package again, for this torch and its CUDA"
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


if (level := os.environ.get("CLS2DET_SIMD") or "avx512") not in SIMD_LEVELS:
    raise ValueError(f"CLS2DET_SIMD must be one of {', '.join(map(repr, SIMD_LEVELS))}, found {level!r}")
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
    missing = cpu_missing if kind == "cpu" else cuda_missing if kind == "cuda" else f"there are no kernels for {kind}"
    if missing and _backend == "native":
        raise RuntimeError(f"the native back end was asked for a {kind} tensor, but {missing}")
    return not missing
