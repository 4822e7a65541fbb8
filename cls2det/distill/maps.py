"""PKD, CWD and FGD: the teacher's feature maps, compared in three ways."""

from __future__ import annotations

import functools
import operator

import torch
from torch import Tensor, nn

from cls2det.models.taps import StudentOutputs
from cls2det.settings import CWDSettings, FGDSettings, PKDSettings
from cls2det.teachers.detector import DetectorTeacher, TeacherOutputs, check_same_maps
from cls2det_ops import masked_feature_loss
from cls2det_ops.losses import cwd_loss, fgd_feature_loss, fgd_masks, pkd_loss


def make_adapters(channels: list[tuple[int, int]]) -> nn.ModuleList:
    """A convolution of 1 x 1 for each map, where student's and teacher's numbers of channels differ."""
    return nn.ModuleList(
        nn.Identity() if student == teacher else nn.Conv2d(student, teacher, 1) for student, teacher in channels
    )


def pairs(
    adapters: nn.ModuleList, student_outputs: StudentOutputs, teacher_outputs: TeacherOutputs
) -> list[tuple[Tensor, Tensor]]:
    """The student's map, adapted, and the teacher's, of each level."""
    maps = zip(adapters, student_outputs.features.values(), teacher_outputs.features.values(), strict=True)
    return [(adapter(student_map), teacher_map) for adapter, student_map, teacher_map in maps]


class PKD(nn.Module):
    """The term, with an adapter for each map where the numbers of channels differ."""

    def __init__(self, settings: PKDSettings, student: nn.Module, teacher: DetectorTeacher):
        super().__init__()
        self.per_image = settings.per_image
        self.adapters = make_adapters(check_same_maps("pkd", student, teacher.detector))

    def forward(self, student_outputs: StudentOutputs, teacher_outputs: TeacherOutputs) -> dict[str, Tensor]:
        maps = pairs(self.adapters, student_outputs, teacher_outputs)
        return {"pkd": functools.reduce(operator.add, (pkd_loss(*pair, per_image=self.per_image) for pair in maps))}


class CWD(nn.Module):
    """The term, with an adapter for each map where the numbers of channels differ."""

    def __init__(self, settings: CWDSettings, student: nn.Module, teacher: DetectorTeacher):
        super().__init__()
        self.temperature = settings.temperature
        self.adapters = make_adapters(check_same_maps("cwd", student, teacher.detector))

    def forward(self, student_outputs: StudentOutputs, teacher_outputs: TeacherOutputs) -> dict[str, Tensor]:
        maps = pairs(self.adapters, student_outputs, teacher_outputs)
        return {"cwd": functools.reduce(operator.add, (cwd_loss(*pair, self.temperature) for pair in maps))}


class FGD(nn.Module):
    """The four terms, with the adapters and context blocks that they train."""

    def __init__(self, settings: FGDSettings, student: nn.Module, teacher: DetectorTeacher):
        super().__init__()
        channels = check_same_maps("fgd", student, teacher.detector)
        self.settings, self.adapters = settings, make_adapters(channels)
        self.student_context, self.teacher_context = (nn.ModuleList(Context(count) for _, count in channels) for _ in range(2))

    def forward(self, student_outputs: StudentOutputs, teacher_outputs: TeacherOutputs) -> dict[str, Tensor]:
        settings, targets = self.settings, student_outputs.positives
        levels = []
        height, width = student_outputs.images.shape[-2:]
        for level, (student_map, teacher_map) in enumerate(pairs(self.adapters, student_outputs, teacher_outputs)):
            rows, columns = student_map.shape[-2:]
            masks = fgd_masks(
                targets.target_boxes,
                targets.target_image_index,
                images=len(student_outputs.images),
                size=(rows, columns),
                stride=(height / rows, width / columns),
            )
            terms = fgd_feature_loss(
                student_map,
                teacher_map,
                *masks,
                temperature=settings.temperature,
                foreground_weight=settings.foreground_weight,
                background_weight=settings.background_weight,
                attention_weight=settings.attention_weight,
            )
            context = masked_feature_loss(
                self.student_context[level](student_map), self.teacher_context[level](teacher_map), normalizer=len(student_map)
            )
            levels.append((*terms, settings.context_weight * context))
        names = ("fgd_foreground", "fgd_background", "fgd_attention", "fgd_context")
        sums = (functools.reduce(operator.add, column) for column in zip(*levels, strict=True))
        return dict(zip(names, sums, strict=True))


class Context(nn.Module):
    """x + transform(sum over places of x weighted by a softmax): the global context block of the paper's third loss."""

    def __init__(self, channels: int):
        super().__init__()
        half = max(channels // 2, 1)
        self.mask = nn.Conv2d(channels, 1, 1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, half, 1), nn.LayerNorm([half, 1, 1]), nn.ReLU(), nn.Conv2d(half, channels, 1)
        )
        for parameter in self.transform[-1].parameters():
            nn.init.zeros_(parameter)  # the identity at first, as in the release

    def forward(self, x: Tensor) -> Tensor:
        weights = self.mask(x).flatten(1).softmax(1)
        context = torch.einsum("bcn,bn->bc", x.flatten(2), weights.to(x.dtype))
        change: Tensor = self.transform(context[:, :, None, None])
        return x + change
