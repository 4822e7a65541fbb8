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


# The outputs of a call of n rows. CALLS has the elements that one row of the largest output has.


def logits(n: int, classes: int) -> dict[str, Tensor]:
    tensors = {"student_logits": same_rows(normal(512), n), "teacher_logits": normal(1, classes)}
    return tensors | {"matched_idxs": torch.zeros(n, dtype=torch.int64)}


def kd_softmax_loss(n: int) -> tuple[Tensor, ...]:
    return ops.kd_softmax_loss(**logits(n, 511), temperature=2.0, background=1, need_grad=True, factor=1.0)


def kd_sigmoid_loss(n: int) -> tuple[Tensor, ...]:
    return ops.kd_sigmoid_loss(**logits(n, 512), temperature=2.0, mode=0, background=0, need_grad=True, factor=1.0)


def scale_rows(n: int) -> tuple[Tensor, ...]:
    grads = torch.empty(n, 512)  # pages that nothing has touched take no memory
    grads[-1] = normal(512)
    return (ops.scale_rows(grad_rows=torch.full((n,), 3.0), row_grads=grads, input=torch.empty(0), factor=1.0),)


def roi_crop(n: int) -> tuple[Tensor, ...]:
    boxes, index = box_of(n, 5)
    tensors = {"images": normal(1, 16, 5, 6), "boxes": boxes, "image_index": index}
    return (ops.roi_crop(**tensors, out_h=64, out_w=64, border=False, clip=True),)


POOLING = {"spatial_scale": 1.0, "border": False, "clip": True}


def roi_avg_pool(n: int) -> tuple[Tensor, ...]:
    boxes, index = box_of(n, 5)
    tensors = {"features": normal(1, 64, 5, 6), "boxes": boxes, "image_index": index}
    return (ops.roi_avg_pool(**tensors, out_h=32, out_w=32, samples_h=32, samples_w=32, **POOLING),)


def roi_avg_pool_map_gradient(n: int) -> tuple[Tensor, ...]:
    """Rows are images; the box lies on the last one."""
    maps = same_rows(normal(1, 1, 1).expand(256, 64, 64), n)
    boxes, index = box_of(1, 64)
    tensors = {"grad": normal(1, 256, 4, 4), "features": maps, "boxes": boxes, "image_index": index + n - 1}
    needs = {"need_features": True, "need_boxes": False}
    grad, _ = ops.roi_avg_pool_backward(**tensors, samples_h=4, samples_w=4, **POOLING, **needs)
    return (grad,)


def matched_feature_loss(n: int) -> tuple[Tensor, ...]:
    tensors = {"features": same_rows(normal(64, 1, 1).expand(64, 32, 32), n), "target_features": normal(1, 64, 32, 32)}
    tensors["matched_idxs"] = torch.zeros(n, dtype=torch.int64)
    return ops.matched_feature_loss(**tensors, out_h=32, out_w=32, loss=1, beta=1.0, need_grad=True, factor=1.0)[1:]


def matched_feature_loss_backward(n: int) -> tuple[Tensor, ...]:
    tensors = {"grad_rows": torch.ones(n), "pooled_grad": same_rows(normal(64, 2, 2), n).contiguous()}
    features = same_rows(normal(64, 1, 1).expand(64, 32, 32), n)
    return (ops.matched_feature_loss_backward(**tensors, features=features, factor=1.0),)


def masked_feature_loss_backward(n: int) -> tuple[Tensor, ...]:
    student, teacher = (same_rows(normal(2, 512, 8, 16)[i], n) for i in (0, 1))
    tensors = {"grad_rows": torch.ones(n), "student": student, "teacher": teacher, "mask": None, "channel_mask": None}
    return ops.masked_feature_loss_backward(**tensors, need_student=True, need_teacher=False)[:1]


def attention_means_backward(n: int) -> tuple[Tensor, ...]:
    grads = {"grad_spatial": same_rows(normal(8, 16), n), "grad_channel": same_rows(normal(512), n)}
    return (ops.attention_means_backward(**grads, features=same_rows(normal(512, 8, 16), n), absolute=True),)


def frozen_stem(n: int) -> tuple[Tensor, ...]:
    tensors = {"images": same_rows(normal(1, 3, 3), n), "weight": normal(512, 1, 1, 1), "bias": normal(512)}
    return ops.frozen_stem(**tensors, stride=1, padding=0, need_grad=True)


def imitation_mask(n: int) -> tuple[Tensor, ...]:
    """Rows are images; the box lies on the last one, and every anchor on it."""
    (box, index), (anchors, _) = box_of(1, 5), box_of(2**16, 5)
    tensors = {"anchors": anchors, "boxes": box, "image_index": index + n - 1}
    return (ops.imitation_mask(**tensors, images=n, level_sizes=[2**16], factor=0.5, assignment=0),)


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
    for result, last in zip(last_values(backend, call, MORE // CALLS[call]), expected, strict=True):
        assert_close(result.float(), last.float())


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
