"""The operators as a kernel of the Hugging Face hub: laid out, and loaded from a local folder under a name of its own."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hub_layout
from cls2det_ops import _library
from forked import run_forked
from helpers import run_python

PACKAGE = Path(_library.__file__).parent
NAME = f"cls2det-0.1.0-py3-none-linux_{platform.machine()}.whl"
USE = """
import torch
losses = [kernel.kd_softmax_loss(torch.ones(2, 4), torch.ones(1, 3), torch.tensor([0, -1])) for _ in range(2)]
assert losses[0].isfinite() and torch.equal(*losses)
library = __import__("sys").modules[kernel.__name__ + "._library"]
print(kernel.__name__, library.CPU_LIBRARY, library.cpu_missing or "native", sep="\\n")
"""
# What kernels 0.17 does with the folder that it has chosen: its importer.py
LOAD = """
import importlib.util, json, sys
folder = {folder!r}
name = json.load(open(folder + "/metadata.json"))["id"]
spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py")
kernel = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
"""


@pytest.fixture
def wheel(tmp_path):
    """One of this package's own files; nothing is built."""
    if _library.cpu_missing:
        pytest.skip(_library.cpu_missing)
    with zipfile.ZipFile(tmp_path / NAME, "w") as archive:
        for file in PACKAGE.rglob("*"):
            if file.suffix in (".py", ".typed") or file == _library.CPU_LIBRARY:
                archive.write(file, f"cls2det_ops/{file.relative_to(PACKAGE)}")
        archive.writestr("cls2det-0.1.0.dist-info/licenses/LICENSE", "Apache")
    return tmp_path / NAME


def test_the_layout(wheel, tmp_path):
    (variant,) = hub_layout.lay_out(wheel, tmp_path / "kernel")
    assert variant.parent == tmp_path / "kernel/build"
    assert variant.name == f"torch-stable-abi211-cpu-{platform.machine()}-linux"
    about = json.loads((variant / "metadata.json").read_text())
    assert about["id"].isidentifier() and about["name"] == "cls2det-ops" and about["backend"] == {"type": "cpu"}
    files = {str(path.relative_to(variant)) for path in variant.rglob("*") if path.is_file()} - {"metadata.json"}
    assert set(about["digest"]["files"]) == files and {"__init__.py", "_C.so", "LICENSE", "ops/roi_crop.py"} <= files
    digest = base64.b64encode(hashlib.sha256((variant / "_C.so").read_bytes()).digest()).decode()
    assert about["digest"]["files"]["_C.so"] == digest
    assert (variant / "_C.so").read_bytes() == _library.CPU_LIBRARY.read_bytes()


def test_a_wheel_with_cuda_kernels_has_two_variants(wheel, tmp_path, monkeypatch):
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("cls2det_ops/_C_cuda.so", b"")
    record = {"torch_target": "0x020b000000000000", "namespace": "own", "cuda_version": "13.0", "cuda_archs": "8.0;9.0+PTX"}
    monkeypatch.setattr(hub_layout, "build_record", lambda library: record)
    cpu, cuda = hub_layout.lay_out(wheel, tmp_path / "kernel")
    assert "-cu130-" in cuda.name and (cuda / "_C_cuda.so").is_file() and not (cpu / "_C_cuda.so").exists()
    assert (cuda / "_namespace.py").read_text() == (cpu / "_namespace.py").read_text() == 'NAMESPACE = "own"\n'
    about = json.loads((cuda / "metadata.json").read_text())
    assert about["backend"] == {"type": "cuda", "archs": ["8.0", "9.0+PTX"]}
    assert about["id"] != json.loads((cpu / "metadata.json").read_text())["id"]


def test_other_wheels_are_refused(wheel, tmp_path):
    with pytest.raises(SystemExit, match="for Linux on"):
        hub_layout.lay_out(wheel.rename(tmp_path / "cls2det-0.1.0-py3-none-win_amd64.whl"), tmp_path)
    with pytest.raises(SystemExit, match="no build record"):
        hub_layout.build_record(b"")


def test_it_loads_under_the_name_in_its_metadata(wheel, tmp_path):
    (variant,) = hub_layout.lay_out(wheel, tmp_path / "kernel")
    result = run_forked(LOAD.format(folder=str(variant)) + USE)
    name, library, state = result.stdout.splitlines()
    assert name.startswith("_cls2det_ops_cpu_") and library == str(variant / "_C.so") and state == "native", result.stderr


def test_a_second_copy_in_the_process_runs_in_plain_pytorch(wheel, tmp_path):
    """The wheel's libraries declare torch.ops.cls2det, as the package's do."""
    (variant,) = hub_layout.lay_out(wheel, tmp_path / "kernel")
    result = run_forked("import cls2det_ops\n" + LOAD.format(folder=str(variant)) + USE)
    assert "another copy of cls2det_ops is loaded" in result.stdout.splitlines()[2], result.stderr
    assert "runs in plain PyTorch, slower" in result.stderr


@pytest.mark.slow
def test_a_build_with_its_own_namespace_runs_beside_the_package(wheel, tmp_path):
    """What the hub asks: two versions in one process."""
    if not (PACKAGE.parent / "setup.py").is_file():
        pytest.skip("not run from the source folder")
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path / "base"), "--build-lib", str(tmp_path)]
    env = os.environ | {"CLS2DET_NAMESPACE": "cls2det_ops_own", "CLS2DET_CUDA": "0"}
    subprocess.run(command, cwd=PACKAGE.parent, env=env, check=True, capture_output=True)
    own = tmp_path / "own" / NAME
    own.parent.mkdir()
    with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(own, "w") as copy:
        for name in archive.namelist():
            library = tmp_path / name
            copy.writestr(name, library.read_bytes() if name.endswith("_C.so") else archive.read(name))
    (variant,) = hub_layout.lay_out(own, tmp_path / "kernel")
    beside = """
import cls2det_ops
arguments = torch.randn(2, 4, requires_grad=True), torch.randn(1, 3), torch.tensor([0, -1])
results = [module.kd_softmax_loss(*arguments) for module in (cls2det_ops, kernel)]
grads = [torch.autograd.grad(result, arguments[:1])[0] for result in results]
assert torch.equal(*results) and torch.equal(*grads)
print(cls2det_ops._library.cpu_missing or "native", hasattr(torch.ops.cls2det_ops_own, "roi_crop"))
"""
    result = run_forked("import cls2det_ops\n" + LOAD.format(folder=str(variant)) + USE + beside)
    _, library, state, both = result.stdout.splitlines()
    assert library == str(variant / "_C.so") and state == "native" and both == "native True", result.stderr


def test_a_library_of_another_namespace_is_not_used(monkeypatch):
    if _library.cpu_missing:
        pytest.skip(_library.cpu_missing)
    monkeypatch.setattr(_library, "NAMESPACE", "another")
    record, problem = _library._load_cpu()
    assert not record and problem.endswith("registers torch.ops.cls2det where torch.ops.another was expected")


def test_the_loader_of_kernels_takes_it(wheel, tmp_path):
    if not importlib.util.find_spec("kernels"):
        pytest.skip("no package kernels")
    hub_layout.lay_out(wheel, tmp_path / "kernel")
    code = f"""
from pathlib import Path
from kernels import get_local_kernel
kernel = get_local_kernel(Path({str(tmp_path / "kernel")!r}), backend="cpu")
"""
    result = run_python(code + USE)
    assert result.returncode == 0, result.stderr
    name, library, state = result.stdout.splitlines()[-3:]
    assert name.startswith("_cls2det_ops_cpu_") and "torch-stable-abi211-cpu-" in library and state == "native"
