"""``cls2det pretrain``: a backbone that no one offers weights for, trained on images by class."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from cls2det.data.loader import SeededSampler
from cls2det.files import write_json
from cls2det.models.backbones import save_backbone
from cls2det.models.students import parameter_count
from cls2det.training import fit
from cls2det.training.backbone import BackboneTraining, SeededImages
from cls2det.training.progress import Progress
from cls2det.training.runs import claim, run_record
from cls2det.training.settings import Optim, PretrainRun


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
    progress: Progress | None = None,
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
    classes = data.files.classes
    model = BackboneTraining(classes, architecture=architecture, width=width, label_smoothing=label_smoothing, optim=optim)
    claim(out, run_record("pretrain", options, options["run"]))
    sampler = SeededSampler(len(data), run.checkpoint_every * optim.accumulate * optim.batch_size, seed)
    workers = {"num_workers": run.workers, "persistent_workers": run.workers > 0}
    loader = DataLoader(data, optim.batch_size, sampler=sampler, **workers)
    seconds = fit.fit(model, loader, out, optim=optim, run=run, seed=seed, progress=progress)
    save_backbone(Path(out) / "weights.pt", model.network, architecture=architecture, width=width, classes=classes)
    report = {"seconds": seconds, "images": len(data), "steps": optim.steps, "parameters": parameter_count(model)}
    if validation and rank_zero_only.rank == 0:
        report["accuracy"] = _top1(model, DataLoader(validation, optim.batch_size, **workers), run.torch_device)
    return write_json(Path(out) / "report.json", report)


@torch.no_grad()
def _top1(model: BackboneTraining, loader: DataLoader, device: torch.device) -> float:
    """Percent."""
    model.eval().to(device)
    right = sum(int((model.network(images.to(device)).argmax(1).cpu() == classes).sum()) for images, classes in loader)
    return 100 * right / len(loader.dataset)
