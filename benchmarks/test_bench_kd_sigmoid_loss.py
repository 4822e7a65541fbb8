"""kd_sigmoid_loss against the reference and against plain binary cross entropy or normalised kl_div."""

import pytest
import torch
import torch.nn.functional as F

from cls2det_ops import kd_sigmoid_loss
from harness import Workload, logits
from shapes import Shape

TEMPERATURE = 2.0

SHAPES: dict[str, Shape] = {
    "bce K4096 C80": {"k": 4096, "g": 60, "c": 80, "mode": "bce", "compile": True},
    "bce K16384 C80": {"k": 16384, "g": 60, "c": 80, "mode": "bce"},
    "l1norm K4096 C80": {"k": 4096, "g": 60, "c": 80, "mode": "l1norm", "compile": True},
    "small bce K16 C20": {"k": 16, "g": 4, "c": 20, "mode": "bce"},
}


def workload(name: str, device: str) -> Workload:
    shape = SHAPES[name]
    mode = shape["mode"]
    baseline = {"F.binary_cross_entropy": plain_bce} if mode == "bce" else {"F.normalize + F.kl_div": plain_l1norm}
    return Workload(
        lambda **tensors: kd_sigmoid_loss(**tensors, temperature=TEMPERATURE, mode=mode),
        logits(shape, shape["c"], device), ("student_logits",), baseline, compile=shape.get("compile", False),
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


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_kd_sigmoid_loss(bench, shape, backward):
    bench(workload, shape, backward)
