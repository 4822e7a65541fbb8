"""The teacher: an image classifier trained on ground-truth crops.

It sees what the student sees: crops come out of the augmented, resized, normalised input of that detector, through ``roi_crop``.
So a teacher trains on the same COCO-format batches as a detector, and no folder of crops is ever made.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from cls2det.models.backbones import build_classifier
from cls2det.models.students import build_student
from cls2det.teachers.frozen import freeze
from cls2det.training.fit import SavedModule, to_float
from cls2det_ops import roi_crop

PADDING = "border"  # crops of teacher training, KD-cls and KD-loc alike
LOSSES = ("ce", "bce", "joint")


class CropClassifier(SavedModule):
    """Classifier of ground-truth crops; column ``c`` of its logits is the class of label ``c + 1``.

    Args:
        classes: names of the classes, in order of label
        architecture: "compact", or any classifier of torchvision
        width: channels of the first stage of a ResNet (64: as published)
        student: the detector whose resizing and normalisation the crops go through
        image_size: side that images are brought to; 0: the student's own
        crop_size: side of the crops
        loss: "ce" for students with a softmax, "bce" for sigmoids, "joint" for both (the paper's shared teacher)
        margin: crops are larger than the box by this share of its size, on each side
        min_size: boxes with a shorter side, in input pixels, are left out of the training
        jitter: training boxes are moved by up to this share of their size
        label_smoothing: of "ce"
        backbone_weights: see ``backbones.build_classifier``; what was saved loads with "none"
        optim: ``Optim`` as a dictionary
    """

    def __init__(
        self,
        classes: list[str],
        architecture: str = "resnet18",
        width: int = 16,
        student: str = "ssd_compact",
        image_size: int = 0,
        crop_size: int = 32,
        loss: str = "ce",
        margin: float = 0.0,
        min_size: float = 0.0,
        jitter: float = 0.05,
        label_smoothing: float = 0.05,
        backbone_weights: str = "none",
        optim: dict | None = None,
    ):
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        if not 0 <= label_smoothing < 1 or min(margin, min_size, jitter) < 0 or crop_size < 1:
            raise ValueError(
                "a teacher wants label_smoothing in [0, 1), crop_size from 1, and margin, min_size and jitter from 0; "
                f"got {label_smoothing}, {crop_size}, {margin}, {min_size} and {jitter}"
            )
        self.save_hyperparameters(ignore=["backbone_weights"])
        self.transform = build_student(student, len(classes), image_size).transform
        self.network = build_classifier(architecture, len(classes), width, backbone_weights)

    @property
    def classes(self) -> list[str]:
        return self.hparams["classes"]

    @property
    def crop_size(self) -> int:
        return self.hparams["crop_size"]

    def forward(self, crops: Tensor) -> Tensor:
        """Logits (N, C) of crops (N, 3, S, S) of normalised images."""
        return self.network(crops)

    def crop(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        """Crops (N, 3, S, S) of ``boxes`` in normalised ``images``; gradient flows to the boxes."""
        return roi_crop(images, self.with_margin(boxes), image_index, self.crop_size, padding_mode=PADDING, clip=False)

    def with_margin(self, boxes: Tensor) -> Tensor:
        """What is cropped for ``boxes``."""
        if not self.hparams["margin"]:
            return boxes
        return boxes + self.hparams["margin"] * _sides(boxes) * boxes.new_tensor([-1, -1, 1, 1])

    def crops_of_batch(self, batch: tuple[list, list]) -> tuple[Tensor, Tensor]:
        """Ground-truth crops of a detection batch and their classes (label - 1)."""
        images, targets = self.transform(to_float(batch[0]), batch[1])
        boxes = torch.cat([target["boxes"] for target in targets])
        classes = torch.cat([target["labels"] for target in targets]) - 1
        counts = torch.tensor([len(target["boxes"]) for target in targets], device=boxes.device)
        image_index = torch.repeat_interleave(torch.arange(len(counts), device=boxes.device), counts)
        if self.training:
            large = _sides(boxes).amin(1) >= self.hparams["min_size"]
            boxes, classes, image_index = boxes[large], classes[large], image_index[large]
            boxes = boxes + _sides(boxes) * self.hparams["jitter"] * (2 * torch.rand_like(boxes) - 1)
        return self.crop(images.tensors, boxes, image_index), classes

    def training_step(self, batch: tuple[list, list], _index: int) -> Tensor:
        crops, classes = self.crops_of_batch(batch)
        if len(classes) < 2:  # batch norm needs two; a constant keeps every process of a distributed run in step
            least = f"{self.hparams['min_size']:g} pixels (min_size)"
            warnings.warn(f"nothing is learnt from a batch with {len(classes)} crops of at least {least}", stacklevel=2)
            return sum(parameter.sum() for parameter in self.parameters()) * 0.0
        loss = self.loss(self(crops), classes)
        self.log("loss", loss, prog_bar=True, batch_size=len(classes))
        return loss

    def loss(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Softmax cross-entropy, binary cross-entropy summed over the classes, or their sum; mean over crops."""
        terms = []
        if self.hparams["loss"] in ("ce", "joint"):
            terms.append(F.cross_entropy(logits, classes, label_smoothing=self.hparams["label_smoothing"]))
        if self.hparams["loss"] in ("bce", "joint"):
            truth = F.one_hot(classes, logits.shape[1]).to(logits.dtype)
            terms.append(F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / len(logits))
        return sum(terms)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax, or for a teacher trained with "bce" alone the sigmoids, in float32."""
        return logits.float().sigmoid() if self.hparams["loss"] == "bce" else logits.float().softmax(1)

    def reader(self, layers: Sequence[str], logits: bool, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Frozen network from crops to a dictionary: ``layers`` by name, and "logits" if asked; nothing else is run.

        Batch norms are folded into their convolutions, and ``frozen.freeze`` does the rest. Names are those of torchvision's
        feature extraction: "maxpool" and "layer1" are the paper's l0 and l1 of a ResNet.

        Args:
            dtype: of everything but the ``frozen_stem``, which is all that the paper's KD-loc reads
        """
        network = copy.deepcopy(self.network).eval()
        names = get_graph_node_names(network)[1]
        if unknown := [layer for layer in layers if not any(name == layer or name.startswith(f"{layer}.") for name in names)]:
            raise ValueError(
                f"no layer {', '.join(unknown)} in {self.hparams['architecture']}; there are {', '.join(names[1:])}"
            )
        nodes = {layer: layer for layer in layers} | ({names[-1]: "logits"} if logits else {})
        return freeze(create_feature_extractor(fuse(network), nodes), dtype)


def _sides(boxes: Tensor) -> Tensor:
    """(N, 4): width, height, width, height."""
    return (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)


@torch.no_grad()
def crop_logits(
    model: CropClassifier, loader: Iterable, device: str | torch.device = "cpu", most: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) of every ground-truth crop, and classes (N,); of the first ``most`` and a few if that is given."""
    model.eval().to(device)
    logits, classes = [], []
    for images, targets in loader:
        batch = (
            [image.to(device) for image in images],
            [{name: value.to(device) for name, value in target.items()} for target in targets],
        )
        crops, truth = model.crops_of_batch(batch)
        logits.append(model(crops).cpu() if len(crops) else torch.zeros(0, len(model.classes)))
        classes.append(truth.cpu())
        if most and sum(map(len, classes)) >= most:
            break
    return torch.cat(logits), torch.cat(classes)


def check_not_at_chance(model: CropClassifier, loader: Iterable, device: str | torch.device = "cpu") -> float:
    """Share of right answers, in percent, on some 500 ground-truth crops; ValueError unless it is above guessing.

    A teacher can load without a complaint and be useless: trained on another normalisation, on classes in
    another order, or not trained. Guessing is naming the commonest class; two standard errors must lie between.
    """
    logits, classes = crop_logits(model, loader, device, most=500)
    model.cpu()
    if not len(classes):
        return float("nan")
    right = (logits.argmax(1) == classes).float().mean().item()
    guess = classes.bincount().max().item() / len(classes)
    if right < guess + 2 * (guess * (1 - guess) / len(classes)) ** 0.5:
        raise ValueError(
            f"the teacher names {100 * right:.1f} % of {len(classes)} ground-truth crops right, of training images as the "
            f"student's augmentation makes them; naming the commonest class "
            f"gives {100 * guess:.1f} %. It would teach nothing (--allow-poor-teacher goes on all the same)"
        )
    return 100 * right
