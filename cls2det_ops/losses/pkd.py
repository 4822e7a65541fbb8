"""PKD (Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient", NeurIPS 2022)."""

from __future__ import annotations

from torch import Tensor

from .. import _checks as check
from ._common import pair


def pkd_loss(student: Tensor, teacher: Tensor, *, per_image: bool = False) -> Tensor:
    r"""Half the mean squared difference of maps that are normalised by channel: :math:`1 - \rho`, with Pearson's coefficient.

    .. math:: L = \tfrac{1}{2} \, mean_{bcyx}
              \Big(\frac{S - \mu_c(S)}{\sigma_c(S) + \epsilon} - \frac{T - \mu_c(T)}{\sigma_c(T) + \epsilon}\Big)^2

    Mean and deviation of a channel are over the batch and all places, as in the release (whose deviation divides by one less
    than their number), so that the loss **depends on how a batch is split**; with ``per_image`` they are over the places of
    each image, and it does not. Plain PyTorch: some reductions and an element-wise pass.

    Args:
        student, teacher: (B, C, H, W), the student's adapted.
        per_image: see above.

    Returns:
        A scalar. Gradients flow to ``student``, through its mean and deviation.
    """
    name = "pkd_loss"
    check.feature_map(name, "student", student)
    check.flag(name, "per_image", per_image)
    student, teacher = pair(name, student, teacher, ("B", "C", "H", "W"))
    if not student.numel():
        return 0.0 * student.sum()
    student_maps, teacher_maps = (_normalised(features, (2, 3) if per_image else (0, 2, 3)) for features in (student, teacher))
    return (student_maps - teacher_maps).square().mean() / 2


def _normalised(features: Tensor, axes: tuple[int, ...]) -> Tensor:
    centred = features - features.mean(axes, keepdim=True)
    # 1e-12 keeps the gradient of the root finite in a channel without variation
    variance = centred.square().mean(axes, keepdim=True)
    return centred / ((variance + 1e-12).sqrt() + 1e-6)
