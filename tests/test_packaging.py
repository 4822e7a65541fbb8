"""What is installed: imports, the environment, the build record, and the report of `python -m cls2det_ops`."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cls2det_ops
from cls2det_ops import _library
from forked import run_forked
from helpers import clean_environment, run_python

PACKAGE = Path(cls2det_ops.__file__).parent


def test_debug_in_the_environment():
    code = """
import torch, cls2det_ops
cls2det_ops.kd_softmax_loss(torch.zeros(2, 4), torch.zeros(1, 3), torch.tensor([0, 7]))
"""
    assert run_forked(code).returncode == 0
    assert run_forked(code, CLS2DET_DEBUG="0").returncode == 0
    result = run_forked(code, CLS2DET_DEBUG="1")
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
        assert _library.cuda_missing.lower() in " ".join(text.split())
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_public_names_are_functions_and_typed():
    assert (PACKAGE / "py.typed").is_file()
    for name in cls2det_ops.__all__:
        value = getattr(cls2det_ops, name)
        assert callable(value) or isinstance(value, str), f"{name} is a {type(value).__name__}: a module hides it"


@pytest.fixture
def sources(tmp_path):
    """What a build reads, with what earlier builds of an older layout left in it."""
    root, sources = PACKAGE.parent, tmp_path / "sources"
    if not (root / "setup.py").is_file():
        pytest.skip("not run from the source folder")
    sources.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(root / name, sources)
    shutil.copytree(PACKAGE, sources / "cls2det_ops", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (sources / "cls2det").mkdir()
    (sources / "cls2det" / "__init__.py").touch()
    for stale in ("cls2det/old.py", "old_package/__init__.py", "cls2det_ops/_C.so", "cls2det_ops/_C_cuda.x.so"):
        (sources / "build/lib" / stale).parent.mkdir(parents=True, exist_ok=True)
        (sources / "build/lib" / stale).touch()
    for stale in ("_C.so", "_C_cuda.so", "_C_cuda.x.so"):
        (sources / "cls2det_ops" / stale).touch()
    return sources


def setup(sources: Path, code: str) -> None:
    environment = clean_environment(sources) | {"CLS2DET_NO_EXT": "1"}
    result = subprocess.run([sys.executable, "-c", code], cwd=sources, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_wheel_holds_what_this_build_made(sources):
    setup(sources, "from setuptools.build_meta import build_wheel; build_wheel('dist')")
    (wheel,) = (sources / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "cls2det_ops/reference.py" in names and "cls2det_ops/py.typed" in names
    assert not [name for name in names if "old" in name or name.endswith(".so")]


def test_a_build_clears_no_folder_but_its_own(sources):
    (sources / "elsewhere").mkdir()
    (sources / "elsewhere" / "kept.txt").touch()
    code = "import sys; sys.argv = ['setup.py', 'build', '--build-lib', 'elsewhere']; exec(open('setup.py').read())"
    setup(sources, code)
    assert (sources / "elsewhere" / "kept.txt").is_file() and (sources / "elsewhere" / "cls2det_ops").is_dir()
    setup(sources, "from setuptools.build_meta import build_editable; build_editable('dist')")


def test_a_change_of_any_file_in_csrc_builds_again(monkeypatch):
    root = PACKAGE.parent
    if not (root / "setup.py").is_file():
        pytest.skip("not run from the source folder")
    monkeypatch.setenv("CLS2DET_CUDA", "0")
    monkeypatch.chdir(root)
    asked = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: asked.update(options))
    runpy.run_path("setup.py")
    (library,) = asked["ext_modules"]
    assert set(library.depends) == {str(path.relative_to(root)) for path in (root / "csrc").rglob("*.*")}
    assert set(library.sources) == {"csrc/library.cpp", *map(str, Path("csrc/cpu").glob("*.cpp"))}


def test_a_library_of_an_earlier_build_with_cuda_is_not_loaded(monkeypatch):
    """Beside the sources it stays when they are built again without CUDA; its kernels may be of other operators."""
    if _library.cpu_missing:
        pytest.skip(_library.cpu_missing)
    monkeypatch.setattr(_library.torch.version, "cuda", "13.0")
    monkeypatch.setitem(_library.build_info, "cuda_missing", "built with CLS2DET_CUDA=0")
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    assert "built with CLS2DET_CUDA=0; " in (reason := _library._load_cuda()) and reason.endswith("is of an earlier build")
