"""Training of a backbone that no one offers weights for (ResNet-50 with every width ÷ 4), on images by class."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from cls2det.data.fingerprint import Fingerprint, folder_fingerprint
from cls2det.data.images import read_image
from cls2det.data.suffixes import describe_unreadable, is_readable, is_unreadable
from cls2det.errors import some
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


class ImagesByClass:
    """The images of a folder that has a folder per class, in a fixed order; hidden files and folders are no part of it.

    Args:
        folder: one folder of images per class in it; images may lie deeper

    Attributes:
        classes: names of the classes, in order of label from 0
        samples: file and label of each image

    Raises:
        FileNotFoundError: no such folder, or no folder in it
        ValueError: a class without an image that can be read
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}; expected one folder of images per class in it")
        self.folder = folder
        self.classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry.name))
        if not self.classes:
            raise FileNotFoundError(f"no folder in {folder}; expected one folder of images per class in it")
        files = [sorted(_visible_files(folder / name), key=os.path.split) for name in self.classes]
        self.samples = [(file, label) for label, those in enumerate(files) for file in those if is_readable(file)]
        unreadable = describe_unreadable(file for those in files for file in those if is_unreadable(file))
        full = {label for _, label in self.samples}
        if empty := [name for label, name in enumerate(self.classes) if label not in full]:
            raise ValueError(
                f"{folder}: {len(empty)} of {len(self.classes)} folders have no image that can be read: {some(empty)}"
                f"{f' ({unreadable})' if unreadable else ''}; add images, or remove the folders"
            )
        if unreadable:
            warnings.warn(f"{folder}: left out: {unreadable}", stacklevel=3)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image, uint8 (3, H, W), and its label."""
        file, label = self.samples[index]
        return read_image(file), label


def check_same_classes(data: ImagesByClass, validation: ImagesByClass) -> None:
    """ValueError unless both have the same classes, with those that only one has."""
    sides = ((data, validation), (validation, data))
    only = [(here, sorted(set(here.classes) - set(there.classes))) for here, there in sides]
    if found := [f"{here.folder} alone has {some(names)}" for here, names in only if names]:
        raise ValueError(f"the classes of training and validation differ: {'; '.join(found)}")


def _is_hidden(name: str) -> bool:
    """Whether a system or an editor has put it there: .git, .ipynb_checkpoints, ._photo.jpg, __MACOSX, @eaDir."""
    return name.startswith((".", "@eaDir")) or name == "__MACOSX"


def _visible_files(folder: Path) -> Iterator[str]:
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        yield from (os.path.join(place, name) for name in names if not _is_hidden(name))


class SeededImages(Dataset):
    """``ImagesByClass`` whose items, normalised float images, are functions of (index, seed), for ``SeededSampler``.

    Args:
        folder: one folder of images per class in it
        size: side of the images
        train: random crops and flips; otherwise the centre of the image
    """

    def __init__(self, folder: Path, size: int, train: bool):
        self.files = ImagesByClass(folder)
        crop = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
        whole = [v2.Resize(round(size * 8 / 7), antialias=True), v2.CenterCrop(size)]
        self.transform = v2.Compose(
            [*(crop if train else whole), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        )

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self) -> Fingerprint:
        """Of the folder's classes and files."""
        names = [(Path(path).relative_to(self.files.folder).as_posix(), label) for path, label in self.files.samples]
        return folder_fingerprint(self.files.classes, names)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = key if isinstance(key, tuple) else (key, 0)
        image, label = self.files[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.transform(image), label
