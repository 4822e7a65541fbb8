"""A detector as teacher: frozen, and run only as far as the distillers read its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.data.classes import overlooked, quoted
from cls2det.models.backbones import load_into_cache
from cls2det.models.students import load_student
from cls2det.models.students.hungarian import named_maps
from cls2det.models.taps import StudentOutputs, anchor_generator, body
from cls2det.teachers.normalisation import Renormalise

PREFIX = "torchvision:"
BACKGROUND, GAP = "__background__", "N/A"  # names of torchvision's labels that stand for no class
GRIDS = (SSD, RetinaNet, FCOS, FasterRCNN)  # have a ``taps.Grid``


class DetectorTeacher:
    """A trained detector, run on the student's input.

    It is not an ``nn.Module``, so that a training module that has it as an attribute does not take the frozen teacher for a
    part of itself: the teacher is not among its parameters, in its checkpoint, in DDP's buckets or in averaged weights.

    Args:
        detector: called like torchvision's
        classes: the student's classes, in order of label
        labels: the detector's own label of each of them; None for a class that it does not know
        known: names of all classes of the detector, for messages
    """

    def __init__(self, detector: nn.Module, classes: Sequence[str], labels: Sequence[int | None], known: Sequence[str] = ()):
        self.detector = detector.eval().requires_grad_(False)
        self.classes, self.labels, self.known = list(classes), list(labels), list(known)

    @classmethod
    def load(cls, source: str, classes: Sequence[str]) -> DetectorTeacher:
        """From weights.pt of ``cls2det train`` or ``distill``, or ``torchvision:NAME`` for torchvision's COCO weights.

        Raises:
            ValueError: something else at ``source``
            FileNotFoundError: nothing there
            ConnectionError: torchvision's weights cannot be fetched
        """
        if str(source).startswith(PREFIX):
            detector, names = _from_torchvision(str(source).removeprefix(PREFIX))
        else:
            student = load_student(source)
            detector, names = student.detector, [BACKGROUND, *student.classes]
        no_class = (BACKGROUND, GAP) if str(source).startswith(PREFIX) else ()
        label_of = {name: label for label, name in enumerate(names) if label and name not in no_class}
        return cls(detector, classes, [label_of.get(name) for name in classes], list(label_of))

    def __deepcopy__(self, _memo: dict[int, Any]) -> DetectorTeacher:
        return self

    def to(self, device: torch.device) -> DetectorTeacher:
        self.detector.to(device)
        return self

    def columns(self, method: str) -> list[int]:
        """Columns of its logits for the background and for the student's classes; ValueError if it lacks one of them."""
        unknown = [name for name, label in zip(self.classes, self.labels, strict=True) if label is None]
        if unknown:
            known = f" (it knows {quoted(self.known)})" if self.known else ""
            raise ValueError(
                f"{method} reads the detector teacher's scores, and it does not know {quoted(unknown)}{known}"
                f"{overlooked(unknown, self.known)}. Take a teacher of these classes, or methods that compare maps alone"
            )
        return [0, *(label for label in self.labels if label is not None)]


class TeacherOutputs:
    """The outputs of a detector teacher for one step's images; each is computed when it is first read, without gradient.

    Args:
        teacher: the detector teacher
        student_outputs: of the same step
        transform: the student's, which made the images
    """

    def __init__(self, teacher: DetectorTeacher, student_outputs: StudentOutputs, transform: GeneralizedRCNNTransform):
        self.detector, self._student_outputs, self._transform = teacher.detector, student_outputs, transform

    @cached_property
    @torch.no_grad()
    def features(self) -> dict[str, Tensor]:
        """The backbone's maps, by name: no head, no proposals, no NMS."""
        images = rescaled(self._student_outputs.images, self._transform, self.detector.get_submodule("transform"))
        return named_maps(_maps_of(self.detector)(images))

    @cached_property
    @torch.no_grad()
    def grid(self) -> tuple[Tensor, Tensor]:
        """Logits (B, A, columns) and regression (B, A, 4) at every anchor, as in ``taps.Grid``."""
        maps, shape = list(self.features.values()), (len(self._student_outputs.images), -1)
        if isinstance(self.detector, FasterRCNN):
            objectness, regression = concat_box_prediction_layers(*self.detector.rpn.head(maps))
            return objectness.view(*shape, 1), regression.view(*shape, 4)
        outputs = self.detector.get_submodule("head")(maps)
        return outputs["cls_logits"], outputs["bbox_regression"]

    @torch.no_grad()
    def regions(self, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (R, columns) and regression (R, 4 columns) of a Faster R-CNN's box head at the student's proposals."""
        heads: RoIHeads = self.detector.roi_heads
        pooled = heads.box_roi_pool(self.features, proposals, self._student_outputs.image_sizes)
        logits, regression = heads.box_predictor(heads.box_head(pooled))
        return logits, regression


def rescaled(images: Tensor, student: Any, teacher: Any) -> Tensor:
    """Images that the student's transform has normalised, as the teacher's transform would normalise them."""
    change = Renormalise(student.image_mean, student.image_std, teacher.image_mean, teacher.image_std)
    change.to(images.device)
    return change(images)


def map_channels(detector: nn.Module) -> list[int]:
    """Of each of a detector's maps, in their order."""
    return [feature.shape[1] for feature in _probe(detector, detector)]


def check_same_maps(method: str, student: nn.Module, teacher: nn.Module) -> list[tuple[int, int]]:
    """(student's, teacher's) channels of each map; ValueError if the maps differ in number or size."""
    student_maps, size = _probe(student, student), _probe_size(student)
    try:
        teacher_maps = _probe(teacher, student)
    except RuntimeError as error:  # too small for all its strides, say
        raise ValueError(f"{method}: the detector teacher does not take the student's images of {size}: {error}") from None
    sizes = [[tuple(feature.shape[2:]) for feature in maps] for maps in (student_maps, teacher_maps)]
    if sizes[0] != sizes[1]:
        texts = [", ".join(f"{height}x{width}" for height, width in maps) for maps in sizes]
        raise ValueError(
            f"{method} compares feature maps place by place: on one image the student has {texts[0]}, "
            f"the detector teacher {texts[1]}"
        )
    return [(feature.shape[1], target.shape[1]) for feature, target in zip(student_maps, teacher_maps, strict=True)]


def check_same_grid(method: str, student: nn.Module, teacher: nn.Module) -> list[tuple[int, int]]:
    """As ``check_same_maps``; ValueError too unless both are of one kind and predict at the same anchors."""
    kinds = [next((kind for kind in GRIDS if isinstance(detector, kind)), None) for detector in (student, teacher)]
    if kinds[0] is None or kinds[0] is not kinds[1]:
        names = [type(detector).__name__ for detector in (student, teacher)]
        raise ValueError(
            f"{method} compares predictions anchor by anchor: it fits two of {', '.join(kind.__name__ for kind in GRIDS)}; "
            f"the student is a {names[0]}, the detector teacher a {names[1]}"
        )
    channels = check_same_maps(method, student, teacher)
    anchors, teacher_anchors = (_probe_anchors(detector, student) for detector in (student, teacher))
    if anchors.shape != teacher_anchors.shape or not torch.allclose(anchors, teacher_anchors):
        raise ValueError(
            f"{method} compares predictions anchor by anchor: the student's {len(anchors)} and the detector teacher's "
            f"{len(teacher_anchors)} are not the same"
        )
    return channels


@torch.no_grad()
def _probe(detector: nn.Module, student: nn.Module) -> list[Tensor]:
    """The detector's maps of a black image of the student's fixed size, or of 256 by 256."""
    network = _maps_of(detector)
    training = network.training
    network.eval()  # no statistics move
    try:
        images = next(detector.parameters()).new_zeros(1, 3, *_probe_size(student))
        return list(named_maps(network(images)).values())
    finally:
        network.train(training)


def _maps_of(detector: nn.Module) -> nn.Module:
    if (network := body(detector)) is None:
        name = type(getattr(detector, "network", detector)).__name__
        raise ValueError(f"{name} has no backbone whose maps could be compared; take the classifier's terms")
    return network


def _probe_size(student: nn.Module) -> tuple[int, int]:
    transform: GeneralizedRCNNTransform = student.transform
    width, height = transform.fixed_size or (256, 256)
    return height, width


def _probe_anchors(detector: nn.Module, student: nn.Module) -> Tensor:
    size = _probe_size(student)
    images = ImageList(torch.zeros(1, 3, *size), [size])
    maps = [torch.zeros(feature.shape) for feature in _probe(detector, student)]  # which may be on the meta device
    generator = anchor_generator(detector)
    assert generator is not None  # of one of GRIDS
    anchors: list[Tensor] = generator(images, maps)
    return anchors[0]


def _from_torchvision(name: str) -> tuple[nn.Module, list[str]]:
    models = torchvision.models.list_models(module=torchvision.models.detection)
    if name not in models:
        raise ValueError(f"torchvision has no detector {name!r}; it has {', '.join(models)}")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        load_into_cache(weights)
        detector = torchvision.models.get_model(name, weights=weights, weights_backbone=None)
    except OSError as error:  # urllib's errors are
        raise ConnectionError(f"the COCO weights of {name} cannot be fetched from {weights.url}: {error}") from error
    return detector, list(weights.meta["categories"])
