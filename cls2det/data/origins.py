"""Where each box of a training item comes from: its annotation, and what augmentation has done to it.

A bank (``teachers.bank``) is read by this. Origins travel with a target as ``origins``, an array of the host's memory and no
tensor: nothing moves them to a GPU, where to read an annotation id would wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

ORIGIN = np.dtype([("annotation_id", "<i8"), ("draw", "<i8"), ("visible", "<f4"), ("mirrored", "?")])
VIEW_STREAM = 0x5EED  # keeps the draws of views apart from those of an augmentation with the same seed


def make_origins(
    annotation_ids: ArrayLike, mirrored: ArrayLike = False, visible: ArrayLike = 1.0, draws: ArrayLike = 0
) -> np.ndarray:
    """An array (n,) of ``ORIGIN``, for ``Positives.origins`` in a trainer of one's own.

    Args:
        annotation_ids: (n,), of COCO's annotation file
        mirrored: (n,) or one for all: whether the picture is mirrored, left to right
        visible: (n,) or one for all: the share of the annotated box's area that augmentation left in the picture
        draws: (n,) or one for all: random integers from 0, by which a bank chooses among its views
    """
    ids = np.asarray(annotation_ids, dtype=np.int64).reshape(-1)
    origins = np.empty(len(ids), ORIGIN)
    origins["annotation_id"], origins["draw"], origins["visible"], origins["mirrored"] = ids, draws, visible, mirrored
    return origins


def begin(target: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The target with the origins of its boxes in place of ``annotation_ids``; the draws are a function of the seed."""
    ids = target["annotation_ids"].numpy()
    draws = torch.randint(2**31, (len(ids),), generator=torch.Generator().manual_seed(seed ^ VIEW_STREAM << 16))
    others = {name: value for name, value in target.items() if name != "annotation_ids"}
    return {**others, "origins": make_origins(ids, draws=draws.numpy())}


def carried(target: Mapping[str, Any], rows: Tensor, *, mirrored: bool, visible: Tensor) -> dict[str, Any]:
    """What an augmentation adds to the target that it returns: {"origins": …}, or nothing where the target had none.

    Args:
        target: as it came in
        rows: (m,), the boxes that are kept, or a mask (n,) of them
        mirrored: whether the picture was mirrored
        visible: (m,), the share of each kept box's area that is left
    """
    if "origins" not in target:
        return {}
    origins = target["origins"][rows.numpy()]
    origins["mirrored"] ^= mirrored
    origins["visible"] *= visible.clamp(0, 1).numpy()
    return {"origins": origins}
