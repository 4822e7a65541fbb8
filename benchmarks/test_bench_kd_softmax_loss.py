"""kd_softmax_loss against the reference, the few lines with F.kl_div that a user would write, and on a GPU a Triton kernel."""

from importlib.util import find_spec

import pytest
import torch.nn.functional as F

from cls2det_ops import kd_softmax_loss
from harness import Workload, logits
from shapes import Shape

TEMPERATURE = 2.0

SHAPES: dict[str, Shape] = {
    "K480 C80+1": {"k": 480, "g": 60, "c": 80},
    "K4096 C80+1": {"k": 4096, "g": 60, "c": 80, "compile": True},
    "K65536 C80+1": {"k": 65536, "g": 60, "c": 80, "compile": True},
    "K262144 C80+1": {"k": 262144, "g": 60, "c": 80},
    "small K16 C20+1": {"k": 16, "g": 4, "c": 20},
}


def workload(name: str, device: str) -> Workload:
    shape = SHAPES[name]
    baselines = {"F.kl_div": plain}
    if device == "cuda" and find_spec("triton"):
        from triton_kd import kd_loss

        baselines["triton"] = lambda **tensors: kd_loss(**tensors, temperature=TEMPERATURE)
    return Workload(
        lambda **tensors: kd_softmax_loss(**tensors, temperature=TEMPERATURE, background="first"),
        logits(shape, shape["c"] + 1, device), ("student_logits",), baselines, compile=shape.get("compile", False),
    )  # fmt: skip


def plain(student_logits, teacher_logits, matched_idxs):
    """The teacher's softmax before the gather, once per ground truth."""
    student = F.log_softmax(student_logits / TEMPERATURE, dim=1)[:, 1:]
    teacher = F.softmax(teacher_logits / TEMPERATURE, dim=1)[matched_idxs]
    return TEMPERATURE**2 * F.kl_div(student, teacher, reduction="batchmean")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_kd_softmax_loss(bench, shape, backward):
    bench(workload, shape, backward)
