"""What is installed: imports, the fallback without a compiled library, the environment, and the build record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import cls2det_ops
from cls2det_ops import _library
from helpers import run_python

PACKAGE = Path(cls2det_ops.__file__).parent

STEP = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, cls2det_ops
    from cls2det_ops import _library
    random = torch.Generator().manual_seed(0)
    student = torch.randn(6, 4, generator=random, requires_grad=True)
    boxes = torch.tensor([[1.0, 2.0, 7.5, 8.1], [0.5, 0.4, 3.3, 9.0]]).repeat(3, 1).requires_grad_()
    match = torch.tensor([0, 1, 1, 0, -1, 1])
    result = cls2det_ops.roi_kd_loss(
        student, boxes, torch.randn(2, 3, generator=random), torch.tensor([[1.0, 1.0, 8.0, 8.0], [0.0, 0.0, 4.0, 9.0]]),
        match, torch.tensor([0, 0]), cls2det_ops.RoIMap(torch.randn(1, 3, 10, 10, generator=random), 2, 6))
    result.loss.backward()
ours = [str(w.message) for w in caught if "cls2det_ops" in str(w.message)]
print(json.dumps({"loss": result.loss.item(), "grad": boxes.grad.abs().sum().item() + student.grad.abs().sum().item(),
                  "warnings": ours, "native": _library.native(student), "file": cls2det_ops.__file__}))
"""


def step(folder: Path | None = None, **environment: str) -> dict:
    result = run_python(STEP, folder=folder, **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def without_libraries(tmp_path: Path) -> Path:
    """A copy of the package's Python files alone, as CLS2DET_NO_EXT=1 installs it."""
    ignore = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "cls2det_ops", ignore=ignore)
    # an editable installation would find the libraries of the source folder for the copy as well
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.meta_path[:] = [finder for finder in sys.meta_path if 'Editable' not in repr(finder)]\n"
    )
    return tmp_path


def test_works_without_a_compiled_library_and_warns_once(without_libraries):
    found = step(without_libraries)
    assert found["file"].startswith(str(without_libraries))
    assert not found["native"]
    assert len(found["warnings"]) == 1
    assert "plain PyTorch" in found["warnings"][0]
    here = step(CLS2DET_BACKEND="reference")
    assert found["loss"] == here["loss"]
    assert found["grad"] == here["grad"]


def test_native_without_a_compiled_library_is_an_error(without_libraries):
    result = run_python("import cls2det_ops", folder=without_libraries, CLS2DET_BACKEND="native")
    assert result.returncode != 0
    assert "CLS2DET_BACKEND is 'native', but the package was built without its compiled library" in result.stderr
    result = run_python("import cls2det_ops\nwith cls2det_ops.use_backend('native'): pass", folder=without_libraries)
    assert "RuntimeError: use_backend: name is 'native', but" in result.stderr


def test_broken_library_is_reported_and_survived(without_libraries):
    import importlib.machinery

    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (without_libraries / "cls2det_ops" / f"_C{suffix}").write_bytes(b"not a library")
    found = step(without_libraries)
    assert not found["native"]
    assert len(found["warnings"]) == 1
    assert "could not be loaded" in found["warnings"][0]


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
def test_environment_chooses_the_backend(backend):
    if backend == "native" and _library.cpu_missing:
        pytest.skip(_library.cpu_missing)
    found = step(CLS2DET_BACKEND=backend)
    assert found["native"] == (backend != "reference" and not _library.cpu_missing)
    assert abs(found["loss"] - step(CLS2DET_BACKEND="reference")["loss"]) < 1e-5 * abs(found["loss"])
    if not _library.cpu_missing:
        assert found["warnings"] == []


def test_unknown_backend_in_the_environment():
    result = run_python("import cls2det_ops", CLS2DET_BACKEND="fastest")
    assert result.returncode != 0
    assert "CLS2DET_BACKEND must be one of 'auto', 'native', 'reference', found 'fastest'" in result.stderr


def test_debug_in_the_environment():
    code = """
import torch, cls2det_ops
cls2det_ops.kd_softmax_loss(torch.zeros(2, 4), torch.zeros(1, 3), torch.tensor([0, 7]))
"""
    assert run_python(code).returncode == 0
    assert run_python(code, CLS2DET_DEBUG="0").returncode == 0
    result = run_python(code, CLS2DET_DEBUG="1")
    assert "ValueError: kd_softmax_loss: matched_idxs must be below 1" in result.stderr


def test_imports_torch_alone():
    heavy = [
        "torchvision",
        "lightning",
        "pytorch_lightning",
        "pycocotools",
        "matplotlib",
        "sklearn",
        "skimage",
        "PIL",
        "cls2det",
    ]
    code = f"import sys, torch; before = set(sys.modules); import cls2det_ops; print([m for m in {heavy} + ['numpy'] " \
           "if m in sys.modules and m not in before])"  # fmt: skip
    result = run_python(code)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_build_record():
    if _library.cpu_missing:
        pytest.skip(_library.cpu_missing)
    assert int(_library.build_info["torch_target"].rstrip("ULul"), 16) == 0x020B000000000000, (
        "not the stable ABI of torch 2.11"
    )
    assert _library.build_info["build_torch"]
    assert _library.build_info["compiler"]


def test_python_m_prints_what_a_bug_report_needs():
    result = run_python("", "-m", "cls2det_ops")
    assert result.returncode == 0, result.stderr
    text = result.stdout.lower()
    for needed in (cls2det_ops.__version__, "torch", "python", "cpu", "cuda"):
        assert needed in text, f"{needed!r} is not in:\n{result.stdout}"
    if not _library.cpu_missing:
        assert _library.build_info["build_torch"] in result.stdout
        assert "2.11" in text  # the target
        assert any(name in text for name in ("avx512", "avx2", "avx-512", "default", "plain", "neon"))
    if _library.cuda_missing:
        assert _library.cuda_missing.lower() in text


def test_python_m_without_a_compiled_library(without_libraries):
    result = run_python("", "-m", "cls2det_ops", folder=without_libraries)
    assert result.returncode == 0, result.stderr
    assert "without its compiled library" in result.stdout


def test_public_names_are_functions_and_typed():
    assert (PACKAGE / "py.typed").is_file()
    for name in cls2det_ops.__all__:
        value = getattr(cls2det_ops, name)
        assert callable(value) or isinstance(value, str), f"{name} is a {type(value).__name__}: a module hides it"
