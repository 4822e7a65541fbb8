"""``cls2det pretrain``: a backbone that nobody offers weights for, trained on images by class."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from cls2det.commands.identity import claim
from cls2det.commands.options import PretrainOptions
from cls2det.data.loader import SeededSampler
from cls2det.files import is_first_process, start_processes, write_json
from cls2det.models.backbones import save_backbone
from cls2det.models.students import parameter_count
from cls2det.training import fit
from cls2det.training.backbone import BackboneTraining, SeededImages, check_same_classes
from cls2det.training.optimizer import torch_device
from cls2det.training.progress import Progress


def pretrain(options: PretrainOptions, progress: Progress | None = None) -> dict:
    """Train the backbone; returns the content of report.json."""
    data = SeededImages(options.data_root / options.train_split, options.image_size, train=True)
    validation = None
    if options.val_split:
        validation = SeededImages(options.data_root / options.val_split, options.image_size, train=False)
        check_same_classes(data.files, validation.files)
    optim, run = options.optim.for_run(len(data), options.run)
    start_processes(run.processes)
    torch.manual_seed(options.seed)
    training = BackboneTraining(
        data.files.classes,
        architecture=options.architecture,
        width=options.width,
        label_smoothing=options.label_smoothing,
        optim=optim,
    )
    splits = {options.train_split: data} | ({options.val_split: validation} if options.val_split and validation else {})
    claim(options, {split: part.fingerprint() for split, part in splits.items()})
    sampler = SeededSampler(len(data), run.checkpoint_every * optim.accumulate * optim.batch_size, options.seed)
    workers: dict[str, Any] = {"num_workers": run.workers, "persistent_workers": run.workers > 0}
    loader = DataLoader(data, optim.batch_size, sampler=sampler, **workers)
    seconds = fit.fit(training, loader, options.out, optim=optim, run=run, seed=options.seed, progress=progress)
    weights, classes = options.out / "weights.pt", data.files.classes
    save_backbone(weights, training.network, architecture=options.architecture, width=options.width, classes=classes)
    report: dict[str, Any] = {
        "seconds": seconds,
        "images": len(data),
        "steps": optim.steps,
        "parameters": parameter_count(training),
    }
    if validation and is_first_process():
        loader = DataLoader(validation, optim.batch_size, **workers)
        report["split"] = options.val_split
        report["accuracy"] = 100 * _correct(training.network, loader, torch_device(run.device)) / len(validation)
    return write_json(options.out / "report.json", report)


@torch.no_grad()
def _correct(network: torch.nn.Module, loader: DataLoader, device: torch.device) -> int:
    """How many images have their class right."""
    network.eval().to(device)
    return sum(int((network(images.to(device)).argmax(1).cpu() == classes).sum()) for images, classes in loader)
