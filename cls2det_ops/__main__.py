"""``python -m cls2det_ops``: what is installed, which back ends work, and why one is missing."""

import platform
import textwrap
from pathlib import Path

import torch

from . import __version__
from ._library import build_info, cpu_capability, cpu_missing, cuda_missing


def report() -> list[tuple[str, str]]:
    lines = [
        ("cls2det_ops", __version__),
        ("installed in", str(Path(__file__).parent)),
        ("Python", platform.python_version()),
        ("torch", f"{torch.__version__} ({torch.get_num_threads()} CPU threads)"),
        ("CPU back end", f"missing: {cpu_missing}" if cpu_missing else f"native, {cpu_capability()}"),
        ("CUDA back end", f"missing: {cuda_missing}" if cuda_missing else _cuda()),
        ("reference back end", "plain PyTorch, always there"),
    ]
    if build_info:
        target = int(build_info["torch_target"].rstrip("ULul"), 16)
        lines += [
            ("built with torch", build_info["build_torch"]),
            ("runs on torch from", f"{target >> 56}.{target >> 48 & 0xFF} (LibTorch stable ABI)"),
            ("compiler", build_info["compiler"]),
            ("CUDA kernels", _kernels()),
        ]
    return lines


def _kernels() -> str:
    archs, version = build_info["cuda_archs"], build_info["cuda_version"]
    return f"built with CUDA {version} for {archs}" if archs else "none"


def _cuda() -> str:
    if not torch.cuda.is_available():
        return f"native, torch was built for CUDA {torch.version.cuda}, no GPU is visible"
    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return f"native, CUDA {torch.version.cuda}, {', '.join(sorted(names))}"


if __name__ == "__main__":
    for name, value in report():
        line = textwrap.fill(
            value,
            100,
            initial_indent=f"{name:<20} ",
            subsequent_indent=" " * 21,
            break_long_words=False,  # so that a path can be copied
            break_on_hyphens=False,
        )
        print(line)
