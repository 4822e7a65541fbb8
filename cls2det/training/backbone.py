"""Training of a backbone that no one offers weights for (ResNet-50 with every width ÷ 4), on images by class."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from cls2det.data.fingerprint import Fingerprint, folder_fingerprint
from cls2det.data.images import read_image
from cls2det.models.backbones import build_classifier
from cls2det.training.optimizer import configure_optimizer
from cls2det.training.settings import Optim

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's detectors normalise


class BackboneTraining(lightning.LightningModule):
    """Softmax classification of images; a student starts from ``network`` (``models.backbones.save_backbone``).

    Args:
        classes: names of the classes
        architecture: any classifier of torchvision
        width: channels of the first stage of a ResNet
        label_smoothing: of the cross-entropy
        optim: how the weights are optimised
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        architecture: str = "resnet50",
        width: int = 16,
        label_smoothing: float = 0.1,
        optim: Optim = Optim(),  # noqa: B008 (frozen)
    ):
        super().__init__()
        self.save_hyperparameters(
            {
                "classes": list(classes),
                "architecture": architecture,
                "width": width,
                "label_smoothing": label_smoothing,
                "optim": dataclasses.asdict(optim),
            }
        )
        self.label_smoothing, self.optim = label_smoothing, optim
        self.network = build_classifier(architecture, len(classes), width)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return configure_optimizer(self.optim, self)

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        images, classes = batch
        loss = F.cross_entropy(self.network(images), classes, label_smoothing=self.label_smoothing)
        self.log("loss", loss, prog_bar=True, batch_size=len(classes))
        return loss


class SeededImages(Dataset):
    """``ImageFolder`` whose items, normalised float images, are functions of (index, seed), for ``SeededSampler``.

    Args:
        folder: one folder of images per class in it
        size: side of the images
        train: random crops and flips; otherwise the centre of the image
    """

    def __init__(self, folder: Path, size: int, train: bool):
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}; expected one folder of images per class in it")
        self.files = ImageFolder(str(folder), loader=read_image)
        crop = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
        whole = [v2.Resize(round(size * 8 / 7), antialias=True), v2.CenterCrop(size)]
        self.transform = v2.Compose(
            [*(crop if train else whole), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        )

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self) -> Fingerprint:
        """Of the folder's classes and files."""
        names = [(Path(path).relative_to(self.files.root).as_posix(), label) for path, label in self.files.samples]
        return folder_fingerprint(self.files.classes, names)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = key if isinstance(key, tuple) else (key, 0)
        image, label = self.files[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.transform(image), label
