"""Detector-to-detector distillation losses, one file for each method. They are functions of tensors; adapters are the caller's.

They use the package's operators where arithmetic takes the time, and PyTorch's where a library kernel does. Each docstring says
which, and whether the loss depends on how a batch is split over processes.

This holds for all of them. Tensors are float32, float64, float16 or bfloat16, with or without autocast. Sums and the result are
in float32 (float64 for float64). The teacher gets no gradient unless the docstring says so. Without anything to compare the loss
is a 0 that is attached to the graph. No gradient is NaN where a root or a distance is 0. An argument of wrong dtype, shape,
device or value range raises a TypeError or ValueError, which names the argument, what was expected and what was found.
"""

import warnings
from typing import Any

from .bckd import bckd_box_loss, bckd_loss
from .chen import chen_bounded_loss, chen_class_loss
from .cwd import cwd_loss
from .fgd import FGDLoss, fgd_feature_loss, fgd_masks
from .fgfi import fgfi_loss
from .fkd import fkd_attention_loss, fkd_masks, root_feature_loss
from .gid import gid_feature_loss, gid_relation_loss, gid_response_loss
from .harmony import harmony_feature_loss, harmony_score
from .pkd import pkd_loss
from .sinkhorn import sinkhorn_loss

__all__ = [
    "FGDLoss",
    "bckd_box_loss",
    "bckd_loss",
    "chen_bounded_loss",
    "chen_class_loss",
    "cwd_loss",
    "fgd_feature_loss",
    "fgd_masks",
    "fgfi_loss",
    "fkd_attention_loss",
    "fkd_masks",
    "gid_feature_loss",
    "gid_relation_loss",
    "gid_response_loss",
    "harmony_feature_loss",
    "harmony_score",
    "pkd_loss",
    "root_feature_loss",
    "sinkhorn_loss",
]

RENAMED = {
    "kd_bounded_loss": "chen_bounded_loss",
    "kd_weighted_loss": "chen_class_loss",
    "tbd_feature_loss": "harmony_feature_loss",
}


def __getattr__(name: str) -> Any:
    if name not in RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{__name__}.{name} is now {RENAMED[name]}", DeprecationWarning, stacklevel=2)
    return globals()[RENAMED[name]]
