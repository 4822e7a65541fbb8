"""``cls2det pretrain``: a backbone that no one offers weights for (ResNet-50 with every width ÷ 4), trained on images by class."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from cls2det.data.dataset import SeededSampler
from cls2det.data.images import read_image
from cls2det.models.backbones import build_classifier
from cls2det.models.students import parameter_count
from cls2det.training import fit
from cls2det.training.settings import Optim, PretrainRun

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's detectors normalise


class Pretraining(fit.SavedModule):
    """Softmax classification of images; ``network`` is what ``--start`` takes the backbone from.

    Args:
        classes: names of the classes
        architecture: any classifier of torchvision
        width: channels of the first stage of a ResNet
        label_smoothing: of the cross-entropy
        optim: ``Optim`` as a dictionary
    """

    def __init__(
        self,
        classes: list[str],
        architecture: str = "resnet50",
        width: int = 16,
        label_smoothing: float = 0.1,
        optim: dict | None = None,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.network = build_classifier(architecture, len(classes), width)

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        images, classes = batch
        loss = F.cross_entropy(self.network(images), classes, label_smoothing=self.hparams["label_smoothing"])
        self.log("loss", loss, prog_bar=True, batch_size=len(classes))
        return loss


class SeededImages(Dataset):
    """``ImageFolder`` whose items are functions of (index, seed), for ``SeededSampler``; normalised float images."""

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

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = key if isinstance(key, tuple) else (key, 0)
        image, label = self.files[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.transform(image), label


def pretrain(
    data_root: Path,
    out: Path,
    train_split: str = "train",
    val_split: str | None = "val",
    architecture: str = "resnet50",
    width: int = 16,
    image_size: int = 224,
    label_smoothing: float = 0.1,
    optim: Optim = Optim("sgd", 0.1, base_batch=256, weight_decay=1e-4, schedule="multi_step", epochs=90, batch_size=256),  # noqa: B008
    seed: int = 0,
    run: PretrainRun = PretrainRun(),  # noqa: B008
    progress: fit.Progress | None = None,
) -> dict:
    """Train a backbone on a folder of images by class (ImageNet's layout), for ``train --start`` and ``distill --start``.

    Args:
        data_root: folder with <train_split>/<class>/*.jpg and <val_split>/<class>/*.jpg
        out: folder for weights.pt and report.json
        train_split: folder to train on
        val_split: folder to measure top-1 on, or null
        architecture: any classifier of torchvision
        width: channels of the first stage of a ResNet; 16 is every width divided by 4
        image_size: side of the training crops
        label_smoothing: of the cross-entropy
        optim: how weights are optimised
        seed: of weights, order and augmentation
        run: where and how
    """
    options = dict(locals())
    data = SeededImages(Path(data_root) / train_split, image_size, train=True)
    validation = SeededImages(Path(data_root) / val_split, image_size, train=False) if val_split else None
    if validation and validation.files.classes != data.files.classes:
        raise ValueError(f"{val_split} has other classes than {train_split} in {data_root}")
    optim, run = optim.for_run(len(data), run)
    torch.manual_seed(seed)
    model = Pretraining(data.files.classes, architecture, width, label_smoothing, dataclasses.asdict(optim))
    fit.claim(out, "pretrain", options)
    sampler = SeededSampler(len(data), run.checkpoint_every * optim.accumulate * optim.batch_size, seed)
    workers = {"num_workers": run.workers, "persistent_workers": run.workers > 0}
    loader = DataLoader(data, optim.batch_size, sampler=sampler, **workers)
    seconds = fit.fit(model, loader, out, optim=optim, run=run, seed=seed, progress=progress)
    model.save(Path(out) / "weights.pt")
    report = {"seconds": seconds, "images": len(data), "steps": optim.steps, "parameters": parameter_count(model)}
    if validation and rank_zero_only.rank == 0:
        report["accuracy"] = _top1(model, DataLoader(validation, optim.batch_size, **workers), run.torch_device)
    return fit.write_json(Path(out) / "report.json", report)


@torch.no_grad()
def _top1(model: Pretraining, loader: DataLoader, device: torch.device) -> float:
    """Percent."""
    model.eval().to(device)
    right = sum(int((model.network(images.to(device)).argmax(1).cpu() == classes).sum()) for images, classes in loader)
    return 100 * right / len(loader.dataset)
