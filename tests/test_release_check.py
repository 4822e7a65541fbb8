"""`make release-check` refuses a wheel and an sdist that do not belong together, and lists what the wheel is made of."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import cls2det_ops
import release_check

ROOT = Path(__file__).parents[1]
METADATA = """Metadata-Version: 2.4
Name: cls2det
Version: 1.0
License-Expression: Apache-2.0
Requires-Dist: torch>=2.11
Provides-Extra: train
Requires-Dist: torchvision; extra == "train"
Requires-Dist: jsonargparse[signatures]>=4.35; extra == "train"
Requires-Dist: torch>=2.11; extra == "train"

Words.
"""
SOURCES = {
    **dict.fromkeys(release_check.SOURCES, ""),
    "LICENSE": "Apache",
    "PKG-INFO": METADATA,
    "cls2det_ops/_version.py": '__version__ = "1.0"',
    "CHANGELOG.md": "# Changelog\n\n## 1.0 (2027-01-02)\n\n- New.\n\n## 0.9 (2026-01-02)\n",
}
LIBRARY = "\0compiler=12.2.0\nbuild_torch=2.14.1\ntorch_target=0x020b\ncuda_version=\ncuda_archs=\0"
CONTENT = {
    "cls2det-1.0.dist-info/METADATA": METADATA,
    "cls2det-1.0.dist-info/licenses/LICENSE": "Apache",
    "cls2det_ops/_version.py": SOURCES["cls2det_ops/_version.py"],
    "cls2det_ops/_C.so": LIBRARY,
}


def wheel(folder: Path, name: str = "cls2det-1.0-py3-none-linux_x86_64.whl", **changes: str | None) -> Path:
    with zipfile.ZipFile(folder / name, "w") as archive:
        for file, value in (CONTENT | changes).items():
            if value is not None:
                archive.writestr(zipfile.ZipInfo(file), value)
    return folder / name


def sdist(folder: Path, **changes: str | None) -> Path:
    with tarfile.open(folder / "cls2det-1.0.tar.gz", "w:gz") as archive:
        for file, value in (SOURCES | changes).items():
            if value is not None:
                entry = tarfile.TarInfo(f"cls2det-1.0/{file}")
                entry.size = len(value)
                archive.addfile(entry, io.BytesIO(value.encode()))
    return folder / "cls2det-1.0.tar.gz"


def test_a_right_release(tmp_path):
    assert release_check.faults_of_files(wheel(tmp_path), sdist(tmp_path)) == []


@pytest.mark.parametrize(
    ("in_wheel", "in_sdist", "fault"),
    [
        ({}, {"CHANGELOG.md": "## 1.1 (unreleased)\n"}, "versions differ: .* 1.1 in the newest entry of CHANGELOG.md"),
        ({}, {"cls2det_ops/_version.py": '__version__ = "1.1"'}, "versions differ: .* 1.1 in cls2det_ops/_version.py"),
        ({}, {"PKG-INFO": METADATA.replace("1.0", "1.1")}, "versions differ: .* 1.1 in the metadata of .*tar.gz"),
        ({}, {"PKG-INFO": METADATA.replace("Words", "Other words")}, "have other metadata"),
        ({}, {"csrc/library.cpp": None}, "lacks csrc/library.cpp"),
        ({}, {"cls2det_ops/_C.so": ""}, "holds cls2det_ops/_C.so, which a build makes"),
        ({"cls2det-1.0.dist-info/licenses/LICENSE": None}, {}, "hold the sdist's LICENSE"),
        ({"cls2det-1.0.dist-info/licenses/LICENSE": "MIT"}, {}, "hold the sdist's LICENSE"),
        ({"cls2det_ops/_version.py": "of an earlier day"}, {}, "cls2det_ops/_version.py differs between"),
        ({"cls2det/old.py": ""}, {}, "cls2det/old.py .* is in one of them alone"),
        ({}, {"cls2det/new.yaml": ""}, "cls2det/new.yaml .* is in one of them alone"),
    ],
)
def test_a_wrong_release(tmp_path, in_wheel, in_sdist, fault):
    faults = release_check.faults_of_files(wheel(tmp_path, **in_wheel), sdist(tmp_path, **in_sdist))
    assert re.search(fault, "\n".join(faults)), faults


def test_the_bill_of_materials(tmp_path):
    bill = release_check.bill_of_materials(wheel(tmp_path))
    assert bill == release_check.bill_of_materials(wheel(tmp_path))
    main = bill["metadata"]["component"]
    assert (main["purl"], main["licenses"]) == ("pkg:pypi/cls2det@1.0", [{"expression": "Apache-2.0"}])
    assert [entry["value"] for entry in main["properties"]] == ["12.2.0", "2.14.1"]  # no CUDA toolkit
    components = {component["bom-ref"]: component for component in bill["components"]}
    assert len(components) == len(bill["components"])
    assert components["cls2det_ops/_C.so"]["type"] == "file"
    scopes = {name: component["scope"] for name, component in components.items() if "scope" in component}
    assert scopes == {
        "pkg:pypi/torch": "required",
        "pkg:pypi/torchvision": "optional",
        "pkg:pypi/jsonargparse": "optional",
    }
    assert {entry for edge in bill["dependencies"] for entry in edge["dependsOn"]} == set(scopes)


def test_the_bill_is_held_against_its_schema(tmp_path):
    pytest.importorskip("cyclonedx.validation.json")
    pytest.importorskip("jsonschema")
    bill = release_check.bill_of_materials(wheel(tmp_path))
    assert release_check.faults_of_bill(bill) == []
    bill["components"][0]["type"] = "binary"
    (fault,) = release_check.faults_of_bill(bill)
    assert "$.components[0].type: 'binary' is not one of" in fault


def test_a_release_without_a_date_is_not_final(tmp_path):
    command = [sys.executable, release_check.__file__, "--no-tests", str(wheel(tmp_path)), str(sdist(tmp_path))]
    assert subprocess.run(command, check=False).returncode == 0
    dated = release_check.changelog_version((ROOT / "CHANGELOG.md").read_text())[1] != "unreleased"
    assert subprocess.run([*command, "--final"], check=False).returncode == (0 if dated else 1)


def test_the_version_stands_in_one_place():
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("not run from the source folder")
    settings = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in settings and "cls2det_ops._version.__version__" in settings
    assert release_check.changelog_version((ROOT / "CHANGELOG.md").read_text())[0] == cls2det_ops.__version__
