"""Fused distillation losses for object detectors: box-wise feature pooling, feature comparison and temperature KL."""

from ._checks import debug_values
from ._library import use_backend
from ._version import __version__
from .explain import explain
from .ops.attention_means import attention_means
from .ops.frozen_stem import frozen_stem
from .ops.imitation_mask import imitation_mask
from .ops.kd_sigmoid_loss import kd_sigmoid_loss
from .ops.kd_softmax_loss import kd_softmax_loss
from .ops.masked_feature_loss import masked_feature_loss
from .ops.matched_feature_loss import matched_feature_loss
from .ops.roi_avg_pool import roi_avg_pool
from .ops.roi_crop import roi_crop
from .ops.roi_feature_loss import RoIMap, roi_feature_loss
from .ops.roi_kd_loss import RoIKDLoss, roi_kd_loss

__all__ = [
    "RoIKDLoss",
    "RoIMap",
    "__version__",
    "attention_means",
    "debug_values",
    "explain",
    "frozen_stem",
    "imitation_mask",
    "kd_sigmoid_loss",
    "kd_softmax_loss",
    "masked_feature_loss",
    "matched_feature_loss",
    "roi_avg_pool",
    "roi_crop",
    "roi_feature_loss",
    "roi_kd_loss",
    "use_backend",
]
