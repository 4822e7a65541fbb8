"""Outputs of more than 2^31 elements: the end of a huge call equals that of a small one.

Every row of the huge call is the same row again (stride 0), so only outputs take memory. On the CPU back end that memory is
real and the tests are marked slow; the emulator runs the first and last blocks of each grid only, on pages that nothing
else touches, and its sanitizer build checks the arithmetic of the indices on the way.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers import assert_close

ops = torch.ops.cls2det
MORE = 2**31 + 2**16


def normal(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(shape)


def same_rows(row: Tensor, count: int) -> Tensor:
    return row.expand(count, *row.shape)


def box_of(count: int, size: float) -> tuple[Tensor, Tensor]:
    box = torch.tensor([0.21, 0.17, 0.83, 0.91]) * size
    return same_rows(box, count).contiguous(), torch.zeros(count, dtype=torch.int64)


# Each: the outputs of a call of n rows. CALLS has the elements that one row of the largest output has.


def kd_softmax_loss(n: int) -> tuple[Tensor, ...]:
    match = torch.zeros(n, dtype=torch.int64)
    return ops.kd_softmax_loss(same_rows(normal(512), n), normal(1, 511), match, 2.0, 1, True)


def kd_sigmoid_loss(n: int) -> tuple[Tensor, ...]:
    match = torch.zeros(n, dtype=torch.int64)
    return ops.kd_sigmoid_loss(same_rows(normal(512), n), normal(1, 512), match, 2.0, 0, 0, True)


def scale_rows(n: int) -> tuple[Tensor, ...]:
    grads = torch.empty(n, 512)  # pages that nothing has touched take no memory
    grads[-1] = normal(512)
    return (ops.scale_rows(torch.full((n,), 3.0), grads, torch.empty(0)),)


def roi_crop(n: int) -> tuple[Tensor, ...]:
    return (ops.roi_crop(normal(1, 16, 5, 6), *box_of(n, 5), 64, 64, False, True),)


def roi_avg_pool(n: int) -> tuple[Tensor, ...]:
    return (ops.roi_avg_pool(normal(1, 64, 5, 6), *box_of(n, 5), 32, 32, 32, 32, 1.0, False, True),)


def roi_avg_pool_map_gradient(n: int) -> tuple[Tensor, ...]:
    """Rows are images; the box lies on the last one."""
    maps = same_rows(normal(1, 1, 1).expand(256, 64, 64), n)
    boxes, index = box_of(1, 64)
    grad, _ = ops.roi_avg_pool_backward(normal(1, 256, 4, 4), maps, boxes, index + n - 1, 4, 4, 1.0, False, True, True, False)
    return (grad,)


def matched_feature_loss(n: int) -> tuple[Tensor, ...]:
    features, match = same_rows(normal(64, 1, 1).expand(64, 32, 32), n), torch.zeros(n, dtype=torch.int64)
    return ops.matched_feature_loss(features, normal(1, 64, 32, 32), match, 32, 32, 1, 1.0, True)[1:]


def matched_feature_loss_backward(n: int) -> tuple[Tensor, ...]:
    features = same_rows(normal(64, 1, 1).expand(64, 32, 32), n)
    return (ops.matched_feature_loss_backward(torch.ones(n), same_rows(normal(64, 2, 2), n).contiguous(), features),)


def masked_feature_loss_backward(n: int) -> tuple[Tensor, ...]:
    maps = [same_rows(normal(2, 512, 8, 16)[i], n) for i in (0, 1)]
    return ops.masked_feature_loss_backward(torch.ones(n), *maps, None, None, True, False)[:1]


def attention_means_backward(n: int) -> tuple[Tensor, ...]:
    grads = [same_rows(normal(*shape), n) for shape in ((8, 16), (512,))]
    return (ops.attention_means_backward(*grads, same_rows(normal(512, 8, 16), n), True),)


def frozen_stem(n: int) -> tuple[Tensor, ...]:
    return ops.frozen_stem(same_rows(normal(1, 3, 3), n), normal(512, 1, 1, 1), normal(512), 1, 0, True)


def imitation_mask(n: int) -> tuple[Tensor, ...]:
    """Rows are images; the box lies on the last one, and every anchor on it."""
    (box, index), (anchors, _) = box_of(1, 5), box_of(2**16, 5)
    return (ops.imitation_mask(anchors, box, index + n - 1, n, [2**16], 0.5, 0),)


CALLS = {
    kd_softmax_loss: 512,
    kd_sigmoid_loss: 512,
    scale_rows: 512,
    roi_crop: 16 * 64 * 64,
    roi_avg_pool: 64 * 32 * 32,
    roi_avg_pool_map_gradient: 256 * 64 * 64,
    matched_feature_loss: 64 * 32 * 32,
    matched_feature_loss_backward: 64 * 32 * 32,
    masked_feature_loss_backward: 512 * 8 * 16,
    frozen_stem: 512 * 2 * 2,
    imitation_mask: 2**16,
    attention_means_backward: 512 * 8 * 16,
}


def last_values(backend, call, rows: int) -> list[Tensor]:
    """The last 16 values of each output's last row: no kernel leaves them to another block than its last two."""
    with backend.context(), torch.device(backend.device):
        return [output[-1].flatten()[-16:].clone() for output in call(rows)]


def check(backend, call, expected: list[Tensor]) -> None:
    for found, last in zip(last_values(backend, call, MORE // CALLS[call]), expected, strict=True):
        assert_close(found.float(), last.float())


def free_memory(device: str) -> int:
    """Bytes that can be had without swapping; 0 where the system does not say."""
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    try:
        return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) << 10
    except (OSError, IndexError):
        return 0


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_last_blocks_of_emulated_kernels(emulated_backend, call, monkeypatch):
    expected = last_values(emulated_backend, call, 2)
    monkeypatch.setenv("CLS2DET_EMULATOR_BLOCKS", "ends")
    check(emulated_backend, call, expected)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_all_rows(native_backend, call):
    needed, free = 2 * MORE * 4, free_memory(native_backend.device)
    if free < needed:
        pytest.skip(f"{needed >> 30} GiB of free memory are needed, {free >> 30} are there")
    check(native_backend, call, last_values(native_backend, call, 2))
