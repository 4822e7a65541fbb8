"""What a distiller does with a bank beside reading it: which boxes it serves, and whether a teacher beside it fits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from cls2det.models.positives import Positives
from cls2det.teachers.bank import AnyBank
from cls2det.teachers.network import BoxTeacher
from cls2det.teachers.reader import probe


def origins_of(positives: Positives) -> np.ndarray:
    """Which annotations the ground truths are; ValueError where that is not known."""
    if positives.origins is None:
        raise ValueError(
            "a bank is read by annotation id, and these positives have no origins: give the targets `origins`, or "
            "Positives(…, origins=make_origins(annotation_ids, …)) of cls2det.data.origins"
        )
    return positives.origins


def cut_boxes(positives: Positives, visible: float) -> Tensor:
    """Rows (n,) of the ground truths of which augmentation left a share below ``visible``; on the host: nothing waits for a GPU."""
    return torch.from_numpy(np.flatnonzero(origins_of(positives)["visible"] < visible))


def whole_boxes(count: int, cut: Tensor, device: torch.device) -> Tensor:
    """(count,): 0 at the rows ``cut``, 1 elsewhere."""
    return torch.ones(count, device=device).index_fill_(0, cut.to(device, non_blocking=True), 0.0)


@torch.no_grad()
def check_columns(reader: nn.Module, teacher: BoxTeacher, bank: AnyBank) -> None:
    """ValueError unless the teacher, which serves cut boxes, has the columns of the bank, which serves all others."""
    device = next((parameter.device for parameter in reader.parameters()), torch.device("cpu"))
    columns, expected = (
        reader(probe(teacher.crop_size, 1).to(device))["logits"].shape[1],
        len(bank.classes) + bank.has_background,
    )
    if columns != expected:
        raise ValueError(
            f"the teacher gives {columns} logits, and {bank.path} has {expected}: one of them has a column for the background. Take "
            "the teacher that the bank was made of"
        )
