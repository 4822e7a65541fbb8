"""The CUDA kernels as a CPU back end: compiles csrc/cuda unmodified with a C++ compiler, and routes the operators to it.

``CLS2DET_EMULATOR`` chooses the build: ``plain``; ``sanitize``, with AddressSanitizer and UBSan, whose library must have been
loaded before Python's (LD_PRELOAD, see the Makefile); or ``races``, with the race detector.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[2]
EMU = Path(__file__).parent
NAMESPACE = "cls2det_emulated"
SANITIZE = [
    "-fsanitize=address,undefined",
    "-fsanitize=float-cast-overflow",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
]


@dataclass(frozen=True)
class Build:
    compilers: tuple[str, ...]  # the first that is installed
    flags: list[str]
    kernel_flags: list[str]
    link_flags: list[str]
    sources: list[Path]

    def compiler(self) -> str | None:
        return next(filter(None, map(shutil.which, self.compilers)), None)


GNU = (os.environ.get("CXX", "g++"), "g++", "clang++")
EMULATOR = EMU / "emulator.cpp"
BUILDS = {
    "plain": Build(GNU, ["-O2"], [], [], [EMULATOR]),
    "sanitize": Build(GNU, ["-O1", "-g1", *SANITIZE], [], SANITIZE[:1], [EMULATOR]),
    "races": Build(
        ("clang++", *GNU),
        ["-O2", "-g1", "-DCLS2DET_EMULATE_RACES"],
        ["-O1", "-fsanitize=thread"],  # when compiling only: race_detector.cpp is its library
        ["-Wl,--wrap=memcpy,--wrap=memmove,--wrap=memset", "-ldl"],
        [EMULATOR, EMU / "race_detector.cpp"],
    ),
}


def chosen() -> str:
    name = os.environ.get("CLS2DET_EMULATOR", "plain")
    if name not in BUILDS:
        raise ValueError(f"CLS2DET_EMULATOR must be one of {', '.join(BUILDS)}, found {name!r}")
    return name


def missing() -> str:
    """Why the emulated back end cannot run here, or ""."""
    if BUILDS[chosen()].compiler() is None:
        return f"no C++ compiler ({', '.join(BUILDS[chosen()].compilers)})"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return f"no Python.h in {sysconfig.get_path('include')}, which binds the emulator to Python"
    if not (ROOT / "csrc/cuda").is_dir():
        return "the CUDA sources are not beside the tests"
    return "" if hasattr(torch.ops.cls2det, "roi_crop") else "the operators are not declared: the extension is not built"


def compile_sources(
    build: Build, kernels: list[Path], host_sources: list[Path], flags: list[str], link: list[str], name: str
) -> Path:
    """Compile and link once for each state of the sources, torch and the compiler; returns the path of the result."""
    compiler = build.compiler()
    common = [*build.flags, "-std=c++17", "-fPIC", *flags, "-I", str(EMU / "include"), "-I", str(ROOT / "csrc")]
    headers = [*ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/**/*.cuh"), *EMU.glob("**/*.h")]
    text = "".join(path.read_text() for path in [*kernels, *host_sources, *sorted(headers)])
    digest = hashlib.sha256(f"{torch.__version__} {compiler} {build} {flags} {text}".encode()).hexdigest()[:16]
    folder = ROOT / "build" / f"{Path(name).stem}-{digest}"
    result = folder / name
    if result.is_file():
        return result
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> str:
        target = folder / f"{source.name}.o"
        extra = build.kernel_flags if source in kernels else []
        subprocess.run([compiler, *common, *extra, "-x", "c++", "-c", str(source), "-o", str(target)], check=True)
        return str(target)

    with (folder / "lock").open("w") as lock:  # tests run side by side: one process compiles, the others wait for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.is_file():
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # kernels first: their copies of inline functions are kept
                objects = list(pool.map(compile_one, [*kernels, *host_sources]))
            part = folder / f"{name}.part"
            subprocess.run([compiler, "-o", str(part), *objects, *build.link_flags, *link], check=True)
            part.replace(result)
    return result


def binding_flags() -> list[str]:
    """To compile sources that use torch, and pybind11 to bind them to Python."""
    try:
        import pybind11

        binder = [pybind11.get_include()]
    except ImportError:
        binder = []  # torch's headers bring a copy
    folders = [*binder, Path(torch.__file__).parent / "include", sysconfig.get_path("include")]
    return [flag for folder in folders for flag in ("-isystem", str(folder))]


def torch_libraries() -> list[str]:
    """To link a Python module with torch."""
    return ["-shared", f"-L{Path(torch.__file__).parent / 'lib'}"]


def import_file(path: Path) -> ModuleType:
    """The Python module in a compiled file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def library() -> Path:
    flags = ["-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020b000000000000", *binding_flags()]
    flags += [f"-DCLS2DET_NAMESPACE={NAMESPACE}", "-DCLS2DET_KEY=CPU", "-DCLS2DET_SCRATCH_VALUES=4096"]
    build = BUILDS[chosen()]
    kernels = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    host_sources = [*sorted((ROOT / "csrc/cuda").glob("*.cpp")), *build.sources, EMU / "binding.cpp"]
    link = [*torch_libraries(), "-ltorch_cpu"]
    return compile_sources(build, kernels, host_sources, flags, link, "cls2det_emulated.so")


@functools.cache
def load() -> ModuleType:
    """Register the kernels under their own namespace; gives the emulator's module, see binding.cpp."""
    declarations = torch.library.Library(NAMESPACE, "DEF")  # the schemas of csrc/cpu, under the other name
    for name in operator_names():
        declarations.define(str(getattr(torch.ops.cls2det, name).default._schema).removeprefix("cls2det::"))
    _keep_alive.append(declarations)
    return import_file(library())


_keep_alive: list[torch.library.Library] = []


def operator_names() -> list[str]:
    names = torch._C._dispatch_get_all_op_names()
    return sorted({name.split("::")[1].split(".")[0] for name in names if name.startswith("cls2det::")})


def launched_kernels() -> dict[str, int]:
    """How often this process has launched each kernel, by name."""
    return load().launched_kernels()


class Emulated(TorchDispatchMode):
    """Inside, every cls2det operator runs its CUDA kernel on the CPU; autograd and everything above stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        load()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "cls2det":
            function = getattr(getattr(torch.ops, NAMESPACE), function.__name__.split(".")[0]).default
        return function(*args, **(kwargs or {}))
