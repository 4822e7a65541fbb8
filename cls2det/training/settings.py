"""The groups of options that several commands share: how weights are optimised, and where and how a run happens.

Imported without torch, so that a help text comes at once.
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Literal, TypeVar, get_args

from cls2det.settings import MAX_PIXELS, check_numbers

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
AnyRun = TypeVar("AnyRun", bound="PretrainRun")


def torchrun_processes() -> int | None:
    """How many processes torchrun has started, this one included; None if it did not start this one."""
    return int(os.environ["WORLD_SIZE"]) if {"TORCHELASTIC_RUN_ID", "WORLD_SIZE"} <= os.environ.keys() else None


@dataclasses.dataclass(frozen=True)
class Optim:
    """How weights are optimised.

    Args:
        optimizer: adamw or sgd
        learning_rate: peak of the learning rate
        base_batch: images per step that the rate was chosen for; the rate is scaled by the real batch over this one; null
            leaves the rate as it is
        weight_decay: on every weight
        momentum: of sgd
        schedule: one_cycle (15 % rise, cosine fall), multi_step, cosine or constant
        decay_at: multi_step: shares of the run after which the rate is divided by ten
        warmup_steps: steps of linear rise, at most a tenth of the run (one_cycle has its own)
        epochs: passes over the images
        steps: optimizer steps, in place of epochs; null trains for the epochs
        batch_size: images per process and forward
        accumulate: forwards per optimizer step
        clip_norm: gradients are clipped to this norm; null turns clipping off
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 3e-3
    base_batch: int | None = None
    weight_decay: float = 0.05
    momentum: float = 0.9
    schedule: Literal["one_cycle", "multi_step", "cosine", "constant"] = "one_cycle"
    decay_at: tuple[float, ...] = (0.667, 0.917)
    warmup_steps: int = 0
    epochs: float = 12
    steps: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    clip_norm: float | None = 10.0

    def __post_init__(self):
        length = "epochs" if self.steps is None else "steps"
        check_numbers(self, "optim", ("batch_size", "accumulate", "base_batch", "clip_norm", length))
        if self.momentum >= 1:
            raise ValueError(f"optim.momentum must be below 1, got {self.momentum}")
        if not all(0 < share < 1 for share in self.decay_at):
            raise ValueError(f"optim.decay_at takes shares of the run, above 0 and below 1, not epochs; got {self.decay_at}")

    def for_run(self, images: int, run: AnyRun) -> tuple[Optim, AnyRun]:
        """``steps`` and ``learning_rate`` as they are for this many images and processes, and a ``run`` that fits.

        Its checkpoints divide the steps into equal stretches of at most ``checkpoint_every``; steps are rounded up to that,
        by less than one per stretch. It writes a line to the log within the first stretch, and measures the ratios at least once.

        Raises:
            ValueError: torchrun has started another number of processes than the run's settings say
        """
        world = torchrun_processes() or run.processes
        if world != run.processes:
            raise ValueError(
                f"run.devices {run.devices} and run.num_nodes {run.num_nodes} make {run.processes} processes, torchrun made {world}"
            )
        batch = self.batch_size * self.accumulate * run.processes
        steps = self.steps if self.steps is not None else math.ceil(self.epochs * images / batch)
        stretches = math.ceil(steps / run.checkpoint_every)
        checkpoint_every = math.ceil(steps / stretches)
        steps, log_every = stretches * checkpoint_every, min(run.log_every, checkpoint_every)
        run = dataclasses.replace(run, checkpoint_every=checkpoint_every, log_every=log_every)
        if isinstance(run, Run) and run.ratio_every:
            run = dataclasses.replace(run, ratio_every=max(1, min(run.ratio_every, steps) // log_every) * log_every)
        rate = self.learning_rate * (batch / self.base_batch if self.base_batch else 1.0)
        return dataclasses.replace(self, steps=steps, learning_rate=rate, base_batch=None), run


@dataclasses.dataclass(frozen=True)
class PretrainRun:
    """Where and how ``pretrain`` runs. A restart may change it, except for the options in ``CLAIMED``, which change the steps.

    Args:
        device: auto takes a GPU if there is one
        devices: processes (and GPUs) per machine, with DDP
        num_nodes: machines, with DDP; start the command on each with torchrun
        precision: of Lightning: 32-true, bf16-mixed, 16-mixed
        loader_workers: processes that load images, at most one per core
        checkpoint_every: largest number of steps between checkpoints
        log_every: steps between lines of the log; at most checkpoint_every
        ema: decay of an exponential moving average of the weights, which is then saved in their place; null is none
        channels_last: keep the trained network's weights and maps in memory with the channels last: the same network, faster for
            a MobileNet on a CPU
    """

    device: Device = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: Precision = "32-true"
    loader_workers: int = 0
    checkpoint_every: int = 100
    log_every: int = 25
    ema: float | None = None
    channels_last: bool = False

    def __post_init__(self):
        for name, least in LEAST.items():
            if (value := getattr(self, name, None)) is not None and value < least:
                raise ValueError(f"run.{name} must be at least {least}, got {value}")
        if self.precision not in get_args(Precision):
            raise ValueError(f"run.precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"run.ema must be above 0 and below 1, got {self.ema} (None is none)")

    @property
    def workers(self) -> int:
        return min(self.loader_workers, os.cpu_count() or 1)

    @property
    def processes(self) -> int:
        return self.devices * self.num_nodes


@dataclasses.dataclass(frozen=True)
class TeacherRun(PretrainRun):
    """Where and how ``teacher`` runs.

    Args:
        cache: keep decoded images in memory (for small data)
        skip_bad_images: go on without training images that cannot be read, with a warning for each, instead of stopping
        max_pixels: an image of more pixels is not read, as a small file can fill the memory; null is no limit
    """

    cache: bool = False
    skip_bad_images: bool = False
    max_pixels: int | None = MAX_PIXELS


@dataclasses.dataclass(frozen=True)
class Run(TeacherRun):
    """Where and how ``train`` and ``distill`` run.

    Args:
        validate_every: checkpoints between validations on val_split; null is none before the end
        ratio_every: steps between measurements of each distillation term's gradient against the detector's; null is none.
            Rounded to a multiple of log_every, and never more than the length of the run
        pictures: validation images drawn for TensorBoard
        max_detections: that count per image and class in evaluations on val_split; see `cls2det evaluate`
    """

    validate_every: int | None = None
    ratio_every: int | None = 25
    pictures: int = 4
    max_detections: int = 100


LEAST = {
    "devices": 1,
    "num_nodes": 1,
    "checkpoint_every": 1,
    "log_every": 1,
    "loader_workers": 0,
    "validate_every": 1,
    "ratio_every": 1,
    "pictures": 0,
    "max_detections": 1,
    "max_pixels": 1,
}
# Options of a run that change its steps. A restart must not change them.
CLAIMED = ("devices", "num_nodes", "precision", "skip_bad_images", "checkpoint_every", "ema", "channels_last")
