"""What is installed: imports, the environment, the build record, and the report of `python -m cls2det_ops`."""

from __future__ import annotations

from pathlib import Path

import pytest

import cls2det_ops
from cls2det_ops import _library
from forked import run_forked
from helpers import run_python

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
