"""Lays a wheel's cls2det_ops out as a kernel of the Hugging Face hub: python tests/hub_layout.py WHEEL FOLDER

FOLDER/build then holds a folder per variant, as the package `kernels` (0.17) looks for them: torch-stable-abi211-cpu-… and, from a
wheel with CUDA kernels, torch-stable-abi211-cu130-…. The libraries are those of the wheel, byte for byte. A kernel of the hub has
a name of torch.ops of its own: docs/release.md says how to build such a wheel.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import zipfile
from pathlib import Path

PACKAGE = "cls2det_ops"


def build_record(library: bytes) -> dict[str, str]:
    """What _C.so says of its build, see csrc/library.cpp, without loading it."""
    match = re.search(rb"compiler=[^\0]*", library)
    if not match:
        raise SystemExit(f"{PACKAGE}/_C.so holds no build record: it is of an earlier version")
    return dict(line.split("=", 1) for line in match[0].decode().splitlines())


def metadata(content: dict[str, bytes], version: str, backend: dict) -> dict:
    """metadata.json of one variant. The identifier is that of its bytes: no two builds share it."""
    digests = {name: hashlib.sha256(value).digest() for name, value in sorted(content.items())}
    whole = hashlib.sha256(b"".join(digests.values())).hexdigest()
    return {
        "id": f"_{PACKAGE}_{backend['type']}_{whole[:12]}",
        "name": PACKAGE.replace("_", "-"),
        "version": int(version.split(".")[0]),
        "license": "apache-2.0",
        "python-depends": [],
        "backend": backend,
        "digest": {
            "algorithm": "sha256",
            "files": {name: base64.b64encode(digest).decode() for name, digest in digests.items()},
        },
    }


def lay_out(wheel: Path, folder: Path) -> list[Path]:
    """The variants' folders, written."""
    version = wheel.name.split("-")[1]
    machine = re.search(r"linux.*?_(x86_64|aarch64)\.whl$", wheel.name)
    if not machine:
        raise SystemExit(f"{wheel.name}: a wheel for Linux on x86_64 or aarch64 was expected")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(f"{PACKAGE}/")]
        content = {name.removeprefix(f"{PACKAGE}/"): archive.read(name) for name in names}
        licence = next(name for name in archive.namelist() if name.endswith("/LICENSE"))
        content["LICENSE"] = archive.read(licence)
    record = build_record(content["_C.so"])
    content["_namespace.py"] = f'NAMESPACE = "{record["namespace"]}"\n'.encode()
    target = int(record["torch_target"].rstrip("ULul"), 16)
    backends: dict[str, tuple[dict, dict[str, bytes]]] = {
        "cpu": ({"type": "cpu"}, {name: value for name, value in content.items() if name != "_C_cuda.so"})
    }
    if "_C_cuda.so" in content:
        archs = record["cuda_archs"].split(";")
        backends["cu" + record["cuda_version"].replace(".", "")] = ({"type": "cuda", "archs": archs}, content)
    folders = []
    for name, (backend, files) in backends.items():
        variant = folder / "build" / f"torch-stable-abi{target >> 56}{target >> 48 & 0xFF}-{name}-{machine[1]}-linux"
        for file, value in files.items():
            (variant / file).parent.mkdir(parents=True, exist_ok=True)
            (variant / file).write_bytes(value)
        (variant / "metadata.json").write_text(json.dumps(metadata(files, version, backend), indent=2) + "\n")
        folders.append(variant)
    return folders


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    for made in lay_out(options.wheel, options.folder):
        print(made)
        if '"cls2det"' in (made / "_namespace.py").read_text():
            print("its operators are those of the package, torch.ops.cls2det: not for the hub, see docs/release.md")
