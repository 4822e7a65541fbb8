"""Whether teacher and student see things of one size: warnings before a distillation."""

from __future__ import annotations

import warnings

from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.data.dataset import DetectionData
from cls2det.data.overview import object_sizes, shares_below
from cls2det.models.anchor_fit import FEW, input_boxes
from cls2det.models.students import parameter_count
from cls2det.models.zero_shot import PREFIX as ZERO_SHOT
from cls2det.teachers.crop_classifier import CropClassifier

FAR = 2.0  # times larger; the paper's teacher of 300 pixels serves an SSD of 512
ENLARGED = 4.0  # times; the paper's crops of 112 pixels show objects of 30


def compare_sizes(
    student: nn.Module, data: DetectionData, classifier: CropClassifier | None, detector_teacher: nn.Module | None
) -> None:
    """Warn of a classifier whose images or crops are of a far other size, and of a detector teacher with fewer weights."""
    transform: GeneralizedRCNNTransform = student.transform
    if classifier is not None:
        then, now = _side(classifier.transform), _side(transform)
        if max(then, now) > FAR * min(then, now):
            warnings.warn(
                f"the teacher was trained on crops of images of {then} pixels, and the student's have {now}: objects look blurred to "
                f"it, or sharper than it knows. Train it with --image-size {now}",
                stacklevel=3,
            )
        is_trained = not classifier.architecture.startswith(ZERO_SHOT)
        remedy = "Train it with a --crop-size" if is_trained else "Give a --teacher-crop-size"
        boxes = input_boxes(data, transform)
        sizes = shares_below(object_sizes(boxes))
        if sizes and len(boxes) >= FEW and not sizes["5 %"] / FAR <= classifier.crop_size <= ENLARGED * sizes["95 %"]:
            warnings.warn(
                f"the teacher takes crops of {classifier.crop_size} pixels, and 90 % of the objects have {sizes['5 %']:.0f} to "
                f"{sizes['95 %']:.0f} in the student's input: it looks at each far enlarged, or far reduced. {remedy} near "
                f"{sizes['50 %']:.0f}",
                stacklevel=3,
            )
    if detector_teacher is not None and parameter_count(detector_teacher) < parameter_count(student):
        warnings.warn(
            f"the detector teacher has {parameter_count(detector_teacher)} parameters, the student {parameter_count(student)}: "
            "a teacher is expected to be the larger one",
            stacklevel=3,
        )


def _side(transform: GeneralizedRCNNTransform) -> int:
    return int((transform.fixed_size or transform.min_size)[0])
