"""kd_softmax_loss against the reference, the few lines with F.kl_div that a user would write, and on a GPU a Triton kernel."""

from importlib.util import find_spec

import pytest
import torch.nn.functional as F

from cls2det_ops import kd_softmax_loss
from harness import Workload, logits
from shapes import KD_SOFTMAX_LOSS

TEMPERATURE = 2.0


def workload(name: str, device: str) -> Workload:
    shape = KD_SOFTMAX_LOSS[name]
    baselines = {"F.kl_div": plain}
    if device == "cuda" and find_spec("triton"):
        from triton_kd import kd_loss

        baselines["triton"] = lambda **tensors: kd_loss(**tensors, temperature=TEMPERATURE)
    return Workload(
        lambda **tensors: kd_softmax_loss(**tensors, temperature=TEMPERATURE, background="first"),
        logits(shape, shape["c"] + 1, device), ("student_logits",), baselines, shape.get("compile", False),
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
