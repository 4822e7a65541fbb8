"""kd_sigmoid_loss against the reference and against plain binary cross entropy or normalised kl_div."""

import pytest
import torch
import torch.nn.functional as F

from cls2det_ops import kd_sigmoid_loss
from harness import Workload, logits
from shapes import KD_SIGMOID_LOSS

TEMPERATURE = 2.0


def workload(name: str, device: str) -> Workload:
    shape = KD_SIGMOID_LOSS[name]
    mode = shape["mode"]
    baseline = {"F.binary_cross_entropy": plain_bce} if mode == "bce" else {"F.normalize + F.kl_div": plain_l1norm}
    return Workload(
        lambda **tensors: kd_sigmoid_loss(**tensors, temperature=TEMPERATURE, mode=mode),
        logits(shape, shape["c"], device), ("student_logits",), baseline, shape.get("compile", False),
    )  # fmt: skip


def plain_bce(student_logits, teacher_logits, matched_idxs):
    teacher = torch.sigmoid(teacher_logits / TEMPERATURE)
    entropy = F.binary_cross_entropy(teacher, teacher, reduction="none").mean(1)
    cross = F.binary_cross_entropy_with_logits(student_logits / TEMPERATURE, teacher[matched_idxs])
    return TEMPERATURE**2 * (cross - entropy[matched_idxs].mean())


def plain_l1norm(student_logits, teacher_logits, matched_idxs):
    student = F.normalize(torch.sigmoid(student_logits / TEMPERATURE), p=1, dim=1)
    teacher = F.normalize(torch.sigmoid(teacher_logits / TEMPERATURE), p=1, dim=1)[matched_idxs]
    return TEMPERATURE**2 * F.kl_div(student.log(), teacher, reduction="batchmean")


@pytest.mark.parametrize("shape", KD_SIGMOID_LOSS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_kd_sigmoid_loss(bench, shape, backward):
    bench(workload, shape, backward)
