"""What the settings ``Optim`` and ``device`` mean to torch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from cls2det.training.settings import Device, Optim


def torch_device(device: Device) -> torch.device:
    """The device; "auto" is the GPU if there is one.

    Raises:
        ValueError: "cuda", and torch finds no GPU
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch sees no GPU here")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


def configure_optimizer(optim: Optim, module: nn.Module) -> dict[str, Any]:
    """Optimizer and learning-rate schedule by step, in the form that Lightning takes.

    Args:
        optim: of ``Optim.for_run``: with its steps
        module: whose parameters are optimised, those that have a gradient
    """
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if optim.optimizer == "adamw":
        optimizer = torch.optim.AdamW(weights, lr=optim.learning_rate, weight_decay=optim.weight_decay)
    else:
        optimizer = torch.optim.SGD(weights, optim.learning_rate, optim.momentum, weight_decay=optim.weight_decay)
    if optim.schedule == "one_cycle":
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, optim.learning_rate, total_steps=optim.steps + 1, pct_start=0.15
        )
    else:
        drops = [share * optim.steps for share in optim.decay_at] if optim.schedule == "multi_step" else []

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / (min(optim.warmup_steps, optim.steps // 10) + 1))
            if optim.schedule == "cosine":
                return rise * (1 + math.cos(math.pi * min(1.0, step / optim.steps))) / 2
            return rise * 0.1 ** sum(step >= drop for drop in drops)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
