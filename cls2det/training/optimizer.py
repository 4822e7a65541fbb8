"""What the settings ``Optim`` and ``device`` mean to torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from cls2det.training.settings import Device, Optim

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig


def torch_device(device: Device) -> torch.device:
    """The device; "auto" is the GPU if there is one.

    Raises:
        ValueError: "cuda", and torch finds no GPU
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch sees no GPU here")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


def configure_optimizer(optim: Optim, module: nn.Module) -> OptimizerLRSchedulerConfig:
    """Optimizer and learning-rate schedule by step, in the form that Lightning takes.

    Args:
        optim: of ``Optim.for_run``: with its steps
        module: whose parameters are optimised, those that have a gradient
    """
    steps = optim.steps
    assert steps is not None, "Optim.for_run gives the steps"
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if optim.optimizer == "adamw":
        optimizer: Optimizer = torch.optim.AdamW(weights, lr=optim.learning_rate, weight_decay=optim.weight_decay)
    else:
        optimizer = torch.optim.SGD(weights, optim.learning_rate, optim.momentum, weight_decay=optim.weight_decay)
    if optim.schedule == "one_cycle":
        # With adamw, beta1 falls to 0.85 and rises again, as OneCycleLR has it; with sgd the momentum is the option's.
        cycles = optim.optimizer == "adamw"
        schedule: LRScheduler = OneCycleLR(
            optimizer, optim.learning_rate, total_steps=steps + 1, pct_start=0.15, cycle_momentum=cycles
        )
    else:
        drops = [share * steps for share in optim.decay_at] if optim.schedule == "multi_step" else []

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / (min(optim.warmup_steps, steps // 10) + 1))
            if optim.schedule == "cosine":
                return rise * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2
            return rise * 0.1 ** sum(step >= drop for drop in drops)

        schedule = LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
