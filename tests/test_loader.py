"""The compiled libraries: how they are found and chosen, and what is said where one cannot be used."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import cls2det_ops
from cls2det_ops import _library
from forked import run_forked

PACKAGE = Path(cls2det_ops.__file__).parent

STEP = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, cls2det_ops
    random = torch.Generator().manual_seed(0)
    student = torch.randn(6, 4, generator=random, requires_grad=True)
    boxes = torch.tensor([[1.0, 2.0, 7.5, 8.1], [0.5, 0.4, 3.3, 9.0]]).repeat(3, 1).requires_grad_()
    match = torch.tensor([0, 1, 1, 0, -1, 1])
    result = cls2det_ops.roi_kd_loss(
        student, boxes, torch.randn(2, 3, generator=random), torch.tensor([[1.0, 1.0, 8.0, 8.0], [0.0, 0.0, 4.0, 9.0]]),
        match, torch.tensor([0, 0]), cls2det_ops.RoIMap(torch.randn(1, 3, 10, 10, generator=random), 2, 6))
    result.loss.backward()
    node = cls2det_ops.attention_means(student[None, None])[0].grad_fn.name()  # an operator's node bears its name
messages = [str(warning.message) for warning in caught if "cls2det_ops" in str(warning.message)]
print(json.dumps({"loss": result.loss.item(), "grad": boxes.grad.abs().sum().item() + student.grad.abs().sum().item(),
                  "warnings": messages, "native": "attention_means" in node, "file": cls2det_ops.__file__}))
"""


def step(folder: Path | None = None, **environment: str) -> dict:
    result = run_forked(STEP, folder=folder, **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@functools.cache
def reference_step() -> dict:
    return step(CLS2DET_BACKEND="reference")


@pytest.fixture
def without_libraries(tmp_path: Path) -> Path:
    """A copy of the package's Python files alone, as CLS2DET_NO_EXT=1 installs it."""
    ignore = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "cls2det_ops", ignore=ignore)
    return tmp_path


def test_works_without_a_compiled_library_and_warns_once(without_libraries):
    result = step(without_libraries)
    assert result["file"].startswith(str(without_libraries))
    assert not result["native"]
    assert len(result["warnings"]) == 1
    assert "plain PyTorch" in result["warnings"][0]
    assert result["loss"] == reference_step()["loss"]
    assert result["grad"] == reference_step()["grad"]


def test_native_without_a_compiled_library_is_an_error(without_libraries):
    result = run_forked("import cls2det_ops", folder=without_libraries, CLS2DET_BACKEND="native")
    assert result.returncode != 0
    assert "CLS2DET_BACKEND is 'native', but the package was built without its compiled library" in result.stderr
    result = run_forked("import cls2det_ops\nwith cls2det_ops.use_backend('native'): pass", folder=without_libraries)
    assert "RuntimeError: use_backend: name is 'native', but" in result.stderr


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
def test_environment_chooses_the_backend(backend):
    if backend == "native" and _library.cpu_missing:
        pytest.skip(_library.cpu_missing)
    result = step(CLS2DET_BACKEND=backend)
    assert result["native"] == (backend != "reference" and not _library.cpu_missing)
    assert abs(result["loss"] - reference_step()["loss"]) < 1e-5 * abs(result["loss"])
    if not _library.cpu_missing:
        assert result["warnings"] == []


def test_unknown_backend_in_the_environment():
    result = run_forked("import cls2det_ops", CLS2DET_BACKEND="fastest")
    assert result.returncode != 0
    assert "CLS2DET_BACKEND must be one of 'auto', 'native', 'reference', found 'fastest'" in result.stderr


def test_simd_level_that_does_not_exist():
    result = run_forked("import cls2det_ops", CLS2DET_SIMD="avx3")
    assert result.returncode != 0
    assert "CLS2DET_SIMD must be one of 'plain', 'avx2', 'avx512', found 'avx3'" in result.stderr


def test_python_m_without_a_compiled_library(without_libraries):
    code = "import runpy; runpy.run_module('cls2det_ops', run_name='__main__')"
    result = run_forked(code, folder=without_libraries)
    assert result.returncode == 0, result.stderr
    assert "without its compiled library" in " ".join(result.stdout.split())
    long = [line for line in result.stdout.splitlines() if len(line) > 100 and str(without_libraries) not in line]
    assert not long  # a path is one word


# ---- libraries that cannot be used ----

needs_library = pytest.mark.skipif(bool(_library.cpu_missing), reason=_library.cpu_missing)
needs_cuda_library = pytest.mark.skipif(bool(_library.cuda_missing), reason=_library.cuda_missing)
NAME = _library.CPU_LIBRARY.name


@pytest.fixture
def installed(without_libraries: Path) -> Path:
    """A copy of the whole package, libraries included; PACKAGE / NAME is in installed / "cls2det_ops" / NAME."""
    for library in (_library.CPU_LIBRARY, _library.CUDA_LIBRARY):
        if library.is_file():
            shutil.copy(library, without_libraries / "cls2det_ops")
    return without_libraries


def library_of(folder: Path, library: Path = _library.CPU_LIBRARY) -> Path:
    return folder / "cls2det_ops" / library.name


def refused(folder: Path) -> str:
    """Why the CPU library was not used; the package must work all the same, and warn once."""
    result = step(folder)
    assert result["file"].startswith(str(folder))
    assert not result["native"]
    assert result["loss"] == reference_step()["loss"]
    assert len(result["warnings"]) == 1
    assert "plain PyTorch" in result["warnings"][0]
    return result["warnings"][0]


@needs_library
def test_a_whole_copy_is_used(installed):
    assert step(installed)["native"]


@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF", b"\xcf\xfa\xed\xfe" + bytes(4000)])
def test_something_else_by_that_name(without_libraries, content):
    """The system says what is wrong with the file; the package says what to do, and works."""
    (without_libraries / "cls2det_ops" / NAME).write_bytes(content)
    warning = refused(without_libraries)
    assert "the compiled library could not be loaded (" in warning
    assert f"{NAME}: " in warning, "the system's own message is missing"
    assert "install the package again" in warning


@needs_library
@pytest.mark.parametrize("size", [5000, 400_000, -1])
def test_a_library_that_lost_its_end(installed, size):
    """The system loads it, and ends the process when it reads what is missing."""
    library = library_of(installed)
    whole = library.read_bytes()
    library.write_bytes(whole[:size])
    assert f"could not be loaded ({NAME}: {len(whole[:size])} bytes of {len(whole)})" in refused(installed)


@needs_library
def test_another_processor(installed):
    library = library_of(installed)
    content = bytearray(library.read_bytes())
    content[18:20] = b"\xf3\x00"  # the machine in the ELF header: RISC-V
    library.write_bytes(content)
    assert "could not be loaded (" in refused(installed)


EARLIER = "_C.cpython-{}{}-x86_64-linux-gnu.so".format(*sys.version_info)  # a Python module, which carried the build record


@needs_library
@pytest.mark.parametrize("name", [EARLIER, "_C.cp38-win_amd64.pyd", "_C.dylib"])
def test_a_library_of_an_earlier_version_or_another_system(installed, name):
    library_of(installed).rename(installed / "cls2det_ops" / name)
    result = refused(installed)
    assert name in result
    assert f"was built by an earlier version or for another platform: this one loads {NAME}, so install the package" in result


@needs_library
def test_an_earlier_library_beside_the_right_one_is_not_loaded(installed):
    """As it lies in a source folder after a pull."""
    for name in (EARLIER, EARLIER.replace("_C", "_C_cuda")):
        (installed / "cls2det_ops" / name).write_bytes(b"not a library")
    assert step(installed)["native"]


def test_a_library_without_a_build_record(without_libraries):
    """Such as another project's of that name."""
    libm = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libm.so" in line)
    shutil.copy(libm, without_libraries / "cls2det_ops" / NAME)
    warning = refused(without_libraries)
    assert "could not be loaded (" in warning and "cls2det_build_info" in warning


TWICE = """
import sys, warnings
import torch, cls2det_ops
from cls2det_ops import _library
first, native = _library.cpu_missing, _library.native(torch.zeros(1))
for name in [name for name in sys.modules if name.split(".")[0] == "cls2det_ops"]:
    del sys.modules[name]
sys.path.insert(0, sys.argv[1])
with warnings.catch_warnings(record=True):
    warnings.simplefilter("always")
    import cls2det_ops
    from cls2det_ops import _library
assert cls2det_ops.__file__.startswith(sys.argv[1]), cls2det_ops.__file__
logits = torch.randn(4, 6, requires_grad=True)
loss = cls2det_ops.kd_softmax_loss(logits, torch.randn(2, 5), torch.tensor([0, 1, 1, 0]))
loss.backward()
print("MESSAGE", _library.cpu_missing, _library.native(logits), logits.grad.isfinite().all().item())
"""


@needs_library
def test_two_copies_in_one_process(installed):
    """Both declare the same operators, which would end the process: the second one runs in plain PyTorch and says why."""
    result = run_forked(TWICE, str(installed))
    assert result.returncode == 0, result.stderr
    where = _library.CPU_LIBRARY.resolve()
    assert f"MESSAGE another copy of cls2det_ops is loaded in this process, from {where} False True" in result.stdout


@needs_library
def test_the_same_copy_imported_again(installed):
    result = run_forked(TWICE, str(installed), folder=installed)
    assert result.returncode == 0, result.stderr
    assert "MESSAGE  True True" in result.stdout


# ---- CUDA ----


def cuda_state(folder: Path | None = None, version: str = "torch.version.cuda", **environment: str) -> dict:
    """What the loader says of CUDA in a process whose torch has that version of CUDA, or None; the CPU kernels must work."""
    code = STEP.replace("import torch, cls2det_ops", f"import torch; torch.version.cuda = {version}; import cls2det_ops")
    code += "from cls2det_ops import _library; print(json.dumps(_library.cuda_missing))"
    result = run_forked(code, folder=folder, **environment)
    assert result.returncode == 0, result.stderr
    *_, about, missing = result.stdout.splitlines()
    assert json.loads(about)["native"]
    assert json.loads(about)["warnings"] == []
    return json.loads(missing)


@needs_cuda_library
def test_toolkit_without_a_gpu():
    """The CUDA library was built and loads where no GPU is; only a CUDA tensor would need one."""
    assert cuda_state(CUDA_VISIBLE_DEVICES="") == ""
    code = "import runpy; runpy.run_module('cls2det_ops', run_name='__main__')"
    assert "no GPU is visible" in run_forked(code, CUDA_VISIBLE_DEVICES="").stdout


@needs_cuda_library
def test_cuda_library_with_a_torch_without_cuda():
    assert cuda_state(version="None") == "this torch has no CUDA support"


@needs_cuda_library
def test_wrong_cuda_major():
    built = _library.build_info["cuda_version"]
    assert cuda_state(version="'9.2'") == f"its kernels were built for CUDA {built}, this torch uses CUDA 9.2"
    assert cuda_state(version=f"'{built.split('.')[0]}.99'") == ""


@needs_cuda_library
def test_something_else_by_the_name_of_the_cuda_library(installed):
    """The CPU kernels work on."""
    library = library_of(installed, _library.CUDA_LIBRARY)
    library.write_bytes(b"not a library")
    missing = cuda_state(installed)
    assert "the CUDA library could not be loaded (" in missing
    assert f"{library.name}: " in missing, "the system's own message is missing"
    assert "install the package again" in missing


@needs_cuda_library
def test_cuda_library_left_out(installed):
    library_of(installed, _library.CUDA_LIBRARY).unlink()
    assert cuda_state(installed) == "the package was built without CUDA kernels"


@needs_library
def test_native_is_an_error_where_there_are_no_kernels():
    """And auto falls back to plain PyTorch."""
    features = torch.empty(1, 2, 3, 3, device="meta")
    with cls2det_ops.use_backend("auto"):
        assert cls2det_ops.attention_means(features)[0].device.type == "meta"
    with cls2det_ops.use_backend("native"), pytest.raises(RuntimeError, match="was asked for a meta tensor, but"):
        cls2det_ops.attention_means(features)
