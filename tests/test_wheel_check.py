"""`make wheel` refuses a wheel that does not serve every Python, torch and Linux that its name promises."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

import wheel_check
from cls2det_ops import _library

NAME = "cls2det-1.0-py3-none-manylinux_2_28_x86_64.whl"
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("g++", "nm", "readelf"))) or not sys.platform.startswith("linux"),
    reason="no g++, nm and readelf",
)
GOOD = 'extern "C" int torch_parallel_for(int); int* f() { return new int(torch_parallel_for(1)); }'


@functools.cache
def library(code: str = GOOD, *flags: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "library.so")
        command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-x", "none", "-o", str(result), *(flags or ["-s"])]
        subprocess.run(command, input=code, text=True, check=True)
        return result.read_bytes()


def wheel(folder: Path, name: str = NAME, **changes: str | None) -> Path:
    """A wheel with one good library; a file named in ``changes`` has that content, or is left out."""
    tag = name.removesuffix(".whl").split("-", 2)[2]
    content = {"cls2det-1.0.dist-info/WHEEL": f"Tag: {tag}\n", "cls2det-1.0.dist-info/licenses/LICENSE": "Apache"}
    content |= {"cls2det_ops/_C.so": library()} | changes
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        for file, value in content.items():
            if value is not None:
                archive.writestr(zipfile.ZipInfo(file), value)
    return folder / name


def faults(path: Path) -> str:
    return "\n".join(wheel_check.faults_of_wheel(path))


def test_a_right_wheel(tmp_path):
    assert faults(wheel(tmp_path)) == ""


@pytest.mark.parametrize(
    ("code", "flags", "fault"),
    [
        (
            'extern "C" int Py_IsInitialized(); int f() { return Py_IsInitialized(); }',
            ["-s"],
            "asks Python for Py_IsInitialized",
        ),
        ("namespace at { int zeros(); } int f() { return at::zeros(); }", ["-s"], "asks for _ZN2at5zerosEv, which is not in"),
        ('extern "C" int shout(); int f() { return shout(); }', ["-s"], "asks for shout, which is not in torch's stable C"),
        (
            "double f(double x) { return __builtin_exp(x); }",
            ["-s"],
            "asks for GLIBC_2.29, manylinux_2_28 has 2.28",
        ),
        (
            'const char* f() { return "/somewhere/else/csrc/compat.h"; }',
            ["-s"],
            "path of the machine that built it: /somewhere",
        ),
        (
            'const char* f() { return "/home/jörg/my code/compat.h"; }',
            ["-s"],
            "path of the machine that built it: /home/jörg/my code/compat.h",
        ),
        (GOOD, ["-s", "-Wl,-rpath,/somewhere"], "looks for libraries in /somewhere"),
        (GOOD, ["-g0"], "is not stripped"),
        (GOOD, ["-s", "-Wl,--no-as-needed", "-lpthread", "-lutil", "-lresolv"], "needs libresolv.so.2"),
    ],
)
def test_a_library_that_does_not_serve_all(tmp_path, code, flags, fault):
    file = tmp_path / "library.so"
    file.write_bytes(library(code, *flags))
    if "exp" in code and b"GLIBC_2.29" not in file.read_bytes():
        pytest.skip("the exp of this system is older")
    assert fault in "\n".join(wheel_check.faults_of_library(file, "manylinux_2_28"))


def test_a_wheel_for_this_system_alone_may_use_what_its_libstdcxx_has(tmp_path):
    file = tmp_path / "library.so"
    file.write_bytes(library("namespace std { void later(); } void f() { std::later(); }"))
    assert wheel_check.faults_of_library(file, "linux") == []
    assert "asks for _ZSt5laterv" in "\n".join(wheel_check.faults_of_library(file, "manylinux_2_28"))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"cls2det_ops/_C.so": None}, "lacks cls2det_ops/_C.so"),
        ({"cls2det_ops/_C.cpython-311-x86_64-linux-gnu.so": ""}, "which this version does not load"),
        ({"cls2det-1.0.dist-info/licenses/LICENSE": None}, "lacks LICENSE"),
        ({"cls2det-1.0.dist-info/WHEEL": "Tag: py3-none-any\n"}, "does not say py3-none-manylinux_2_28_x86_64"),
    ],
)
def test_a_wheel_with_other_content(tmp_path, changes, fault):
    assert fault in faults(wheel(tmp_path, **changes))


def test_names_and_sizes(tmp_path, monkeypatch):
    assert "py3-none, and one of linux, manylinux_2_28" in faults(wheel(tmp_path, NAME.replace("py3-none", "cp311-cp311")))
    assert "manylinux_2_17" in faults(wheel(tmp_path, NAME.replace("2_28", "2_17")))
    monkeypatch.setattr(wheel_check, "MOST_BYTES", 100)
    assert "100 were expected at most" in faults(wheel(tmp_path))


def test_two_wheels_of_one_name_need_the_same_bytes(tmp_path):
    first, second = wheel(tmp_path / "a"), wheel(tmp_path / "b")
    command = [sys.executable, wheel_check.__file__, str(first), str(second)]
    assert subprocess.run(command, check=False).returncode == 0
    wheel(tmp_path / "b", **{"cls2det/new.py": ""})
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and f"WRONG: {second} has other bytes" in result.stderr


def test_the_libraries_in_use_know_no_python():
    """Which systems they serve depends on the compiler, but this does not."""
    for path in (_library.CPU_LIBRARY, _library.CUDA_LIBRARY):
        if path.is_file():
            assert "Python" not in "\n".join(wheel_check.faults_of_library(path, "linux"))
