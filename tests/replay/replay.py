"""Runs the CPU operators on a processor that this machine can only emulate, and compares them with their results here.

Calls of the operators are recorded here, with their results. csrc/cpu is compiled for the other processor, together with
torch_interface.cpp in place of torch, and repeats the calls under an emulator. `python tests/replay/replay.py` does this for arm64
with Debian's g++-aarch64-linux-gnu and qemu-user; test_arm64.py is the same as a test.

A file of calls: their number; for each the operator's name, the numbers of arguments and results, and the arguments, each after one
letter for its kind. A tensor is its type's number, its number of dimensions, sizes, strides and memory. Numbers are int64. A file of
results holds each result's number of bytes and its values, contiguous.
"""

from __future__ import annotations

import argparse
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.cpp_extension import include_paths

sys.path.append(str(Path(__file__).resolve().parents[1]))

from backends import BACKENDS
from helpers import assert_close, cast, evaluate
from kernel_driver import SIZES
from op_cases import PUBLIC_OPS, make_case

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NUMBERS = {torch.uint8: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.int64: 4}
NUMBERS |= {torch.float32: 6, torch.float64: 7, torch.bool: 11}
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
MACROS = ["BUILD_TORCH", "CUDA_VERSION", "CUDA_ARCHS", "CUDA_MISSING"]


def missing() -> str:
    """Why arm64 cannot be emulated here, or ""."""
    programs = [name for name in (COMPILER, EMULATOR[0]) if not shutil.which(name)]
    return f"no {' and no '.join(programs)}" if programs else ""


def tensor_bytes(tensor: Tensor) -> bytes:
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    memory = tensor.detach().as_strided((span,), (1,)).numpy().tobytes() if tensor.numel() else b""
    numbers = [NUMBERS[tensor.dtype], tensor.dim(), *tensor.shape, *tensor.stride()]
    return struct.pack(f"<{len(numbers)}q", *numbers) + memory


def argument_bytes(kind: str, value) -> bytes:
    if value is None:
        return b"n"
    if kind in ("Tensor", "Optional[Tensor]"):
        return (b"t" if kind == "Tensor" else b"o") + tensor_bytes(value)
    if kind == "List[int]":
        return b"l" + struct.pack(f"<{len(value) + 1}q", len(value), *value)
    return b"v" + struct.pack("<d" if kind == "float" else "<q", value)


class Recorder(TorchDispatchMode):
    """Keeps every call of a native operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes] = []
        self.names: list[str] = []
        self.results: list[tuple[Tensor, ...]] = []

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        results = operator(*arguments, **(options or {}))
        if operator.namespace == "cls2det":
            schema = operator._schema
            assert len(arguments) == len(schema.arguments), f"{schema.name}: arguments by name"
            kinds = [str(argument.type) for argument in schema.arguments]
            content = b"".join(map(argument_bytes, kinds, arguments))
            kept = results if isinstance(results, tuple) else (results,)
            name = schema.name.removeprefix("cls2det::")
            head = struct.pack("<q", len(name)) + name.encode() + struct.pack("<qq", len(kinds), len(kept))
            self.calls.append(head + content)
            self.names.append(name)
            self.results.append(tuple(result.detach().contiguous().clone() for result in kept))
        return results

    def content(self) -> bytes:
        return struct.pack("<q", len(self.calls)) + b"".join(self.calls)


def record(operators: list[str]) -> Recorder:
    """Forward and backward of each public operator on a few sizes, in float32 and float64."""
    recorder = Recorder()
    for operator in operators:
        for sizes in SIZES:
            case = make_case(operator, **sizes)
            for dtype in (torch.float32, torch.float64):
                with recorder:
                    evaluate(BACKENDS["cpu"], case.function, cast(case.tensors, dtype), case.options, case.gradients)
    return recorder


def build(folder: Path, sources: list[Path], compiler: str = COMPILER) -> Path:
    """The program that repeats calls; objects that lie in ``folder`` already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["-O3", "-std=c++17", "-fPIC", "-Wno-psabi", "-Wno-attributes", "-ffp-contract=fast"]
    flags.append("-DTORCH_TARGET_VERSION=0x020b000000000000")
    flags += [f'-DCLS2DET_{name}=""' for name in MACROS] + [f"-I{path}" for path in (ROOT / "csrc", *include_paths())]
    objects = []
    for source in (*sources, HERE / "torch_interface.cpp"):
        objects.append(folder / f"{source.stem}.o")
        if not objects[-1].is_file():
            subprocess.run([compiler, *flags, "-c", str(source), "-o", str(objects[-1])], check=True)
    subprocess.run([compiler, "-no-pie", *map(str, objects), "-o", str(folder / "replay")], check=True)
    return folder / "replay"


def compare(recorder: Recorder, output: bytes) -> int:
    """The number of results that agree; an AssertionError at the first that does not."""
    at = count = 0
    for name, results in zip(recorder.names, recorder.results, strict=True):
        for i, expected in enumerate(results):
            (size,) = struct.unpack_from("<q", output, at)
            assert size == expected.numel() * expected.element_size(), f"{name}, result {i}: {size} bytes"
            at += 8
            if size:
                actual = torch.frombuffer(bytearray(output[at : at + size]), dtype=expected.dtype).view(expected.shape)
                if expected.is_floating_point():
                    assert_close(actual, expected)
                else:
                    assert torch.equal(actual, expected), f"{name}, result {i}"
            at += size
            count += 1
    assert at == len(output)
    return count


def replay(folder: Path, operators: list[str], sources: list[Path]) -> int:
    program = build(folder, sources)
    recorder = record(operators)
    result = subprocess.run([*EMULATOR, str(program)], input=recorder.content(), capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    return compare(recorder, result.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operators", nargs="*", default=PUBLIC_OPS, help="default: all of them")
    parser.add_argument("--folder", type=Path, help="where objects are kept; default: nowhere")
    options = parser.parse_args()
    if reason := missing():
        raise SystemExit(f"arm64 cannot be emulated: {reason}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        count = replay(folder, options.operators, sorted((ROOT / "csrc/cpu").glob("*.cpp")))
    print(f"{count} results of {len(options.operators)} operators agree on arm64")


if __name__ == "__main__":
    main()
