"""Whether a wheel and an sdist are fit to be published: python tests/release_check.py WHEEL SDIST

`make release-check` runs it. It looks at versions, licence files and what the sdist holds, and writes the wheel's software bill of
materials beside it (CycloneDX). Then it installs the wheel into a fresh environment outside the checkout and runs the operator
tests there. torch and the tests' packages come from the environment that runs this script, or from the index with --index.
--no-tests leaves the environment out. Exits with 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "setup.py",
    "pyproject.toml",
    "csrc/library.cpp",
    "cls2det_ops/_version.py",
    "LICENSE",
    "CHANGELOG.md",
    "tests/conftest.py",
)
FIRST_LOSS = """
import cls2det_ops, torch
logits = torch.zeros(2, 4, requires_grad=True)
cls2det_ops.kd_softmax_loss(logits, torch.zeros(1, 3), torch.tensor([0, -1])).backward()
from cls2det_ops import _library
print(cls2det_ops.__file__, _library.cpu_missing or "native", "cuda" if torch.cuda.is_available() else "cpu", sep="\\n")
"""


def of_wheel(wheel: Path) -> tuple[Message, dict[str, bytes]]:
    """(metadata, content by name)."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in files if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(files[name].decode()), files


def of_sdist(sdist: Path) -> tuple[Message, dict[str, bytes]]:
    """(metadata, content by name inside the one folder)."""
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        files = {member.name.split("/", 1)[1]: archive.extractfile(member).read() for member in members}
    return Parser().parsestr(files["PKG-INFO"].decode()), files


def changelog_version(text: str) -> tuple[str, str]:
    """(version, date or "unreleased") of the newest entry of CHANGELOG.md."""
    match = re.search(r"^## (\S+) \((\d{4}-\d\d-\d\d|unreleased)\)$", text, re.MULTILINE)
    return (match[1], match[2]) if match else ("none", "")


def faults_of_files(wheel: Path, sdist: Path) -> list[str]:
    """What is wrong with the content of the two; empty if nothing is."""
    (metadata, files), (source, sources) = of_wheel(wheel), of_sdist(sdist)
    faults = [f"{sdist.name} lacks {name}" for name in SOURCES if name not in sources]
    faults += [f"{sdist.name} holds {name}, which a build makes" for name in sources if re.search(r"\.(so|o|pyc)$", name)]
    if faults:
        return faults
    versions = {
        f"the metadata of {wheel.name}": metadata["Version"],
        f"the metadata of {sdist.name}": source["Version"],
        f"the name of {wheel.name}": wheel.name.split("-")[1],
        "cls2det_ops/_version.py": re.search(r'"(.*)"', sources["cls2det_ops/_version.py"].decode())[1],
        "the newest entry of CHANGELOG.md": changelog_version(sources["CHANGELOG.md"].decode())[0],
    }
    if len(set(versions.values())) > 1:
        faults.append("versions differ: " + ", ".join(f"{version} in {place}" for place, version in versions.items()))
    if metadata.items() != source.items() or metadata.get_payload() != source.get_payload():
        faults.append(f"{wheel.name} and {sdist.name} have other metadata")
    licences = [content for name, content in files.items() if name.endswith(".dist-info/licenses/LICENSE")]
    if metadata["License-Expression"] != "Apache-2.0" or licences != [sources["LICENSE"]]:
        faults.append(f"{wheel.name} must name Apache-2.0 and hold the sdist's LICENSE")
    for name in sorted(files.keys() | sources.keys()):
        if re.match(r"cls2det(_ops)?/", name) and not name.endswith(".so") and files.get(name) != sources.get(name):
            faults.append(f"{name} differs between {wheel.name} and {sdist.name}, or is in one of them alone")
    return faults


def bill_of_materials(wheel: Path) -> dict:
    """The wheel's software bill of materials in CycloneDX 1.6: its compiled files, what they were built with, what it needs.

    It holds no other project's files. The same wheel gives the same bill.
    """
    metadata, files = of_wheel(wheel)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    name, version = metadata["Name"], metadata["Version"]
    libraries, built_with = [], {}
    for file, content in files.items():
        if file.endswith(".so"):
            hashes = [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}]
            libraries.append({"type": "file", "bom-ref": file, "name": file, "hashes": hashes})
            record = re.search(rb"compiler=([^\n\0]+)\nbuild_torch=([^\n\0]+)\n.*\ncuda_version=([^\n\0]*)\n", content)
            if record:
                values = (value.decode() for value in record.groups())
                built_with = dict(zip(("compiler", "torch headers", "CUDA toolkit"), values, strict=True))
    needs: dict[str, dict] = {}
    for line in metadata.get_all("Requires-Dist", []):
        package, constraint = re.match(r"([\w.-]+)(?:\[.*?\])?([^;]*)", line).groups()
        scope = "optional" if "extra ==" in line else "required"
        component = {"type": "library", "bom-ref": f"pkg:pypi/{package}", "name": package, "purl": f"pkg:pypi/{package}"}
        component["scope"] = scope
        if constraint.strip():
            component["properties"] = [{"name": "cls2det:accepts", "value": constraint.strip()}]
        if scope == "required" or package not in needs:
            needs[package] = component
    purl = f"pkg:pypi/{name}@{version}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": purl,
                "name": name,
                "version": version,
                "purl": purl,
                "licenses": [{"expression": metadata["License-Expression"]}],
                "hashes": [{"alg": "SHA-256", "content": digest}],
                "properties": [
                    {"name": f"cls2det:built with {what}", "value": value} for what, value in built_with.items() if value
                ],
            }
        },
        "components": libraries + list(needs.values()),
        "dependencies": [{"ref": purl, "dependsOn": [component["bom-ref"] for component in needs.values()]}],
    }


def faults_of_bill(bill: dict) -> list[str]:
    """What the schema of CycloneDX 1.6 refuses. Needs cyclonedx-python-lib[json-validation]; without it, says so and passes."""
    if not (importlib.util.find_spec("cyclonedx") and importlib.util.find_spec("jsonschema")):
        print("the bill was not held against its schema: pip install 'cyclonedx-python-lib[json-validation]'")
        return []
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill))
    return [f"the bill of materials breaks CycloneDX 1.6 at {error.data.json_path}: {error.data.message}"] if error else []


def environment(folder: Path, index: bool, wheel: Path) -> Path:
    """The Python of a fresh environment in ``folder`` with the wheel installed."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin/python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if index:
        subprocess.run([*pip, f"{wheel}[train,test]"], check=True)
    else:
        shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (own,) = folder.glob("lib/python*/site-packages")
        (own / "shared.pth").write_text("\n".join(shared) + "\n")
        subprocess.run([*pip, "--no-index", "--no-deps", "--ignore-installed", str(wheel)], check=True)
    return python


def faults_of_installed(wheel: Path, index: bool, files: list[Path]) -> list[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        begin = time.monotonic()
        python = environment(folder / "environment", index, wheel)
        installed = time.monotonic()
        result = subprocess.run([str(python), "-c", FIRST_LOSS], cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode:
            return [f"the installed wheel does not run: {result.stderr}"]
        place, state, device = result.stdout.split("\n")[:3]
        print(f"installed in {installed - begin:.1f} s, first loss {time.monotonic() - installed:.1f} s later", flush=True)
        if not Path(place).is_relative_to(folder):
            return [f"{place} was imported, not the installed wheel"]
        if state != "native":
            return [f"the installed wheel runs in plain PyTorch: {state}"]
        tests = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
        tests += ["--rootdir", str(ROOT), "--backends", "cpu" if device == "cpu" else "cpu,cuda"]
        code = subprocess.run([*tests, *(str(file.resolve()) for file in files)], cwd=folder, check=False).returncode
    return [f"the operator tests of the installed wheel failed (pytest exited with {code})"] if code else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("sdist", type=Path)
    parser.add_argument("--index", action="store_true", help="install torch and the tests' packages from the index")
    parser.add_argument("--no-tests", action="store_true", help="look at the files alone")
    parser.add_argument("--tests", nargs="+", type=Path, default=[ROOT / "tests"], help="files of tests; default: all")
    parser.add_argument("--final", action="store_true", help="the newest entry of CHANGELOG.md must have a date")
    options = parser.parse_args()
    faults = faults_of_files(options.wheel, options.sdist)
    bill, file = bill_of_materials(options.wheel), options.wheel.with_suffix(".cdx.json")
    file.write_text(json.dumps(bill, indent=1) + "\n")
    print(f"bill of materials: {file}")
    faults += faults_of_bill(bill)
    released = changelog_version((ROOT / "CHANGELOG.md").read_text())[1]
    if options.final and released == "unreleased":
        faults.append("the newest entry of CHANGELOG.md is unreleased: give it its date")
    if not options.no_tests and not faults:
        faults += faults_of_installed(options.wheel, options.index, options.tests)
    for fault in faults:
        print(f"WRONG: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
