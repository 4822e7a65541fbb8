"""The teacher: an image classifier trained on ground-truth crops.

It sees what the student sees: crops come out of the augmented, resized, normalised detector input, through ``roi_crop``.
So a teacher trains on the same COCO-format batches as a detector, and no folder of crops is ever made.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import BasicBlock, ResNet

from cls2det.base import SavedModule, to_float
from cls2det.students import IMAGE_MEAN, IMAGE_STD, CompactResNet
from cls2det_ops import roi_crop

PADDING = "border"  # crops of teacher training, KD-cls and KD-loc alike


def narrow_resnet18(classes: int, width: int) -> nn.Module:
    """torchvision's ResNet-18 with every width scaled from 64 to ``width``."""
    network = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=classes)
    if width == 64:
        return network
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                first = child.in_channels == 3
                setattr(
                    module,
                    name,
                    nn.Conv2d(
                        3 if first else child.in_channels * width // 64,
                        child.out_channels * width // 64,
                        child.kernel_size,
                        child.stride,
                        child.padding,
                        bias=False,
                    ),
                )
            elif isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.BatchNorm2d(child.num_features * width // 64))
            elif isinstance(child, nn.Linear):
                setattr(module, name, nn.Linear(child.in_features * width // 64, classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


class CompactClassifier(nn.Module):
    """The students' small backbone with a linear classifier: trained on crops, it gives the backbone its start."""

    def __init__(self, classes: int, width: int = 16):
        super().__init__()
        self.backbone = CompactResNet((width, 2 * width, 4 * width, 8 * width))
        self.head = nn.Linear(8 * width, classes)

    def forward(self, crops: Tensor) -> Tensor:
        return self.head(self.backbone(crops)["2"].mean((2, 3)))


ARCHITECTURES = {"resnet18": narrow_resnet18, "compact": CompactClassifier}


class CropClassifier(SavedModule):
    """Classifier of ground-truth crops; column ``c`` of its logits is the class of label ``c + 1``.

    Args:
        classes: names of the classes, in order of label
        architecture: "resnet18", or "compact" (the backbone of ``ssd_compact``)
        width: channels of the first stage (64 is ResNet-18 as published)
        image_size: side of the detector input that crops are taken from
        crop_size: side of the crops
        jitter: training boxes are moved by up to this share of their size
        learning_rate: peak of the one-cycle schedule
        weight_decay: of AdamW
        total_steps: length of the schedule
    """

    def __init__(
        self,
        classes: list[str],
        architecture: str = "resnet18",
        width: int = 16,
        image_size: int = 96,
        crop_size: int = 32,
        jitter: float = 0.05,
        learning_rate: float = 4e-3,
        weight_decay: float = 0.05,
        total_steps: int = 1000,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.transform = GeneralizedRCNNTransform(
            image_size, image_size, IMAGE_MEAN, IMAGE_STD, size_divisible=1, fixed_size=(image_size, image_size)
        )
        self.network = ARCHITECTURES[architecture](len(classes), width)

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
        return roi_crop(images, boxes, image_index, self.crop_size, padding_mode=PADDING, clip=False)

    def crops_of_batch(self, batch: tuple[list, list]) -> tuple[Tensor, Tensor]:
        """Ground-truth crops of a detection batch and their classes (label - 1)."""
        images, targets = self.transform(to_float(batch[0]), batch[1])
        boxes = torch.cat([target["boxes"] for target in targets])
        counts = torch.tensor([len(target["boxes"]) for target in targets], device=boxes.device)
        image_index = torch.repeat_interleave(torch.arange(len(counts), device=boxes.device), counts)
        if self.training and self.hparams["jitter"]:
            sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
            boxes = boxes + sides * self.hparams["jitter"] * (2 * torch.rand_like(boxes) - 1)
        return self.crop(images.tensors, boxes, image_index), torch.cat([target["labels"] for target in targets]) - 1

    def training_step(self, batch: tuple[list, list], _index: int) -> Tensor | None:
        crops, classes = self.crops_of_batch(batch)
        if len(classes) < 2:
            return None  # batch norm needs two; Lightning skips the step
        loss = F.cross_entropy(self(crops), classes, label_smoothing=0.05)
        self.log("loss", loss, prog_bar=True, batch_size=len(classes))
        return loss

    def stem(self) -> nn.Module:
        """The layers up to and including the first max-pool, frozen, batch norm folded into the convolution."""
        if self.hparams["architecture"] != "resnet18":
            raise ValueError("KD-loc compares stem features of a ResNet teacher; this one is " + self.hparams["architecture"])
        network = self.network.eval()
        return nn.Sequential(
            fuse_conv_bn_eval(network.conv1, network.bn1), nn.ReLU(inplace=True), network.maxpool
        ).requires_grad_(False)


@torch.no_grad()
def crop_accuracy(model: CropClassifier, loader, device: str | torch.device = "cpu") -> float:
    """Share of ground-truth crops that the classifier names right, in percent."""
    model.eval().to(device)
    right = total = 0
    for images, targets in loader:
        batch = (
            [image.to(device) for image in images],
            [{name: value.to(device) for name, value in target.items()} for target in targets],
        )
        crops, classes = model.crops_of_batch(batch)
        right += int((model(crops).argmax(1) == classes).sum())
        total += len(classes)
    return 100.0 * right / max(total, 1)
