"""The teacher: an image classifier trained on ground-truth crops.

Its crops come out of the augmented, resized and normalised input of the student, through ``roi_crop``. So a teacher trains on
the same COCO-format batches as a detector, and no folder of crops is ever made. ``training.classifier`` trains it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from cls2det.data.classes import class_order
from cls2det.data.images import to_float
from cls2det.models.backbones import build_classifier, has_background_column
from cls2det.models.last_layer import exchange_outputs
from cls2det.models.students import build_student
from cls2det.models.weights import check_fit, read_weights, write_weights
from cls2det.teachers.background import background_boxes
from cls2det.teachers.frozen import freeze
from cls2det_ops import roi_crop

PADDING = "border"  # of crops in the teacher's training, KD-cls and KD-loc alike
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]  # images, and the target of each
LOSSES = ("ce", "bce", "joint")


class GroundTruths(NamedTuple):
    """Objects of a detection batch in normalised images (B, 3, H, W).

    Attributes:
        images: (B, 3, H, W)
        boxes: (N, 4) xyxy in pixels of ``images``
        classes: (N,), from 0
        image_index: (N,)
        image_sizes: (height, width) of each image, without its padding
    """

    images: Tensor
    boxes: Tensor
    classes: Tensor
    image_index: Tensor
    image_sizes: list[tuple[int, int]]


class CropClassifier(nn.Module):
    """Classifier of ground-truth crops; column ``c`` of its logits is the class of label ``c + 1``.

    With ``background`` it has also learnt crops that show no object: where it is trained with a softmax, its last column is
    theirs; the sigmoids of a "bce" teacher are all to be low on them.

    Args:
        classes: names of the classes, in order of label
        architecture: "compact", or any classifier of torchvision
        width: channels of the first stage of a ResNet (64: as published)
        student: the detector whose resizing and normalisation the crops go through
        image_size: side that images are brought to; None is the student's own
        crop_size: side of the crops
        loss: that it is trained with: "ce" for students with a softmax, "bce" for sigmoids, "joint" for both (the paper's
            shared teacher)
        margin: crops are larger than the box by this share of its size, on each side
        backbone_weights: see ``backbones.build_classifier``
        background: whether it is trained on crops without an object too
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        architecture: str = "resnet18",
        width: int = 16,
        student: str = "ssd_compact",
        image_size: int | None = None,
        crop_size: int = 32,
        loss: str = "ce",
        margin: float = 0.0,
        backbone_weights: str = "none",
        background: bool = False,
    ):
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        if margin < 0 or crop_size < 1:
            raise ValueError(f"a teacher needs a crop_size from 1 and a margin from 0; got {crop_size} and {margin}")
        self.classes, self.architecture, self.width, self.student = list(classes), architecture, width, student
        self.image_size, self.crop_size, self.loss, self.margin = image_size, crop_size, loss, margin
        self.transform: GeneralizedRCNNTransform = build_student(student, len(self.classes), image_size).transform
        self.background = background
        columns = len(self.classes) + has_background_column(background, loss)
        self.network = build_classifier(architecture, columns, width, backbone_weights)

    @property
    def mean(self) -> Sequence[float]:
        """Of each channel of images in [0, 1], as the student's transform subtracts it."""
        mean: Sequence[float] = self.transform.image_mean
        return mean

    @property
    def std(self) -> Sequence[float]:
        """Of each channel, as the student's transform divides by it."""
        std: Sequence[float] = self.transform.image_std
        return std

    def save(self, path: str | Path) -> None:
        """Write a weights.pt, see ``models.weights``."""
        names = ("classes", "architecture", "width", "student", "image_size", "crop_size", "loss", "margin", "background")
        settings = {name: getattr(self, name) for name in names}
        write_weights(path, "crop_classifier", settings, self.network.state_dict())

    @classmethod
    def load(cls, path: str | Path) -> CropClassifier:
        """What ``save`` wrote, in eval mode, on the CPU.

        Raises:
            FileNotFoundError: nothing at ``path``
            ValueError: something else at ``path``, or weights that are missing, left over or of another shape
        """
        saved = read_weights(path, "crop_classifier")
        with check_fit(path):
            classifier = cls(**saved.settings)
            classifier.network.load_state_dict(saved.weights)
        return classifier.eval()

    def for_classes(self, classes: Sequence[str], of_classes: str = "the data") -> CropClassifier:
        """A teacher whose columns are ``classes``, in their order: itself, or a copy with the rows of its last layer exchanged.

        Args:
            classes: names in order of label
            of_classes: what they are the classes of, for the message

        Raises:
            ValueError: a name that only one side has
        """
        remedy = "Train the teacher on the same classes"
        order = class_order(classes, self.classes, of_classes, "the teacher", remedy)
        if order == sorted(order):
            return self
        teacher = copy.deepcopy(self)
        teacher.classes = list(classes)
        exchange_outputs(teacher.network, order)  # the background stays last
        return teacher

    def forward(self, crops: Tensor) -> Tensor:
        """Logits (N, C) of crops (N, 3, S, S) of normalised images; (N, C + 1) with a column for the background."""
        logits: Tensor = self.network(crops)
        return logits

    def crop(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        """Crops (N, 3, S, S) of ``boxes`` in normalised ``images``; gradient flows to the boxes."""
        return roi_crop(images, self.with_margin(boxes), image_index, self.crop_size, padding_mode=PADDING, clip=False)

    def with_margin(self, boxes: Tensor) -> Tensor:
        """The boxes that are cropped for ``boxes`` (N, 4)."""
        return enlarged(boxes, self.margin)

    def ground_truths(self, batch: Batch) -> GroundTruths:
        """Of a detection batch, in the student's input."""
        images, targets = self.transform(to_float(batch[0]), batch[1])
        boxes = torch.cat([target["boxes"] for target in targets])
        classes = torch.cat([target["labels"] for target in targets]) - 1
        counts = torch.tensor([len(target["boxes"]) for target in targets], device=boxes.device)
        image_index = torch.repeat_interleave(torch.arange(len(counts), device=boxes.device), counts)
        return GroundTruths(images.tensors, boxes, classes, image_index, images.image_sizes)

    def crops_of_batch(self, batch: Batch, *, background: bool = False) -> tuple[Tensor, Tensor]:
        """Ground-truth crops of a detection batch and their classes (label - 1).

        Args:
            background: add crops without an object, of class C; the same at every call
        """
        images, boxes, classes, image_index, sizes = self.ground_truths(batch)
        if background:
            spaces, space_index = background_boxes(boxes, image_index, sizes, torch.Generator().manual_seed(0))
            boxes, image_index = torch.cat([boxes, spaces]), torch.cat([image_index, space_index])
            classes = torch.cat([classes, classes.new_full((len(spaces),), len(self.classes))])
        return self.crop(images, boxes, image_index), classes

    def probabilities(self, logits: Tensor, sigmoid: bool | None = None) -> Tensor:
        """Softmax, or sigmoids, in float32: (N, C), with ``background`` (N, C + 1), whose last column is that of no class.

        Sigmoids have no such column: its probability is 1 minus the largest of theirs.

        Args:
            logits: as ``forward`` gives them
            sigmoid: None is as it was trained, and a softmax where it was trained for both
        """
        if not (self.loss == "bce" if sigmoid is None else sigmoid):
            return logits.float().softmax(1)
        scores = logits[:, : len(self.classes)].float().sigmoid()
        return torch.cat([scores, 1 - scores.amax(1, keepdim=True)], 1) if self.background else scores

    def reader(self, layers: Sequence[str], logits: bool, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Frozen network from crops to a dictionary: ``layers`` by name, and "logits" if asked; it runs nothing else.

        Batch norms are folded into their convolutions, and ``frozen.freeze`` does the rest. Names are those of torchvision's
        feature extraction: "maxpool" and "layer1" are the paper's l0 and l1 of a ResNet.

        Args:
            dtype: of everything but the ``frozen_stem``, which is all that the paper's KD-loc reads
        """
        network = copy.deepcopy(self.network).eval()
        names = get_graph_node_names(network)[1]
        if unknown := [layer for layer in layers if not any(name == layer or name.startswith(f"{layer}.") for name in names)]:
            raise ValueError(f"no layer {', '.join(unknown)} in {self.architecture}; there are {', '.join(names[1:])}")
        nodes = {layer: layer for layer in layers} | ({names[-1]: "logits"} if logits else {})
        return freeze(create_feature_extractor(fuse(network), nodes), dtype)


def enlarged(boxes: Tensor, margin: float) -> Tensor:
    """Boxes (N, 4) that are larger by the share ``margin`` of their size, on each side."""
    return boxes + margin * sides(boxes) * boxes.new_tensor([-1, -1, 1, 1]) if margin else boxes


def sides(boxes: Tensor) -> Tensor:
    """(N, 4) of boxes (N, 4): width, height, width, height."""
    return (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
