"""The CPU operators compiled for arm64 give what they give here, under an emulator."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import neon
import replay
from backends import BACKENDS
from op_cases import PUBLIC_OPS


@pytest.mark.slow
def test_operators_on_arm64(tmp_path):
    if reason := replay.missing() or BACKENDS["cpu"].missing:
        pytest.skip(reason)
    sources = sorted((replay.ROOT / "csrc/cpu").glob("*.cpp"))
    assert replay.replay(tmp_path, PUBLIC_OPS, sources) > 10 * len(PUBLIC_OPS)


@pytest.mark.parametrize(
    ("instruction", "share"),
    [
        ("fmla v0.4s, v1.4s, v2.s[0]", 1),
        ("ldr q1, [x20]", 1),
        ("ldr q1, [sp, #16]", 0),
        ("fadd s0, s0, s1", 0.25),
        ("str s0, [x5]", 0.25),
        ("trn1 v2.4s, v0.4s, v3.4s", 0),
        ("dup v3.4s, w25", 0),
        ("add x1, x1, #0x4", 1),
        ("ldr w1, [x2], #20", 1),
        ("b.ne 44db0", 1),
    ],
)
def test_what_neon_by_hand_needs(instruction, share):
    assert neon.Instruction("", *instruction.split(" ", 1)).share_by_hand == share


@pytest.mark.slow
def test_instructions_are_counted_on_arm64(tmp_path):
    """Of scale_rows, whose loop is known: two loads or stores and one product for four values."""
    if reason := replay.missing() or BACKENDS["cpu"].missing:
        pytest.skip(reason)
    program = replay.build(tmp_path / "arm64", sorted((replay.ROOT / "csrc/cpu").glob("[ks][dc]*.cpp")))
    neon.record("kd_softmax_loss", "K480 C80+1", {}, tmp_path / "calls")
    counts = neon.on_arm64(program, neon.instructions_of(program), neon.plugin(tmp_path), tmp_path / "calls")
    rows = max(count for name, count in counts.items() if "run<float>" in name)
    assert 3 * 480 * 80 / 4 <= rows.arithmetic < rows.by_hand <= rows.executed < 3 * rows.arithmetic
