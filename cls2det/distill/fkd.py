"""FKD: feature maps where attention is, attention itself, and non-local relations (Zhang & Ma, ICLR 2021)."""

from __future__ import annotations

import functools
import operator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cls2det.models.taps import StudentOutputs
from cls2det.settings import FKDSettings
from cls2det.teachers.detector import DetectorTeacher, TeacherOutputs, check_same_maps
from cls2det_ops import attention_means
from cls2det_ops.losses import fkd_attention_loss, fkd_masks, root_feature_loss

# The values of the authors' release.
PRESET_OPTIONS = ("attention_weight", "transfer_weight", "nonlocal_weight", "temperature", "channel_mask")
PRESETS = {"two-stage": (7e-5, 4e-3, 7e-5, 0.5, False), "one-stage": (4.2e-4, 2.4e-2, 4.2e-4, 0.1, True)}


class FKD(nn.Module):
    """The three terms, each summed over the maps, with the adapters and non-local blocks that they train."""

    def __init__(self, settings: FKDSettings, student: nn.Module, teacher: DetectorTeacher):
        super().__init__()
        options = [getattr(settings, name) for name in PRESET_OPTIONS]
        options = [
            preset if option is None else option for option, preset in zip(options, PRESETS[settings.preset], strict=True)
        ]
        *self.weights, self.temperature, self.channel_mask = options
        self.per_image = settings.per_image
        channels = check_same_maps("fkd", student, teacher.detector)
        self.levels = nn.ModuleList(_Level(*pair, first=level) for level, pair in enumerate(channels))

    def forward(self, student_outputs: StudentOutputs, teacher_outputs: TeacherOutputs) -> dict[str, Tensor]:
        terms = []
        maps = (student_outputs.features.values(), teacher_outputs.features.values())
        for level, student, teacher in zip(self.levels, *maps, strict=True):
            assert isinstance(level, _Level)
            spatial, channel = fkd_masks(student, teacher, self.temperature)
            masks = (spatial, channel if self.channel_mask else None)
            losses = (
                root_feature_loss(level.adapt(student), teacher, *masks, per_image=self.per_image),
                fkd_attention_loss(*level.attention(student, teacher), per_image=self.per_image),
                root_feature_loss(*level.relations(student, teacher), per_image=self.per_image),
            )
            terms.append(losses)
        sums = [functools.reduce(operator.add, column) for column in zip(*terms, strict=True)]
        names = ("fkd_attention", "fkd_transfer", "fkd_nonlocal")
        return {name: weight * term for name, weight, term in zip(names, self.weights, sums, strict=True)}


class _Level(nn.Module):
    """What is trained for one map. The release's sizes: inner channels 64, 64, 128 …; strides 8, 4, 2 … of the pooled map."""

    def __init__(self, student: int, teacher: int, first: int):
        super().__init__()
        inner, pool = (64 if first < 2 else 128), max(2, 8 >> first)
        self.adapt = nn.Conv2d(student, teacher, 1)
        self.adapt_spatial = nn.Conv2d(1, 1, 3, padding=1)
        self.adapt_channel = nn.Linear(student, teacher)
        self.student_relations = NonLocal(student, inner, pool)
        self.teacher_relations = NonLocal(teacher, inner, pool)
        self.adapt_relations = nn.Conv2d(student, teacher, 1)

    def attention(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        spatial, channel = attention_means(student, absolute=False)
        teacher_spatial, teacher_channel = attention_means(teacher, absolute=False)
        return self.adapt_spatial(spatial[:, None])[:, 0], teacher_spatial, self.adapt_channel(channel), teacher_channel

    def relations(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's block is trained too, as in the release."""
        return self.adapt_relations(self.student_relations(student)), self.teacher_relations(teacher)


class NonLocal(nn.Module):
    """x + norm(conv(y)), y = (theta phi^T / n) g: every place looks at n pooled places; dot products, no softmax.

    The norm starts at 0, and so the block as the identity. It computes in float32 under autocast too: products of features
    as large as VGG's overflow 16 bits.
    """

    def __init__(self, channels: int, inner: int, pool: int):
        super().__init__()
        inner = min(inner, max(channels // 2, 1))
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out, self.norm, self.pool = nn.Conv2d(inner, channels, 1), nn.BatchNorm2d(channels), pool
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x, pool = x.float(), min(self.pool, *x.shape[-2:])
            phi, g = (F.max_pool2d(conv(x), pool).flatten(2) for conv in (self.phi, self.g))
            # (phi g^T) first: its size does not grow with the map's
            y = (g @ phi.mT / phi.shape[2]) @ self.theta(x).flatten(2)
            return x + self._normalised(self.out(y.unflatten(2, x.shape[-2:])))

    def _normalised(self, y: Tensor) -> Tensor:
        if self.norm.training and y[:, 0].numel() == 1:  # one value per channel (SSD's last map, one image) has no statistics
            norm = self.norm
            return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        normalised: Tensor = self.norm(y)
        return normalised
