"""The CPU operators compiled for arm64 give what they give here, under an emulator."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import replay
from backends import BACKENDS
from op_cases import PUBLIC_OPS


@pytest.mark.slow
def test_operators_on_arm64(tmp_path):
    if reason := replay.missing() or BACKENDS["cpu"].missing:
        pytest.skip(reason)
    sources = sorted((replay.ROOT / "csrc/cpu").glob("*.cpp"))
    assert replay.replay(tmp_path, PUBLIC_OPS, sources) > 10 * len(PUBLIC_OPS)
