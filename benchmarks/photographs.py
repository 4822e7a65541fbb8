"""The study on photographs on a machine with a GPU and without a network: pack here, copy, run there.

    python benchmarks/photographs.py pack --data cards=PATH vehicles=PATH --out build/photographs
    python benchmarks/photographs.py run build/photographs --seconds 840

``pack`` puts the data sets, ImageNet weights of MobileNetV2 from torch's cache, and wheels for the other machine's Python in one
folder, one set at a time where two are too large. ``run`` installs what is missing there, runs the sweeps ``study-own`` and
``study-own-students`` on each set, several trainings at a time, and keeps the reports. What time has stopped goes on from its
checkpoints.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = "mobilenet_v2-b0353104.pth"
LARGEST = 64 * 2**20  # bytes, with all wheels
# what the training layer imports beside torch, torchvision, numpy and Pillow; no dependency is looked up
WHEELS = (
    *("pycocotools", "jsonargparse", "docstring-parser", "typeshed-client", "importlib-resources", "pyyaml"),
    *("lightning", "lightning-utilities", "torchmetrics", "packaging", "fsspec", "tqdm"),
    *("rich", "markdown-it-py", "mdurl", "pygments"),
    *("tensorboard", "tensorboard-data-server", "absl-py", "grpcio", "markdown", "protobuf", "werkzeug", "markupsafe"),
    *("matplotlib", "contourpy", "cycler", "fonttools", "kiwisolver", "pyparsing", "python-dateutil", "six"),
)
# sweeps, with their students where they are not the sweep's
SWEEPS = {"study-own": [], "study-own-students": ["--students", "fasterrcnn_mobilenet_v2_fpn", "retinanet_mobilenet_v2_small"]}


def pack(options: argparse.Namespace) -> None:
    out: Path = options.out
    for text in options.data:
        name, _, path = text.partition("=")
        shutil.copytree(path, out / "data" / name, dirs_exist_ok=True)
    weights = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache/torch")) / "hub/checkpoints" / WEIGHTS
    (out / "torch/hub/checkpoints").mkdir(parents=True, exist_ok=True)
    shutil.copy(weights, out / "torch/hub/checkpoints")
    target = ["--only-binary=:all:", "--python-version", options.python, "--platform", "manylinux_2_28_x86_64"]
    target += ["--platform", "manylinux_2_17_x86_64", "--platform", "manylinux2014_x86_64"]
    wheels = ["--no-deps", "--dest", str(out / "wheels"), *(name for name in WHEELS if name not in options.without)]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *target, *wheels], check=True)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 2**20:.1f} MiB")
    if size > LARGEST:
        sys.exit(f"more than {LARGEST / 2**20:.0f} MiB: leave wheels out with --without")


def run(options: argparse.Namespace) -> None:
    end, folder = time.monotonic() + options.seconds, options.folder.resolve()
    install = ["--quiet", "--no-index", "--no-deps", "--find-links", str(folder / "wheels"), "--target", str(folder / "site")]
    present = {re.sub(r"[-_.]+", "-", part.metadata["Name"]).lower() for part in importlib.metadata.distributions()}
    packed = {file.name.split("-")[0].lower().replace("_", "-") for file in (folder / "wheels").glob("*.whl")}
    if missing := [name for name in WHEELS if name not in present and name in packed]:
        subprocess.run([sys.executable, "-m", "pip", "install", *install, *missing], check=True)
    paths = os.pathsep.join([str(folder / "site"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "TORCH_HOME": str(folder / "torch"), "OMP_NUM_THREADS": "1"}
    for sweep, students in SWEEPS.items():
        for data in sorted((folder / "data").iterdir()):
            command = [sys.executable, "-m", "cls2det", "sweep", "--config", sweep, *students, "--data-root", str(data)]
            command += ["--out", str(options.out / f"{data.name}-{sweep}"), "--workers", str(options.workers)]
            print(" ".join(command), flush=True)
            try:
                subprocess.run(command, env=environment, check=False, timeout=max(1.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                sys.exit(f"stopped after {options.seconds} s in {data.name}, {sweep}: run it again to go on")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("--data", nargs="+", required=True, help="NAME=FOLDER of each set")
    packing.add_argument("--out", type=Path, default=ROOT / "build/photographs")
    packing.add_argument("--python", default="3.12", help="version on the other machine")
    packing.add_argument("--without", nargs="*", default=[], help="wheels that the other machine has")
    packing.set_defaults(function=pack)
    running = commands.add_parser("run")
    running.add_argument("folder", type=Path, help="what pack wrote")
    running.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/photographs")))
    running.add_argument("--seconds", type=float, default=840)
    running.add_argument("--workers", type=int, default=8, help="trainings at a time on one GPU")
    running.set_defaults(function=run)
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
