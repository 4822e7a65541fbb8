"""A detector as teacher: frozen, and run no further than the method that asks reads it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.models.detection.ssd import SSD

from cls2det.models.backbones import load_into_cache
from cls2det.models.taps import Seen, anchor_generator, body

PREFIX = "torchvision:"
GRIDS = (SSD, RetinaNet, FCOS, FasterRCNN)  # have a ``taps.Grid``


class DetectorTeacher:
    """A trained detector that looks at the student's input.

    Not an ``nn.Module`` on purpose, as ``ClassifierDistiller``: held by the training module, it is in neither its parameters
    nor its checkpoint.

    Args:
        detector: called like torchvision's
        classes: the student's classes, in order of label
        labels: the detector's own label of each of them; None for a class that it does not know
    """

    def __init__(self, detector: nn.Module, classes: Sequence[str], labels: Sequence[int | None]):
        self.detector = detector.eval().requires_grad_(False)
        self.classes, self.labels = list(classes), list(labels)

    @classmethod
    def load(cls, source: str, classes: Sequence[str]) -> DetectorTeacher:
        """From weights.pt of ``cls2det train`` or ``distill``, or ``torchvision:NAME`` for torchvision's COCO weights.

        Raises:
            ValueError: something else at ``source``
            FileNotFoundError: nothing there
            ConnectionError: torchvision's weights cannot be fetched
        """
        if str(source).startswith(PREFIX):
            detector, known = _from_torchvision(str(source).removeprefix(PREFIX))
        else:
            from cls2det.training.detector import DetectorTraining

            model = DetectorTraining.load(Path(source))
            detector, known = model.detector, ["__background__", *model.hparams["classes"]]
        return cls(detector, classes, [known.index(name) if name in known else None for name in classes])

    def __deepcopy__(self, _memo) -> DetectorTeacher:
        return self

    def to(self, device: torch.device) -> DetectorTeacher:
        self.detector.to(device)
        return self

    def columns(self, method: str) -> list[int]:
        """Columns of its logits for the background and for the student's classes; ValueError if it lacks one of them."""
        unknown = [name for name, label in zip(self.classes, self.labels, strict=True) if label is None]
        if unknown:
            raise ValueError(f"{method} reads the detector teacher's scores, and it does not know {', '.join(unknown)}")
        return [0, *self.labels]


class Taught:
    """What a teacher makes of one step's images; each part is computed when it is first read, without gradient.

    Args:
        teacher: the detector teacher
        seen: of the student
        transform: the student's, which made the images
    """

    def __init__(self, teacher: DetectorTeacher, seen: Seen, transform: nn.Module):
        self.detector, self._seen, self._transform = teacher.detector, seen, transform

    @cached_property
    @torch.no_grad()
    def features(self) -> dict[str, Tensor]:
        """The backbone's maps, by name: no head, no proposals, no NMS."""
        return dict(body(self.detector)(rescaled(self._seen.images, self._transform, self.detector.transform)))

    @cached_property
    @torch.no_grad()
    def grid(self) -> tuple[Tensor, Tensor]:
        """Logits (B, A, columns) and regression (B, A, 4) at every anchor, as in ``taps.Grid``."""
        maps, shape = list(self.features.values()), (len(self._seen.images), -1)
        if isinstance(self.detector, FasterRCNN):
            objectness, regression = concat_box_prediction_layers(*self.detector.rpn.head(maps))
            return objectness.view(*shape, 1), regression.view(*shape, 4)
        outputs = self.detector.head(maps)
        return outputs["cls_logits"], outputs["bbox_regression"]

    @torch.no_grad()
    def regions(self, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (R, columns) and regression (R, 4 columns) of a Faster R-CNN's box head at the student's proposals."""
        heads = self.detector.roi_heads
        pooled = heads.box_roi_pool(self.features, proposals, self._seen.image_sizes)
        return heads.box_predictor(heads.box_head(pooled))


def rescaled(images: Tensor, student: nn.Module, teacher: nn.Module) -> Tensor:
    """Images as the student's transform normalised them, to what the teacher's would give."""
    of = [images.new_tensor(getattr(each, name)) for each in (student, teacher) for name in ("image_mean", "image_std")]
    mean, std, other_mean, other_std = (values[:, None, None] for values in of)
    if torch.equal(mean, other_mean) and torch.equal(std, other_std):
        return images
    return (images * std + (mean - other_mean)) / other_std


def check_same_maps(method: str, student: nn.Module, teacher: nn.Module) -> list[tuple[int, int]]:
    """(student's, teacher's) channels of each map; ValueError if the maps differ in number or size."""
    ours, size = _probe(student, student), _probe_size(student)
    try:
        theirs = _probe(teacher, student)
    except RuntimeError as error:  # too small for all its strides, say
        raise ValueError(f"{method}: the detector teacher does not take the student's images of {size}: {error}") from None
    if [each.shape[2:] for each in ours] != [each.shape[2:] for each in theirs]:
        found = [", ".join(f"{each.shape[2]}x{each.shape[3]}" for each in maps) for maps in (ours, theirs)]
        raise ValueError(
            f"{method} compares feature maps place by place: on one image the student has {found[0]}, "
            f"the detector teacher {found[1]}"
        )
    return [(one.shape[1], other.shape[1]) for one, other in zip(ours, theirs, strict=True)]


def check_same_grid(method: str, student: nn.Module, teacher: nn.Module) -> list[tuple[int, int]]:
    """As ``check_same_maps``; ValueError too unless both are of one kind and predict at the same anchors."""
    kinds = [next((kind for kind in GRIDS if isinstance(each, kind)), None) for each in (student, teacher)]
    if kinds[0] is None or kinds[0] is not kinds[1]:
        names = [type(each).__name__ for each in (student, teacher)]
        raise ValueError(
            f"{method} compares predictions anchor by anchor: it fits two of {', '.join(kind.__name__ for kind in GRIDS)}; "
            f"the student is a {names[0]}, the detector teacher a {names[1]}"
        )
    channels = check_same_maps(method, student, teacher)
    ours, theirs = (_probe_anchors(each, student) for each in (student, teacher))
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs):
        raise ValueError(
            f"{method} compares predictions anchor by anchor: the student's {len(ours)} and the detector teacher's "
            f"{len(theirs)} are not the same"
        )
    return channels


@torch.no_grad()
def _probe(detector: nn.Module, student: nn.Module) -> list[Tensor]:
    """The detector's maps of an empty image of the student's fixed size, or of 256 by 256."""
    network = body(detector)
    training = network.training
    network.eval()  # no statistics move
    try:
        return list(network(next(detector.parameters()).new_zeros(1, 3, *_probe_size(student))).values())
    finally:
        network.train(training)


def _probe_size(student: nn.Module) -> tuple[int, int]:
    return tuple(student.transform.fixed_size or (256, 256))


def _probe_anchors(detector: nn.Module, student: nn.Module) -> Tensor:
    size = _probe_size(student)
    images = ImageList(torch.zeros(1, 3, *size), [size])
    return anchor_generator(detector)(images, _probe(detector, student))[0]


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
