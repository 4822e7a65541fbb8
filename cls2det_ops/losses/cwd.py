"""CWD (Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.kd_softmax_loss import kd_softmax_loss


def cwd_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Where each channel looks: divergence of its softmax over places.

    .. math:: L = \frac{T^2}{B C} \sum_{b,c} KL\big(softmax_{yx}(T_{bc} / T) \,\|\, softmax_{yx}(S_{bc} / T)\big)

    The paper's, which divides by C, and the mean over images. It is :func:`kd_softmax_loss` with a row for each channel of each
    image.

    Args:
        student, teacher: (B, C, H, W), the student's adapted.
        temperature: T > 0.

    Returns:
        A scalar. Gradients flow to ``student``. It does not depend on how a batch is split into equal shares.
    """
    name = "cwd_loss"
    check.feature_map(name, "student", student)
    check.floating(name, "teacher", teacher, tuple(student.shape))
    rows = student.shape[0] * student.shape[1]
    match = torch.arange(rows, device=student.device)
    student, teacher = (features.flatten(0, 1).flatten(1) for features in (student, teacher))
    return kd_softmax_loss(student, teacher, match, temperature, "none")
