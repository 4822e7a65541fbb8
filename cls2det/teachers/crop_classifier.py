"""The teacher: an image classifier trained on ground-truth crops.

Its crops come out of the augmented, resized and normalised input of the student, through ``roi_crop``. So a teacher trains on
the same COCO-format batches as a detector, and no folder of crops is ever made. ``training.classifier`` trains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.data.images import to_float
from cls2det.models.backbones import build_classifier, has_background_column
from cls2det.models.networks import ImageNetwork, is_foreign, load_network, rebuild_network
from cls2det.models.students import build_student, hugging_face
from cls2det.models.students.resizing import Transform, settings_of
from cls2det.models.weights import check_fit, read_weights, write_weights
from cls2det.teachers.background import background_boxes
from cls2det.teachers.class_map import ClassTable, class_map
from cls2det.teachers.crops import CropTeacher
from cls2det.teachers.normalisation import Renormalise

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


class CropClassifier(CropTeacher):
    """Classifier of ground-truth crops; column ``c`` of its logits is the class of label ``c + 1``.

    With ``background`` it has also learnt crops that show no object: where it is trained with a softmax, its last column is
    theirs; the sigmoids of a "bce" teacher are all to be low on them.

    Args:
        classes: names of the classes, in order of label
        architecture: "compact", any classifier of torchvision, "timm:NAME" or "hf:NAME"
        width: channels of the first stage of a ResNet (64: as published)
        student: the detector whose resizing and normalisation the crops go through
        image_size: side that images are brought to; None is the student's own
        crop_size: side of the crops
        loss: that it is trained with: "ce" for students with a softmax, "bce" for sigmoids, "joint" for both (the paper's
            shared teacher)
        margin: crops are larger than the box by this share of its size, on each side
        backbone_weights: a word or a path, see ``networks.load_network``
        background: whether it is trained on crops without an object too
        network: in place of a load by the name: a network that is loaded, or what a file says of a foreign one: "mean", "std" and
            "config". A network of timm or transformers gets crops in its own normalisation
        transform: settings of the student's resizing and normalisation, where a file has them: of an hf: student, whose folder is
            then not needed; None builds the student and takes its own

    Raises:
        ValueError, FileNotFoundError, ConnectionError, ImportError: as ``load_network``
    """

    transform: GeneralizedRCNNTransform
    scale: Tensor | None  # from the student's normalisation to the network's
    shift: Tensor | None

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
        network: ImageNetwork | dict[str, Any] | None = None,
        transform: dict[str, Any] | None = None,
    ):
        super().__init__(classes, crop_size, margin)
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        self.architecture, self.width, self.student, self.image_size, self.loss = (
            architecture,
            width,
            student,
            image_size,
            loss,
        )
        self.name = architecture
        if transform is None:
            self.transform = build_student(student, len(self.classes), image_size).transform
        else:
            self.transform = Transform(**transform)
        self.background = background
        columns = len(self.classes) + has_background_column(background, loss)
        self.foreign: dict[str, Any] | None = None  # of a network with a normalisation of its own
        if isinstance(network, dict):
            self.network, self.foreign = rebuild_network(architecture, columns, network["config"]), network
        elif network is not None or is_foreign(architecture):
            network = network or load_network(architecture, columns, backbone_weights, size=crop_size)
            self.network = network.module
            self.network.started_from = network.started_from  # type: ignore[assignment]
            self.foreign = {"mean": list(network.mean), "std": list(network.std), "config": network.config}
        elif backbone_weights in ("none", "auto") or (width != 64 and backbone_weights == "imagenet"):
            self.network = build_classifier(architecture, columns, width, str(backbone_weights))
        else:
            if width != 64:
                raise ValueError(f"there are weights of networks as published, of width 64; found width {width}")
            loaded = load_network(architecture, columns, backbone_weights)
            self.network = loaded.module
            self.network.started_from = loaded.started_from  # type: ignore[assignment]
        to_own = Renormalise(self.transform.image_mean, self.transform.image_std, self.mean, self.std)
        self.register_buffer("scale", to_own.scale, persistent=False)
        self.register_buffer("shift", to_own.shift, persistent=False)

    @property
    def is_foreign(self) -> bool:
        """Whether the network is one of timm or transformers, which has a normalisation of its own."""
        return self.foreign is not None

    @property
    def mean(self) -> Sequence[float]:
        """Of each channel of images in [0, 1], as the network wants it subtracted: the student's, or a foreign network's own."""
        mean: Sequence[float] = self.foreign["mean"] if self.foreign else self.transform.image_mean
        return mean

    @property
    def std(self) -> Sequence[float]:
        """Of each channel, as the network wants images divided by it."""
        std: Sequence[float] = self.foreign["std"] if self.foreign else self.transform.image_std
        return std

    def save(self, path: str | Path) -> None:
        """Write a weights.pt, see ``models.weights``."""
        names = ("classes", "architecture", "width", "student", "image_size", "crop_size", "loss", "margin", "background")
        settings = {name: getattr(self, name) for name in names}
        if self.foreign:
            settings["network"] = self.foreign
        if hugging_face.is_name(self.student):
            settings["transform"] = settings_of(self.transform)
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

    def for_classes(
        self,
        classes: Sequence[str],
        of_classes: str = "the data",
        mapping: ClassTable | None = None,
        *,
        head: str | None = None,
    ) -> CropClassifier:
        """A teacher whose columns are ``classes``, in their order: itself, or a copy that shares the network.

        Args:
            classes: names in order of label
            of_classes: what they are the classes of, for the message
            mapping: which of the teacher's classes stand for which of these; see ``teachers.class_map``. None takes the same
                names in any order
            head: of the student, "softmax" or "sigmoid": how probabilities that the mapping joins or shares are read. None is
                as it was trained, and a softmax where it was trained for both

        Raises:
            ValueError: a name that only one side has; as ``class_map``
        """
        has_column = has_background_column(self.background, self.loss)
        head = head or ("sigmoid" if self.loss == "bce" else "softmax")
        ours = class_map(classes, self.classes, mapping, head=head, background=has_column, of_wanted=of_classes)
        return self if ours is None else self._mapped(classes, ours)

    def own_crops(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        """Crops as ``forward`` takes them, of images in the student's normalisation."""
        crops = self.crop(images, boxes, image_index)
        return crops if self.scale is None or self.shift is None else crops * self.scale + self.shift

    def ground_truths(self, batch: Batch) -> GroundTruths:
        """Of a detection batch, in the student's input."""
        images, targets = self.transform(to_float(batch[0]), batch[1])
        boxes = torch.cat([target["boxes"] for target in targets])
        classes = torch.cat([target["labels"] for target in targets]) - 1
        counts = torch.tensor([len(target["boxes"]) for target in targets], device=boxes.device)
        image_index = torch.repeat_interleave(torch.arange(len(counts), device=boxes.device), counts)
        return GroundTruths(images.tensors, boxes, classes, image_index, images.image_sizes)

    def crops_of_batch(self, batch: Batch, *, background: bool = False) -> tuple[Tensor, Tensor]:
        """Ground-truth crops of a detection batch, as ``forward`` takes them, and their classes (label - 1).

        Args:
            background: add crops without an object, of class C; the same at every call
        """
        images, boxes, classes, image_index, sizes = self.ground_truths(batch)
        if background:
            spaces, space_index = background_boxes(boxes, image_index, sizes, torch.Generator().manual_seed(0))
            boxes, image_index = torch.cat([boxes, spaces]), torch.cat([image_index, space_index])
            classes = torch.cat([classes, classes.new_full((len(spaces),), len(self.classes))])
        return self.own_crops(images, boxes, image_index), classes

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
