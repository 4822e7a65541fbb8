"""Builds the two libraries of cls2det_ops: _C (operator schemas, CPU kernels, build record) and _C_cuda (CUDA kernels).

They are built with Python's tools but know no Python: the wheel is one file for every version of it.

Environment:
  CLS2DET_NO_EXT=1          build neither: the package runs in plain PyTorch
  CLS2DET_CUDA=auto|0|1     CUDA kernels: when a toolkit is found and torch has CUDA (default), never, or fail without
  TORCH_CUDA_ARCH_LIST      which GPUs to compile for; default: those present, else 8.0 8.6 8.9 9.0 10.0 12.0 and PTX;
                            "all" for that list in any case
  CUDA_HOME                 where the toolkit is
  CLS2DET_NAMESPACE         the name of torch.ops that the operators get; default: cls2det. Another is for tests/hub_layout.py,
                            which writes the same name into cls2det_ops/_namespace.py
  CLS2DET_SANITIZE=1        CPU kernels with AddressSanitizer and UBSan, for `make sanitize`
"""

import os
import shutil
import sys
from glob import glob
from pathlib import Path

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:  # older ones fail with a message about something else
    raise SystemExit(f"setuptools 77 or later is needed, found {setuptools.__version__}: pip install -U setuptools")
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

TORCH_TARGET = "0x020b000000000000"  # 2.11: the library runs on this torch and every later one
DEFAULT_ARCHS = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"
OLDEST_TOOLKIT = 12080  # the first nvcc that knows 10.0, 12.0 and --compress-mode


class CleanBuild(build):
    """A wheel takes all that lies in build/lib: what an earlier build has left there goes first. Object files stay."""

    def run(self):
        if Path(self.build_base).resolve() in Path(self.build_lib).resolve().parents:  # not a folder that was asked for
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class Wheel(bdist_wheel):
    """One file for every Python, and the same bytes for the same sources: modes do not depend on the umask."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]

    def write_wheelfile(self, folder, *args, **options) -> None:
        super().write_wheelfile(folder, *args, **options)
        for path in Path(self.bdist_dir).rglob("*"):
            path.chmod(0o755 if path.is_dir() or path.suffix == ".so" else 0o644)


def toolkit() -> tuple[str, str]:
    """(folder of the CUDA toolkit, "") or ("", what was looked for). A wrapper script named nvcc proves nothing."""
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), nvcc and str(Path(nvcc).resolve().parents[1])]
    candidates += ["/usr/local/cuda", *sorted(glob("/usr/local/cuda-*"), reverse=True)]
    looked = [folder for folder in candidates if folder]
    for folder in looked:
        if (Path(folder) / "include/cuda_runtime.h").is_file() and (Path(folder) / "bin/nvcc").is_file():
            return folder, ""
    return "", "no CUDA toolkit (include/cuda_runtime.h and bin/nvcc) in " + ", ".join(dict.fromkeys(looked))


def toolkit_version(folder: str) -> int:
    """CUDA_VERSION of the toolkit's headers, such as 13000; 0 if they do not say."""
    header = Path(folder) / "include/cuda.h"
    words = header.read_text(errors="ignore", encoding="utf-8").split("#define CUDA_VERSION", 1) if header.is_file() else [""]
    return int(words[1].split()[0]) if len(words) == 2 else 0


def cuda_plan() -> tuple[str, str]:
    """(toolkit folder or "", why CUDA is left out)."""
    wish = os.environ.get("CLS2DET_CUDA", "auto").lower()
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"CLS2DET_CUDA must be auto, 0 or 1, found {wish!r}")
    if wish == "0":
        return "", "built with CLS2DET_CUDA=0"
    import torch

    folder, missing = toolkit()
    if not missing and torch.version.cuda is None:
        missing = f"torch {torch.__version__} at build time had no CUDA support"
    if not missing:
        version = toolkit_version(folder)
        if version < OLDEST_TOOLKIT:
            missing = f"the toolkit in {folder} is older than CUDA 12.8"
        elif str(version // 1000) != torch.version.cuda.split(".")[0]:
            missing = f"the toolkit in {folder} is CUDA {version // 1000}, torch was built for CUDA {torch.version.cuda}"
    if missing and wish == "1":
        raise SystemExit(f"CLS2DET_CUDA=1: {missing}")
    return ("", missing) if missing else (folder, "")


def extensions() -> dict:
    commands = {"build": CleanBuild, "bdist_wheel": Wheel}
    if os.environ.get("CLS2DET_NO_EXT", "0") not in ("", "0"):
        return {"cmdclass": commands}
    compiler = os.environ.get("CXX", "c++").split()[0]
    if not (shutil.which(compiler) or shutil.which("g++")):
        raise SystemExit(f"no C++ compiler ({compiler}, g++) found: install one, or set CLS2DET_NO_EXT=1 to do without")

    cuda_home, cuda_missing = cuda_plan()
    if cuda_home:
        os.environ["CUDA_HOME"] = cuda_home  # before torch guesses
    import torch
    from torch.utils import cpp_extension

    archs = cuda_version = ""
    if cuda_home:
        cuda_version = "{}.{}".format(*divmod(toolkit_version(cuda_home) // 10, 100))
        archs = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
        if archs == "all" or (not archs and not torch.cuda.is_available()):
            os.environ["TORCH_CUDA_ARCH_LIST"] = archs = DEFAULT_ARCHS

    # __FILE__ stands in messages: without the folders that this build happens to lie in
    folders = [os.getcwd(), *cpp_extension.include_paths(), *([f"{cuda_home}/include"] if cuda_home else [])]
    prefixes = [f"-ffile-prefix-map={folder}/=" for folder in folders]
    cxx = ["-O3", "-std=c++17", "-Wall", "-Wextra", "-Wno-psabi", "-fvisibility=hidden", "-ffp-contract=fast", "-g0"]
    cxx += prefixes
    # a wheel has no names of functions, a build in place keeps them for profilers; Apple's linker lacks the option
    link = ["-Wl,--strip-all"] if sys.platform == "linux" and "bdist_wheel" in sys.argv else []
    if os.environ.get("CLS2DET_SANITIZE", "0") not in ("", "0"):
        link = ["-fsanitize=address,undefined"]
        cxx += ["-O1", "-g1", "-fno-omit-frame-pointer", *link, "-fsanitize=float-cast-overflow", "-fno-sanitize-recover=all"]
    nvcc = ["-O3", "-std=c++17", "--compress-mode=size", "--threads=2", "-frandom-seed=cls2det"]  # no process number in names
    nvcc += [f"-Xcompiler={prefix}" for prefix in prefixes]
    record = {
        "CLS2DET_BUILD_TORCH": torch.__version__,
        "CLS2DET_CUDA_VERSION": cuda_version,
        "CLS2DET_CUDA_ARCHS": archs or (cuda_home and "of the GPUs present at build time"),
        "CLS2DET_CUDA_MISSING": cuda_missing,
    }
    common = {
        "include_dirs": [os.path.abspath("csrc")],
        "depends": sorted(glob("csrc/**/*.*", recursive=True)),
        "extra_link_args": link,
        "py_limited_api": True,  # links no libtorch_python
    }
    namespace = os.environ.get("CLS2DET_NAMESPACE") or "cls2det"
    if not namespace.isidentifier():
        raise SystemExit(f"CLS2DET_NAMESPACE must be a name, found {namespace!r}")
    macros = [("TORCH_TARGET_VERSION", TORCH_TARGET), ("CLS2DET_NAMESPACE", namespace)]
    modules = [
        cpp_extension.CppExtension(
            "cls2det_ops._C",
            ["csrc/library.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
            define_macros=macros + [(name, f'"{value}"') for name, value in record.items()],
            extra_compile_args=cxx,
            **common,
        )
    ]
    if cuda_home:
        modules.append(
            cpp_extension.CUDAExtension(
                "cls2det_ops._C_cuda",
                sorted(glob("csrc/cuda/*.cpp") + glob("csrc/cuda/*.cu")),
                define_macros=[*macros, ("USE_CUDA", None)],
                extra_compile_args={"cxx": cxx, "nvcc": nvcc},
                **common,
            )
        )
    commands["build_ext"] = cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True)
    return {"ext_modules": modules, "cmdclass": commands}


setuptools.setup(**extensions())
