"""Whether a wheel serves every Python, every torch from 2.11 and every Linux that its tag names: python tests/wheel_check.py FILE …

`make wheel` runs it. Of several wheels of one name it also asks the same bytes. It needs nm and readelf, which come with a
compiler, and exits with 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MOST_BYTES = 8_000_000
LIBRARIES = {"cls2det_ops/_C.so", "cls2det_ops/_C_cuda.so"}
# What a library may ask for. Everything else must come from torch's stable C interface, whose names have no version.
TORCH = re.compile(r"(aoti_)?torch_\w+")
TOOLCHAIN = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__", "__cxa_finalize"}  # weak
NEEDED = re.compile(
    r"(libc10|libc10_cuda|libtorch|libtorch_cpu|libtorch_cuda)\.so|lib(c|m|gcc_s|stdc\+\+|cudart)\.so\.\d+|ld-linux.*"
)
# The highest versions of symbols in each platform's policy, as auditwheel has them. torch's own wheels are manylinux_2_28.
POLICIES = {
    "linux": {},
    "manylinux_2_28": {"GLIBC": "2.28", "GLIBCXX": "3.4.24", "CXXABI": "1.3.11", "GCC": "7.0.0"},
}


def number(version: str) -> list[int]:
    return list(map(int, version.split(".")))


def is_allowed(symbol: str, version: str, platform: str) -> bool:
    """A name with a version is of the system or the toolkit; one without must come from torch."""
    if version or TORCH.fullmatch(symbol) or symbol in TOOLCHAIN:
        return True
    # What this compiler's libstdc++ has and an older one lacks: torch's libraries may hold it, but promise nothing.
    return platform == "linux" and re.match(r"_ZN?K?S[ost]", symbol) is not None


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def undefined(library: Path) -> list[tuple[str, str]]:
    """(symbol, version or "") of everything that a library asks others for."""
    lines = output("nm", "-D", "--undefined-only", str(library)).splitlines()
    return [tuple(line.split()[-1].replace("@@", "@").partition("@")[::2]) for line in lines]


def highest_versions(library: Path) -> dict[str, str]:
    """{"GLIBC": "2.27", ...}: the newest that a library asks of each family."""
    versions: dict[str, str] = {}
    for _, version in undefined(library):
        match = re.fullmatch(r"([A-Z]+)_([\d.]+)", version)
        if match and number(match[2]) > number(versions.get(match[1], "0")):
            versions[match[1]] = match[2]
    return versions


def faults_of_library(library: Path, platform: str) -> list[str]:
    """What keeps a compiled library from being one file for every Python, torch and Linux; empty if nothing does."""
    faults = []
    for symbol, version in undefined(library):
        if re.match(r"_?Py[A-Z_]", symbol):
            faults.append(f"asks Python for {symbol}")
        elif not is_allowed(symbol, version, platform):
            faults.append(f"asks for {symbol}, which is not in torch's stable C interface")
    policy = POLICIES[platform]
    for family, version in highest_versions(library).items() if policy else ():
        if family not in policy or number(version) > number(policy[family]):
            faults.append(f"asks for {family}_{version}, {platform} has {policy.get(family, 'none')}")
    dynamic = output("readelf", "-d", "-W", str(library))
    faults += [f"needs {name}" for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic) if not NEEDED.fullmatch(name)]
    faults += [f"looks for libraries in {path}" for path in re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", dynamic)]
    if ".symtab" in output("readelf", "-S", "-W", str(library)):
        faults.append("is not stripped")
    paths = set(re.findall(rb"(?:/[\w.+\x80-\xff -]{2,}){2,}\.(?:h|hpp|cuh|c|cc|cpp|cu|so)\b", library.read_bytes()))
    # after a letter it is the end of a relative path
    paths = {path for path in paths if re.search(rb"(?<![\w.+\x80-\xff-])" + re.escape(path), library.read_bytes())}
    return faults + [f"holds a path of the machine that built it: {path.decode(errors='replace')}" for path in sorted(paths)]


def faults_of_wheel(wheel: Path) -> list[str]:
    tag = "-".join(wheel.stem.split("-")[-3:])
    match = re.fullmatch(r"py3-none-(\w+)_(x86_64|aarch64)", tag)
    if not match or match[1] not in POLICIES:
        return [f"{wheel.name} is for {tag}: py3-none, and one of {', '.join(POLICIES)}, were expected"]
    faults = []
    if wheel.stat().st_size > MOST_BYTES:
        faults.append(f"{wheel.name} has {wheel.stat().st_size} bytes, {MOST_BYTES} were expected at most")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        names = archive.namelist()
        record = next(name for name in names if name.endswith(".dist-info/WHEEL"))
        if f"Tag: {tag}\n" not in archive.read(record).decode():
            faults.append(f"{record} does not say {tag}")
        if not any(name.endswith("/LICENSE") for name in names):
            faults.append(f"{wheel.name} lacks LICENSE")
        if len({entry.date_time for entry in archive.infolist()}) > 1:
            faults.append(f"{wheel.name} holds the times of its files: set SOURCE_DATE_EPOCH")
        libraries = [name for name in names if re.search(r"\.(so|pyd|dylib|a|o)\b", name)]
        if "cls2det_ops/_C.so" not in libraries:
            faults.append(f"{wheel.name} lacks cls2det_ops/_C.so")
        for name in libraries:
            if name not in LIBRARIES:
                faults.append(f"{wheel.name} holds {name}, which this version does not load")
                continue
            file = Path(archive.extract(name, folder))
            faults += [f"{name} {fault}" for fault in faults_of_library(file, match[1])]
            versions = ", ".join(f"{family} {version}" for family, version in sorted(highest_versions(file).items()))
            print(f"  {name}: {file.stat().st_size} bytes, {len(undefined(file))} symbols from others; {versions}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", nargs="+", type=Path)
    faults, hashes = [], {}
    for wheel in parser.parse_args().wheels:
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        print(f"{wheel}: {wheel.stat().st_size} bytes, sha256 {digest}")
        faults += faults_of_wheel(wheel)
        if hashes.setdefault(wheel.name, digest) != digest:
            faults.append(f"{wheel} has other bytes than the one before it")
    for fault in faults:
        print(f"WRONG: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
