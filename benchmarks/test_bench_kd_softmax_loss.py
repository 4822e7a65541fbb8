"""kd_softmax_loss against the reference and against the few lines with F.kl_div that a user would write."""

import pytest
import torch.nn.functional as F

from cls2det_ops import kd_softmax_loss
from harness import Workload, logits
from shapes import KD_SOFTMAX_LOSS

TEMPERATURE = 2.0


def workload(name: str, device: str) -> Workload:
    shape = KD_SOFTMAX_LOSS[name]
    return Workload(
        lambda **tensors: kd_softmax_loss(**tensors, temperature=TEMPERATURE, background="first"),
        logits(shape, shape["c"] + 1, device), ("student_logits",), {"F.kl_div": plain}, shape.get("compile", False),
    )  # fmt: skip


def plain(student_logits, teacher_logits, matched_idxs):
    """The teacher's softmax before the gather, once per ground truth."""
    student = F.log_softmax(student_logits / TEMPERATURE, dim=1)[:, 1:]
    teacher = F.softmax(teacher_logits / TEMPERATURE, dim=1)[matched_idxs]
    return TEMPERATURE**2 * F.kl_div(student, teacher, reduction="batchmean")


@pytest.mark.parametrize("shape", KD_SOFTMAX_LOSS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_kd_softmax_loss(bench, shape, backward):
    bench(workload, shape, backward)
