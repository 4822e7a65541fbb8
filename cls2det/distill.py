"""The two distillation terms of a classification teacher (Guo, Alvarez, Salzmann, NeurIPS 2021), on a detector's positives.

KD-cls (eq. 1-7): the student's class distribution at a positive follows the teacher's on the crop of its ground truth.
KD-loc (eq. 8-11): the crop of the predicted box looks, to the teacher's frozen stem and in its pixels, like the crop of the
ground truth. The gradient flows through ``roi_crop`` to the box and to nothing else.

Two choices differ from the paper, which clamps boxes to the image and pads with zeros: here, and in the teacher's training, boxes
are not clamped and crops repeat the border, so that a box that leaves the image still feels a pull back.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from cls2det.taps import Positives
from cls2det.teacher import PADDING, CropClassifier
from cls2det_ops import kd_sigmoid_loss, kd_softmax_loss, matched_feature_loss, roi_feature_loss


@dataclasses.dataclass(frozen=True)
class DistillSettings:
    """Weights of the terms and what they compare. A weight of 0 leaves a term out.

    Args:
        cls_weight: weight of KD-cls
        loc_weight: weight of KD-loc; tied to the scale of the normalised input
        temperature: of KD-cls
        pixel_pool: pixels are pooled to this square before they are compared
        stem_pool: stem features are pooled to this square before they are compared
        most_positives: KD-loc looks at no more positives per step
        one_hot: control: the true class as a one-hot distribution in place of the teacher's
    """

    cls_weight: float = 0.4
    loc_weight: float = 2.0
    temperature: float = 2.0
    pixel_pool: int = 4
    stem_pool: int = 8
    most_positives: int = 128
    one_hot: bool = False


class ClassifierDistiller:
    """``distiller(positives)`` gives the weighted terms by name.

    Not an ``nn.Module`` on purpose: held by a LightningModule, the teacher is in neither its parameters nor its checkpoint.
    """

    def __init__(self, teacher: CropClassifier, settings: DistillSettings = DistillSettings()):
        self.teacher = teacher.eval().requires_grad_(False)
        self.stem = teacher.stem() if settings.loc_weight else None
        self.settings = settings

    def check(self, classes: list[str], transform) -> None:
        """Raise unless the teacher knows these classes, in this order, on inputs normalised like the student's."""
        if list(classes) != list(self.teacher.classes):
            teacher_only = [name for name in self.teacher.classes if name not in classes]
            data_only = [name for name in classes if name not in self.teacher.classes]
            raise ValueError(
                f"the teacher knows {len(self.teacher.classes)} classes, the data has {len(classes)}: "
                f"only the teacher knows {teacher_only}, only the data has {data_only}"
                + ("" if teacher_only or data_only else "; the order differs")
            )
        for name in ("image_mean", "image_std"):
            students, teachers = list(getattr(transform, name)), list(getattr(self.teacher.transform, name))
            if students != teachers:
                raise ValueError(f"{name} is {students} in the student and {teachers} in the teacher; crops must look alike")

    def to(self, device: torch.device) -> ClassifierDistiller:
        self.teacher.to(device)
        if self.stem is not None:
            self.stem.to(device)
        return self

    def __call__(self, positives: Positives) -> dict[str, Tensor]:
        settings, terms = self.settings, {}
        with torch.no_grad():  # once per ground truth, for both terms
            target_crops = self.teacher.crop(positives.images, positives.target_boxes, positives.target_image_index)
        if settings.cls_weight:
            terms["kd_cls"] = settings.cls_weight * self._classification(positives, target_crops)
        if settings.loc_weight:
            terms["kd_loc"] = settings.loc_weight * self._localisation(
                positives.thinned(settings.most_positives), target_crops
            )
        return terms

    def _classification(self, positives: Positives, target_crops: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = (
                self.teacher(target_crops) if len(target_crops) else target_crops.new_zeros(0, len(self.teacher.classes))
            )
        if self.settings.one_hot:
            truth = torch.arange(teacher_logits.shape[1], device=teacher_logits.device) == positives.target_labels[:, None] - 1
            teacher_logits = torch.zeros_like(teacher_logits).masked_fill(~truth, -torch.inf)
        if positives.background == "none":  # RetinaNet: sigmoids, column = label, column 0 unused
            return kd_sigmoid_loss(
                positives.logits, teacher_logits, positives.matched_idxs, self.settings.temperature, background="first"
            )
        return kd_softmax_loss(
            positives.logits,
            teacher_logits,
            positives.matched_idxs,
            self.settings.temperature,
            background=positives.background,
        )

    def _localisation(self, positives: Positives, target_crops: Tensor) -> Tensor:
        settings, size = self.settings, self.teacher.crop_size
        pixels = roi_feature_loss(
            positives.images,
            positives.boxes,
            positives.image_index,
            positives.target_boxes,
            positives.target_image_index,
            positives.matched_idxs,
            settings.pixel_pool,
            size,
            padding_mode=PADDING,
            clip=False,
        )
        with torch.no_grad():
            target_features = self.stem(target_crops)
        features = self.stem(self.teacher.crop(positives.images, positives.boxes, positives.image_index))
        return pixels + matched_feature_loss(features, target_features, positives.matched_idxs, settings.stem_pool)
