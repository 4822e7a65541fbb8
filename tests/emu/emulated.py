"""The CUDA kernels as a CPU back end: builds csrc/cuda unmodified with the C++ compiler, and routes the operators to it."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[2]
NAMESPACE = "cls2det_emulated"
COMPILER = os.environ.get("CXX", "g++")


def missing() -> str:
    """Why the emulated back end cannot run here, or ""."""
    if shutil.which(COMPILER) is None:
        return f"no C++ compiler ({COMPILER})"
    if not (ROOT / "csrc/cuda").is_dir():
        return "the CUDA sources are not beside the tests"
    return "" if hasattr(torch.ops.cls2det, "roi_crop") else "the operators are not declared: the extension is not built"


@functools.cache
def load() -> None:
    """Compile (once for given sources, torch and compiler) and register the kernels under their own namespace."""
    sources = [*sorted((ROOT / "csrc/cuda").glob("*.cu")), ROOT / "csrc/cuda/operators.cpp", ROOT / "tests/emu/emulator.cpp"]
    headers = [*ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/**/*.cuh"), *ROOT.glob("tests/emu/**/*.h")]
    include = Path(torch.__file__).parent / "include"
    flags = ["-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    flags += [f"-DCLS2DET_NAMESPACE={NAMESPACE}", "-DCLS2DET_KEY=CPU", "-DCLS2DET_SCRATCH_VALUES=4096"]
    flags += ["-I", str(ROOT / "tests/emu/include"), "-I", str(ROOT / "csrc"), "-isystem", str(include)]
    text = "".join(path.read_text() for path in sorted([*sources, *headers]))
    digest = hashlib.sha256(f"{torch.__version__} {COMPILER} {flags} {text}".encode()).hexdigest()[:16]
    folder = ROOT / "build" / f"emulated-{digest}"
    library = folder / "emulated.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)

        def compile_one(source: Path) -> str:
            target = folder / f"{source.name}.o"
            subprocess.run([COMPILER, *flags, "-x", "c++", "-c", str(source), "-o", str(target)], check=True)
            return str(target)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, sources))
        part = folder / f"emulated.{os.getpid()}.so"
        torch_libraries = Path(torch.__file__).parent / "lib"
        subprocess.run([COMPILER, "-shared", "-o", str(part), *objects, f"-L{torch_libraries}", "-ltorch_cpu"], check=True)
        part.replace(library)
    declarations = torch.library.Library(NAMESPACE, "DEF")  # the schemas of csrc/library.cpp, under the other name
    for name in operator_names():
        declarations.define(str(getattr(torch.ops.cls2det, name).default._schema).removeprefix("cls2det::"))
    _keep_alive.append(declarations)
    torch.ops.load_library(str(library))


_keep_alive: list[torch.library.Library] = []


def operator_names() -> list[str]:
    names = torch._C._dispatch_get_all_op_names()
    return sorted({name.split("::")[1].split(".")[0] for name in names if name.startswith("cls2det::")})


class Emulated(TorchDispatchMode):
    """Inside, every cls2det operator runs its CUDA kernel on the CPU; autograd and everything above stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        load()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "cls2det":
            function = getattr(getattr(torch.ops, NAMESPACE), function.__name__.split(".")[0]).default
        return function(*args, **(kwargs or {}))
