"""The guard is guarded: each planted bug is reported by the build that is responsible for it, its mended twin by none."""

from __future__ import annotations

import functools
import os
import re
import subprocess

import pytest

import emulated

ORDERS = ("forward", "reverse", "random:1")
KINDS = {
    "plain": r"emulated \w+, block|wrong result",
    "sanitize": r"AddressSanitizer|runtime error",
    "races": r"emulated .*(race|nothing has written): thread",
}
SMALL_GRID = {"reuse_when_blocks_stride"}  # a bug that only shows when a grid is smaller than the work

REPORTS = {  # bug: {build: what it must say}
    "global_out_of_bounds": {"sanitize": r"heap-buffer-overflow.*READ of size 4.*planted_bugs.cu:"},
    "shared_out_of_bounds": {"sanitize": r"heap-buffer-overflow.*WRITE of size 4.*planted_bugs.cu:"},
    "local_out_of_bounds": {"sanitize": r"planted_bugs.cu:\d+:\d+: runtime error: index 4 out of bounds for type 'float \[4\]'"},
    "misaligned_vector_load": {"sanitize": r"planted_bugs.cu:\d+:\d+: runtime error: .*misaligned address.*requires 16 byte"},
    "misaligned_shared_load": {"sanitize": r"planted_bugs.cu:\d+:\d+: runtime error: .*misaligned address.*requires 16 byte"},
    "float_that_fits_no_int": {"sanitize": r"planted_bugs.cu:\d+:\d+: runtime error: 2e\+10 is outside the range of .* 'int'"},
    "index_overflow": {"sanitize": r"planted_bugs.cu:\d+:\d+: runtime error: signed integer overflow"},
    "missing_syncthreads_after_write": {
        "plain": r"wrong result: -?nan",
        "races": r"shared memory that nothing has written: thread \d+ of block 0 reads at planted_bugs.cu:\d+",
    },
    "missing_syncthreads_before_reuse": {
        "plain": r"wrong result",
        "races": r"race: thread \d+ of block 0 writes at planted_bugs.cu:\d+, and thread \d+ of block 0 reads at planted_bugs",
    },
    "missing_syncwarp": {"plain": r"wrong result: -?nan", "races": r"missing_syncwarp.* nothing has written: thread"},
    "shuffle_as_fence": {"races": r"race: thread \d+ of block 0 writes at planted_bugs.cu:\d+, and thread \d+ of block 0 reads"},
    "partial_syncwarp": {"races": r"race: thread \d+ of block 0 writes"},
    "sum_across_blocks": {"races": r"race: thread (\d+) of block 0 writes .* thread \1 of block 1 \w+"},
    "sum_across_blocks_after_a_look": {"races": r"race: thread (\d+) of block 0 \w+ at .*, and thread \1 of block 1 adds"},
    "read_across_blocks": {"races": r"race: thread \d+ of block \d \w+ at planted_bugs.cu:.*, and thread \d+ of block \d"},
    "struct_copied_without_barrier": {"races": r"(race|nothing has written): thread"},
    "divergent_barrier": {"plain": r"divergent_barrier, block 0: thread 0 waits at __syncthreads .*:\d+\), but thread 1 waits"},
    "early_exit_before_barrier": {"plain": r"thread 0 waits at __syncthreads \(planted_bugs.cu:\d+\), but thread 200 has ended"},
    "early_exit_before_shuffle": {"plain": r"thread 0 waits at __shfl_sync .* with mask 0xffffffff, but thread 7 has ended"},
    "mask_without_the_caller": {"plain": r"thread \d+ waits at __syncwarp .* with mask 0x0000ffff, which leaves it out"},
    "mask_of_lanes_that_do_not_come": {"plain": r"thread \d+ waits at __shfl_sync .* mask 0xffffffff, but thread \d+ has ended"},
    "two_masks_in_one_call": {"plain": r"__shfl_sync .* mask 0xffffffff, but thread 3 waits .* mask 0x000000ff"},
    "shuffle_from_outside_the_mask": {"plain": r"reads lane \d+, which its mask leaves out, at __shfl_sync \(planted_bugs.cu:\d+\)"},
    "vote_meets_shuffle": {"plain": r"thread 0 waits at __shfl_sync .*, but thread 1 waits at __ballot_sync"},
    "warp_waits_at_barrier_and_shuffle": {"plain": r"waits at __syncwarp .*, but thread \d+ waits at __syncthreads"},
    "shared_memory_read_before_written": {"plain": r"wrong result: -?nan", "races": r"nothing has written: thread 0 "},
    "shared_count_read_before_written": {"races": r"nothing has written: thread 0 of block 0 reads at planted_bugs.cu:\d+"},
    "reuse_when_blocks_stride": {"races": r"race: thread \d+ of block 0 \w+ at planted_bugs.cu:\d+, and thread \d+ of block 0"},
    "too_much_shared_memory": {"plain": r"52000 bytes of shared memory, a GPU has 49152"},
}  # fmt: skip


@functools.cache
def program(build: str) -> str:
    kernel, sources = emulated.EMU / "planted_bugs.cu", emulated.BUILDS[build].sources
    return str(emulated.compile_sources(emulated.BUILDS[build], [kernel], sources, [], [], "planted_bugs"))


def run(build: str, *arguments: str, order: str = "forward") -> subprocess.CompletedProcess:
    if emulated.BUILDS[build].compiler() is None:
        pytest.skip(f"no C++ compiler ({', '.join(emulated.BUILDS[build].compilers)})")
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    env |= {"CLS2DET_EMULATOR_ORDER": order, "ASAN_OPTIONS": "detect_leaks=0"}
    if SMALL_GRID.intersection(arguments):
        env["CLS2DET_EMULATOR_BLOCKS"] = "1"
    return subprocess.run(
        [program(build), *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    )


def test_every_planted_bug_has_a_build_that_is_responsible_for_it() -> None:
    assert run("plain").stdout.split() == sorted(REPORTS)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("bug", "build"), [(bug, build) for bug, reports in REPORTS.items() for build in reports])
def test_bug_is_reported(bug: str, build: str, order: str) -> None:
    result = run(build, bug, "bug", order=order)
    assert result.returncode != 0, f"{build} did not notice {bug}"
    assert re.search(KINDS[build], result.stdout), result.stdout
    if order == "forward":  # in other orders other threads are named
        assert re.search(REPORTS[bug][build], result.stdout, re.DOTALL), result.stdout


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("build", emulated.BUILDS)
@pytest.mark.parametrize("bug", REPORTS)
def test_mended_kernel_is_clean(bug: str, build: str, order: str) -> None:
    result = run(build, bug, "clean", order=order)
    assert (result.returncode, result.stdout) == (0, "clean\n")
