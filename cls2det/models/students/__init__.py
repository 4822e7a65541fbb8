"""Students: detectors by name. ``build_student("fasterrcnn_qr50_fpn", classes=80, backbone_weights="auto")``.

``load_student`` reads what ``cls2det train`` and ``distill`` wrote. Beside the names of ``STUDENTS`` there are ``hf:FOLDER`` and
``hf:NAME``, detectors of Hugging Face transformers with their own weights (``hugging_face``).

All are called like torchvision's detectors. In training mode, ``model(images, targets)`` with a list of float images (3, H, W)
in [0, 1] and, of each, "boxes" (n, 4) xyxy in pixels and "labels" (n,) from 1, gives losses by name. In eval mode,
``model(images)`` gives of each image "boxes" xyxy in its pixels, "labels" and "scores". ``model.transform`` normalises and
resizes, ``model.backbone`` holds the body.

A student's parameters do not depend on its backbone's weights: what was trained from ImageNet weights loads into a student
that was built without. The students of the paper keep torchvision's normalisation, which belongs to the weights; the compact
ones take ``IMAGE_MEAN`` and ``IMAGE_STD``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models import (
    MobileNet_V2_Weights,
    MobileNet_V3_Large_Weights,
    ResNet50_Weights,
    VGG16_Weights,
    WeightsEnum,
)
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.models.anchors import Levels, set_anchors
from cls2det.models.backbones import IMAGE_MEAN, IMAGE_STD, RANDOM, CompactResNet, choose_weights, load_backbone
from cls2det.models.starts import source
from cls2det.models.students import dense, detr, faster_rcnn, hugging_face, rt_detr, ssd
from cls2det.models.students.resizing import Transform
from cls2det.models.students.ssd import ssd_compact
from cls2det.models.weights import check_fit, read_weights, write_weights

__all__ = [
    "IMAGE_MEAN",
    "IMAGE_STD",
    "STUDENTS",
    "CompactResNet",
    "Student",
    "TrainedStudent",
    "build_student",
    "head_of",
    "load_backbone",
    "load_student",
    "parameter_count",
    "save_student",
    "ssd_compact",
]


@dataclasses.dataclass(frozen=True)
class Student:
    """How to build a detector.

    Attributes:
        build: (foreground classes, image size, backbone's weights or None) to the detector
        size: of images, in pixels, if none is asked for: both sides, or the shorter one
        about: one line
        weights: torchvision's of the backbone; None where there are none
        fixed_size: whether it takes no other size
        head: "softmax" over the classes and the background, or a "sigmoid" for each class
    """

    build: Callable[[int, int, WeightsEnum | None], nn.Module]
    size: int
    about: str
    weights: WeightsEnum | None = None
    fixed_size: bool = False
    head: str = "softmax"


# what torchvision's own detectors are trained from
VGG16, RESNET50 = VGG16_Weights.IMAGENET1K_FEATURES, ResNet50_Weights.IMAGENET1K_V1
MOBILENET_V2 = MobileNet_V2_Weights.IMAGENET1K_V1
STUDENTS: dict[str, Student] = {
    "ssd_compact": Student(ssd.ssd_compact, 96, "SSD on a small ResNet, for two CPU cores"),
    "ssd300_vgg16": Student(ssd.ssd300_vgg16, 300, "SSD300, VGG-16", VGG16, fixed_size=True),
    "ssd512_vgg16": Student(ssd.ssd512_vgg16, 512, "SSD512, VGG-16", VGG16, fixed_size=True),
    "ssdlite320_mobilenet_v3_large": Student(
        ssd.ssdlite320_mobilenet_v3_large,
        320,
        "SSDLite, MobileNetV3",
        MobileNet_V3_Large_Weights.IMAGENET1K_V1,
        fixed_size=True,
    ),
    "ssdlite_mobilenet_v2": Student(
        ssd.ssdlite_mobilenet_v2, 224, "SSDLite on MobileNetV2, for few images and two CPU cores", MOBILENET_V2
    ),
    "ssd_mobilenet_v2_fpn": Student(
        ssd.ssd_mobilenet_v2_fpn, 224, "SSD on MobileNetV2 with a pyramid: to teach ssdlite_mobilenet_v2", MOBILENET_V2
    ),
    "fasterrcnn_compact": Student(faster_rcnn.fasterrcnn_compact, 96, "Faster R-CNN on the small ResNet"),
    "fasterrcnn_qr50_fpn": Student(faster_rcnn.fasterrcnn_qr50_fpn, 800, "Faster R-CNN, ResNet-50 with every width / 4"),
    "fasterrcnn_mobilenet_v2_fpn": Student(
        faster_rcnn.fasterrcnn_mobilenet_v2_fpn, 800, "Faster R-CNN, MobileNetV2", MOBILENET_V2
    ),
    "fasterrcnn_mobilenet_v2_small": Student(
        faster_rcnn.fasterrcnn_mobilenet_v2_small, 224, "Faster R-CNN, MobileNetV2, for two CPU cores", MOBILENET_V2
    ),
    "fasterrcnn_resnet50_fpn": Student(faster_rcnn.fasterrcnn_resnet50_fpn, 800, "Faster R-CNN, ResNet-50", RESNET50),
    "retinanet_compact": Student(dense.retinanet_compact, 96, "RetinaNet on the small ResNet", head="sigmoid"),
    "retinanet_resnet50_fpn": Student(dense.retinanet_resnet50_fpn, 800, "RetinaNet, ResNet-50", RESNET50, head="sigmoid"),
    "retinanet_mobilenet_v2_small": Student(
        dense.retinanet_mobilenet_v2_small, 224, "RetinaNet, MobileNetV2, for two CPU cores", MOBILENET_V2, head="sigmoid"
    ),
    "fcos_compact": Student(dense.fcos_compact, 96, "FCOS on the small ResNet", head="sigmoid"),
    "fcos_resnet50_fpn": Student(dense.fcos_resnet50_fpn, 800, "FCOS, ResNet-50", RESNET50, head="sigmoid"),
    "ssd_compact_wide": Student(partial(ssd.ssd_compact, width=32), 96, "ssd_compact with every width doubled: to teach it"),
    "fasterrcnn_compact_wide": Student(
        partial(faster_rcnn.fasterrcnn_compact, width=32), 96, "fasterrcnn_compact with every width doubled: to teach it"
    ),
    "retinanet_compact_wide": Student(
        partial(dense.retinanet_compact, width=32),
        96,
        "retinanet_compact with every width doubled: to teach it",
        head="sigmoid",
    ),
    "fcos_compact_wide": Student(
        partial(dense.fcos_compact, width=32), 96, "fcos_compact with every width doubled: to teach it", head="sigmoid"
    ),
    "detr_compact": Student(detr.detr_compact, 96, "DETR on the small ResNet"),
    "detr_resnet50": Student(detr.detr_resnet50, 800, "DETR, ResNet-50", RESNET50),
    "rtdetr_v2_compact": Student(rt_detr.rtdetr_v2_compact, 96, "RT-DETRv2 on the small ResNet", head="sigmoid"),
    "rtdetr_v2_r18": Student(rt_detr.rtdetr_v2_r18, 640, "RT-DETRv2-S, ResNet-18-vd", head="sigmoid"),
    "dfine_n": Student(rt_detr.dfine_n, 640, "D-FINE-N, HGNetv2-B0", head="sigmoid"),
}


def build_student(
    name: str,
    classes: int,
    image_size: int | None = None,
    backbone_weights: str | Path = "none",
    anchors: Levels | None = None,
) -> nn.Module:
    """A detector of ``classes`` foreground classes; its ``started_from`` says which weights the backbone has, or "random weights".

    Args:
        name: of ``STUDENTS``, or ``hf:`` and a folder or a name of huggingface.co
        classes: without the background
        image_size: what images are brought to, in pixels; None is the student's own
        backbone_weights: "none" (random), "auto" (torchvision's ImageNet weights where they can be fetched, with a warning
            where not), "imagenet" (an error where not), or a file with the state dict of the backbone's architecture; of an
            ``hf:`` student, the weights of the whole detector
        anchors: see ``models.anchors.set_anchors``; None is the student's own

    Raises:
        ValueError: an unknown name, a size or anchors that the student does not take, ImageNet weights that do not exist, a file
            with weights of another architecture
        ConnectionError: "imagenet" and the weights cannot be fetched
        FileNotFoundError: ``hf:`` and a folder without a detector
    """
    if hugging_face.is_name(name):
        return _with_own_transform(hugging_face.build(name, classes, _positive(image_size, name), str(backbone_weights)))
    student = find_student(name)
    size = student.size if image_size is None else image_size
    if student.fixed_size and size != student.size:
        raise ValueError(f"{name} takes images of size {student.size}, found size {size}; None is the student's own")
    _positive(size, name)
    weights = choose_weights(student.weights, backbone_weights, f"the backbone of {name}")
    detector = _with_own_transform(student.build(classes, size, weights))
    detector.started_from = source(weights) if weights else RANDOM  # type: ignore[assignment]
    if anchors is not None:
        set_anchors(detector, anchors)
    return detector


def head_of(name: str) -> str:
    """The head of a student, "softmax" or "sigmoid", before it is built. Raises as ``build_student``."""
    return hugging_face.describe(name)[1] if hugging_face.is_name(name) else find_student(name).head


def find_student(name: str) -> Student:
    """The entry of ``STUDENTS``; ValueError for a name that is not there."""
    if name not in STUDENTS:
        raise ValueError(f"no student {name!r}; there are {', '.join(STUDENTS)}, and hf:FOLDER for a detector of transformers")
    return STUDENTS[name]


def _positive(size: int | None, name: str) -> int | None:
    if size is not None and size <= 0:
        raise ValueError(f"the size of {name}'s images must be positive, or None for the student's own; found {size}")
    return size


def _with_own_transform(detector: nn.Module) -> nn.Module:
    transform: GeneralizedRCNNTransform = detector.transform
    detector.transform = Transform.of(transform)
    return detector


@dataclasses.dataclass(frozen=True)
class TrainedStudent:
    """A student from a weights.pt.

    Attributes:
        detector: in eval mode, on the CPU
        name: see ``build_student``
        classes: names of the classes, in order of label
        image_size: see ``build_student``
    """

    detector: nn.Module
    name: str
    classes: list[str]
    image_size: int | None

    @property
    def anchors(self) -> list[list[list[float]]] | None:
        """Of each map [width, height] in pixels of the input, where they are not the student's own."""
        return getattr(self.detector, "anchors", None)

    def untrained(self) -> nn.Module:
        """A detector of the same kind with random weights."""
        return _untrained(self.name, len(self.classes), self.image_size, _own_settings(self.detector))


def save_student(
    path: str | Path, detector: nn.Module, *, name: str, classes: Sequence[str], image_size: int | None = None
) -> None:
    """Write the weights of a student that ``build_student`` made with these arguments, and its anchors where it has others.

    Of an ``hf:`` student its configuration too, so that it is read without its folder.
    """
    settings: dict[str, Any] = {"name": name, "classes": list(classes), "image_size": image_size}
    settings |= _own_settings(detector)
    write_weights(path, "student", settings, detector.state_dict())


def load_student(path: str | Path) -> TrainedStudent:
    """What ``save_student`` wrote. Raises as ``models.weights.read_weights``, and ValueError for weights that do not fit."""
    saved = read_weights(path, "student")
    with check_fit(path):
        settings = dict(saved.settings)
        own = {name: settings.pop(name) for name in OWN_SETTINGS if name in settings}
        detector = _untrained(settings["name"], len(settings["classes"]), settings["image_size"], own)
        student = TrainedStudent(detector, **settings)
        student.detector.load_state_dict(saved.weights)
    student.detector.eval()
    return student


OWN_SETTINGS = ("description", "anchors", "max_image_side")  # of a detector, beside its name: in weights.pt where it has them


def _own_settings(detector: nn.Module) -> dict[str, Any]:
    values = {name: getattr(detector, name, None) for name in ("description", "anchors")}
    values["max_image_side"] = getattr(detector.transform, "max_image_side", None)
    return {name: value for name, value in values.items() if value}


def _untrained(name: str, classes: int, image_size: int | None, own: Mapping[str, Any]) -> nn.Module:
    if "description" in own:
        detector = _with_own_transform(hugging_face.rebuild(own["description"]))
    else:
        detector = build_student(name, classes, image_size, anchors=own.get("anchors"))
    reduce_larger(detector, own.get("max_image_side"))
    return detector


def reduce_larger(detector: nn.Module, max_image_side: int | None) -> None:
    """Let a student reduce larger pictures in eval mode, as its training did: see ``resizing.Transform``."""
    transform: Any = detector.transform
    transform.max_image_side = max_image_side


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
