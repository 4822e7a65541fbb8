"""The way a Lightning run is set up and resumed, for every module that is trained here."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment

from cls2det.files import cannot_write, is_first_process
from cls2det.training.guards import FiniteLosses, OwnSignals, WholeCheckpoints, alone_in
from cls2det.training.optimizer import torch_device
from cls2det.training.progress import Progress, progress_bar
from cls2det.training.resume import join_log, put_log_aside, read_checkpoint
from cls2det.training.settings import Optim, PretrainRun

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fit(
    module: lightning.LightningModule,
    loader: Iterable,
    folder: str | Path,
    *,
    optim: Optim,
    run: PretrainRun,
    seed: int,
    val_loader: Iterable | None = None,
    val_every: int = 1,
    progress: Progress | None = None,
) -> float:
    """Train for ``optim.steps`` steps, or go on from ``folder/last.ckpt``; returns seconds of training, without interruptions.

    What Lightning calls an epoch is not a pass over the data: it is ``run.checkpoint_every`` steps, the stretch between two
    checkpoints.

    Data order, augmentation and every random draw are functions of (seed, step), so a run that was stopped and started again
    makes the steps that the unbroken run would have made. For that, torch's generator is seeded anew before every forward
    (``StepSeed``): a module must not expect one stream of random numbers through its training.

    Args:
        module: has an ``optim`` of its own, the same, from which it makes its optimizer (``configure_optimizer``)
        loader: training batches of one epoch, ``run.checkpoint_every * optim.accumulate`` of them
        folder: for last.ckpt, log/ and tensorboard/
        optim: that of ``Optim.for_run``
        run: that of ``Optim.for_run``
        seed: of every random draw
        val_loader: batches of a validation; None is no validation
        val_every: epochs between validations
        progress: called with (step, steps, text); None is a bar on the screen

    Raises:
        ValueError: last.ckpt is damaged, or of another model; a loss or a weight became NaN or infinite
        FileExistsError: another command trains in the folder
        OSError: something cannot be written there
    """
    assert optim.steps is not None, "Optim.for_run gives the steps"
    quiet()
    if run.channels_last:
        module.to(memory_format=torch.channels_last)
    folder = Path(folder)
    last, timer = folder / "last.ckpt", Timer(verbose=False)
    with alone_in(folder):
        checkpoint = read_checkpoint(last, module)
        if checkpoint["global_step"] >= optim.steps:  # it was stopped after its last step, before its weights were written
            return checkpoint["callbacks"]["Timer"]["time_elapsed"]["train"]
        if checkpoint["global_step"] and is_first_process():
            logging.getLogger(__name__).info(f"{folder}: goes on from step {checkpoint['global_step']} of {optim.steps}")
        put_log_aside(folder / "log", checkpoint["global_step"])
        trainer = _trainer(folder, timer, optim, run, seed, progress, val_every if val_loader is not None else None)
        try:
            trainer.fit(module, loader, val_loader, ckpt_path=last if last.is_file() else None, weights_only=True)
        except BaseException as error:
            if trainer.is_global_zero:
                with contextlib.suppress(OSError):  # the error that ended the training says more
                    join_log(folder / "log")
            if isinstance(error, SystemExit) and trainer.interrupted:  # Lightning makes it of a KeyboardInterrupt
                cause = error.__context__
                raise cause if isinstance(cause, KeyboardInterrupt) else KeyboardInterrupt() from None
            if isinstance(error, OSError) and error.errno in FULL and not error.filename:  # the log's, which names no file
                raise cannot_write(folder / "log", error) from error
            raise
        if trainer.is_global_zero:
            join_log(folder / "log")
    return timer.time_elapsed("train")


def _trainer(
    folder: Path, timer: Timer, optim: Optim, run: PretrainRun, seed: int, progress: Progress | None, val_every: int | None
) -> lightning.Trainer:
    """``val_every`` is None for no validation; the other arguments are those of ``fit``."""
    assert optim.steps is not None
    callbacks: list[Callback] = [
        # Written before a validation, so that one that fails or is killed costs no training.
        ModelCheckpoint(folder, "last", save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=True),
        FiniteLosses(folder),
        OwnSignals(),
        StepSeed(seed),
        _Throughput(),
        LearningRateMonitor("step"),
        timer,
        _Report(progress),
    ]
    if run.ema is not None:
        callbacks.append(EMAWeightAveraging(decay=run.ema))
    plugins: list[Any] = [WholeCheckpoints()]
    if run.processes == 1:
        plugins.append(LightningEnvironment())  # else a scheduler's variables make Lightning one of several
    return lightning.Trainer(
        accelerator=torch_device(run.device).type.replace("cuda", "gpu"),
        devices=run.devices,
        num_nodes=run.num_nodes,
        strategy="ddp" if run.processes > 1 else "auto",
        precision=cast(Any, run.precision),  # Lightning checks the word
        max_epochs=optim.steps // run.checkpoint_every,
        accumulate_grad_batches=optim.accumulate,
        gradient_clip_val=optim.clip_norm,
        callbacks=callbacks,
        plugins=plugins,
        logger=[CSVLogger(folder, name="", version="log"), TensorBoardLogger(folder, name="", version="tensorboard")],
        log_every_n_steps=run.log_every,
        check_val_every_n_epoch=val_every or 1,
        limit_val_batches=1.0 if val_every else 0,
        default_root_dir=folder,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


class StepSeed(Callback):
    """Seeds torch's generator anew before every training forward, with a function of (seed, forward, process).

    So the random numbers of a forward (proposals that Faster R-CNN samples, dropout, jitter of boxes) do not depend on what ran
    before it in this process: a restarted run draws those of the unbroken run.

    Once per epoch would not do: Lightning makes the loader's iterator, which draws a number, before an epoch's start after a
    restart, and after it otherwise.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: lightning.Trainer, _module, _batch, index: int) -> None:
        forwards = trainer.current_epoch * trainer.num_training_batches + index
        torch.manual_seed((self.seed * 1_000_003 + forwards * trainer.world_size + trainer.global_rank) % 2**63)


class _Throughput(Callback):
    """Logs images per second, all processes together, since the last line of the log."""

    def __init__(self):
        self.since, self.images = time.perf_counter(), 0

    def on_train_epoch_start(self, *_) -> None:
        self.since, self.images = time.perf_counter(), 0

    def on_train_batch_end(self, trainer: lightning.Trainer, module, _outputs, batch, index: int) -> None:
        self.images += len(batch[0]) * trainer.world_size
        if (index + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined] # set from elsewhere in Lightning
            now = time.perf_counter()
            module.log("images_per_second", self.images / (now - self.since), batch_size=1)
            self.since, self.images = now, 0


class _Report(Callback):
    """Reports the first ten steps and every tenth to ``progress``, or to a bar on the screen."""

    def __init__(self, progress: Progress | None):
        self.progress, self.screen = progress, contextlib.ExitStack()

    def on_fit_start(self, trainer: lightning.Trainer, *_) -> None:
        if self.progress is None and trainer.is_global_zero:
            self.progress = self.screen.enter_context(progress_bar("training"))

    def on_train_batch_end(self, trainer: lightning.Trainer, *_) -> None:
        total = trainer.num_training_batches * (trainer.max_epochs or 0) // trainer.accumulate_grad_batches
        step = trainer.global_step
        if self.progress and (step <= 10 or step % 10 == 0 or step == total):
            self.progress(step, int(total), f"loss {float(trainer.callback_metrics.get('loss', 'nan')):.3f}")

    def on_fit_end(self, *_) -> None:
        self.screen.close()

    def on_exception(self, *_) -> None:
        self.screen.close()


def quiet() -> None:
    """Keep Lightning's tips, and its advice on data loader workers, off the screen; errors still show."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*litlogger.*",
        ".*LeafSpec.*",
        ".*isinstance.treespec.*",
        ".*lr_scheduler.step.*",
        ".*Experiment logs directory.*",
        ".*GPU available but not used.*",
        ".*have no `val_dataloader`.*",
        r".*Found \d+ module\(s\) in eval mode.*",  # the frozen body of a linear probe
    ):
        warnings.filterwarnings("ignore", message)
