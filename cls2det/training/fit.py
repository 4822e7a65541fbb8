"""What the teacher and the students share: one small file of weights, and the way a Lightning run is set up and resumed."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import logging
import os
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from cls2det.training.progress import Progress, progress_bar
from cls2det.training.settings import CLAIMED, Optim, PretrainRun


class SavedModule(lightning.LightningModule):
    """A LightningModule that keeps its arguments and weights in one small file, apart from the training checkpoints.

    Its arguments are plain values, so that every file loads with ``weights_only=True``.
    """

    @rank_zero_only
    def save(self, path: str | Path) -> None:
        """Write arguments and weights, by way of a temporary file: what is at ``path`` is whole."""
        part = Path(f"{path}.part")
        torch.save({"kind": type(self).__name__, "settings": dict(self.hparams), "weights": self.saved_weights()}, part)
        part.replace(path)

    def saved_weights(self) -> dict[str, Tensor]:
        return self.state_dict()

    @classmethod
    def load(cls, path: str | Path) -> SavedModule:
        """What ``save`` wrote, in eval mode, on the CPU; read with ``weights_only=True``.

        Raises:
            FileNotFoundError: nothing at ``path``
            ValueError: something else at ``path``, or weights that are missing, left over or of another shape
        """
        saved = _read(path)
        if saved["kind"] != cls.__name__:
            raise ValueError(f"{path} holds a {saved['kind']}, expected a {cls.__name__}")
        try:
            model = cls(**saved["settings"])
            model.load_state_dict(saved["weights"])
        except (RuntimeError, TypeError) as error:  # unknown settings; missing, unexpected or other weights
            raise ValueError(f"{path} does not fit its own settings: {_one_line(error)}") from None
        return model.eval()

    def configure_optimizers(self) -> dict:
        return Optim(**(self.hparams["optim"] or {})).configure(self)


def _read(path: str | Path) -> dict[str, Any]:
    """Content of a file that ``SavedModule.save`` wrote, or a clear error."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has a different one for each way in which a file can be wrong
        raise ValueError(f"{path} does not load as weights alone: {_one_line(error)}") from None
    if not isinstance(saved, dict) or set(saved) != {"kind", "settings", "weights"}:
        raise ValueError(f"{path} was not written by cls2det")
    return saved


def load_network(path: str | Path, *kinds: type[SavedModule]) -> torch.nn.Module:
    """``network`` of what was saved by one of these classes."""
    kind = _read(path)["kind"]
    for each in kinds:
        if each.__name__ == kind:
            return each.load(path).network
    raise ValueError(f"{path} holds a {kind}, expected a {' or a '.join(each.__name__ for each in kinds)}")


def to_float(images: Iterable[Tensor]) -> list[Tensor]:
    """uint8 images as float32 in [0, 1], which torchvision's detectors want."""
    return [image.float() / 255 for image in images]


@rank_zero_only
def write_json(path: Path, content: dict) -> dict:
    """Write by way of a temporary file: what is at ``path`` is whole. Returns ``content``."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2))
    part.replace(path)
    return content


def claim(folder: str | Path, command: str, options: dict[str, Any]) -> None:
    """Make ``folder`` the place of a run with these options; refuse one that holds a run with others, which would be resumed.

    Of the options of ``run``, those that are not in ``CLAIMED`` may be changed by a restart.
    """
    if not check_claim(folder, command, options):
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / "options.json", _stamp(command, options))


def check_claim(folder: str | Path, command: str, options: dict[str, Any]) -> bool:
    """Whether ``folder`` is the place of a run with these options; FileExistsError if of one with others."""
    file = Path(folder) / "options.json"
    if not file.is_file():
        return False
    held, stamp = _options(file), _stamp(command, options)
    other = sorted(name for name in stamp.keys() | held.keys() if stamp.get(name) != held.get(name))
    if other:
        raise FileExistsError(f"{folder} holds a run with other options ({', '.join(other)}); give another --out or remove it")
    return True


def _options(file: Path) -> dict[str, Any]:
    try:
        held = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); give another --out, or remove the folder") from None
    if not isinstance(held, dict):
        raise ValueError(f"{file} holds no options; give another --out, or remove the folder")
    return held


def _stamp(command: str, options: dict[str, Any]) -> dict[str, Any]:
    apart = ("out", "progress", "run", "allow_poor_teacher")
    stamp = {name: _plain(value) for name, value in options.items() if name not in apart}
    return {"command": command, **stamp, "run": {name: getattr(options["run"], name, None) for name in CLAIMED}}


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    return json.loads(json.dumps(value, default=str))


def fit(
    module: SavedModule,
    loader,
    folder: str | Path,
    *,
    optim: Optim,
    run: PretrainRun,
    seed: int,
    val_loader=None,
    val_every: int = 1,
    progress: Progress | None = None,
) -> float:
    """Train for ``optim.steps`` steps, or go on from ``folder/last.ckpt``; returns seconds of training, interruptions left out.

    ``optim`` and ``run`` are those of ``Optim.for_run``.

    ``loader`` gives ``run.checkpoint_every`` steps; a checkpoint is written after each such stretch ("epoch" to Lightning), and
    the module is validated on ``val_loader`` after every ``val_every`` of them.
    Data order, augmentation and every random draw are functions of (seed, step), so a run that was stopped and
    started again makes the steps that the unbroken run would have made.
    """
    quiet()
    folder = Path(folder)
    last, timer = folder / "last.ckpt", Timer(verbose=False)
    held = _checkpoint(last, module)
    if held["global_step"] >= optim.steps:  # stopped between the last step and what follows it
        return held["callbacks"]["Timer"]["time_elapsed"]["train"]
    _keep_log(folder / "log", held["global_step"])
    callbacks = [
        # Written before a validation, so that one that fails or is killed costs no training.
        ModelCheckpoint(folder, "last", save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=True),
        _StepSeed(seed),
        _Throughput(),
        LearningRateMonitor("step"),
        timer,
        _Report(progress),
    ]
    if run.ema:
        callbacks.append(EMAWeightAveraging(decay=run.ema))
    trainer = lightning.Trainer(
        accelerator=run.torch_device.type.replace("cuda", "gpu"),
        devices=run.devices,
        num_nodes=run.num_nodes,
        strategy="ddp" if run.processes > 1 else "auto",
        precision=run.precision,
        max_epochs=optim.steps // run.checkpoint_every,
        accumulate_grad_batches=optim.accumulate,
        gradient_clip_val=optim.clip_norm or None,
        callbacks=callbacks,
        logger=[CSVLogger(folder, name="", version="log"), TensorBoardLogger(folder, name="", version="tensorboard")],
        log_every_n_steps=run.log_every,
        check_val_every_n_epoch=val_every,
        limit_val_batches=1.0 if val_loader is not None else 0,
        default_root_dir=folder,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    try:
        trainer.fit(module, loader, val_loader, ckpt_path=last if last.is_file() else None, weights_only=True)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        if trainer.is_global_zero:
            _join_log(folder / "log")
    return timer.time_elapsed("train")


def _checkpoint(last: Path, module: lightning.LightningModule) -> dict[str, Any]:
    """Content of a training checkpoint, its weights in ``module`` (averaged ones where they are), or that of a run not begun."""
    if not last.is_file():
        return {"global_step": 0}
    remedy = "Remove it, and the run starts from its first step"
    try:
        held = torch.load(last, map_location="cpu", weights_only=True)
        if not isinstance(held, dict) or not {"global_step", "state_dict"} <= held.keys():
            raise ValueError("it is something else")
    except MemoryError:
        raise
    except Exception as error:  # torch has a different one for each way in which a file can be wrong
        if isinstance(error, OSError) and error.filename:  # it cannot be read, which says nothing about what is in it
            raise
        raise ValueError(f"{last} does not load as a checkpoint: {_one_line(error, 1)}. {remedy}") from None
    try:
        module.load_state_dict(held["state_dict"])
    except (RuntimeError, TypeError) as error:  # another model, or a version of a library that names its layers otherwise
        raise ValueError(f"{last} does not fit the model of this run: {_one_line(error)}. {remedy}") from None
    return held


def _one_line(error: Exception, lines: int = 3) -> str:
    """The first lines of what torch says, each as far as one reads: it names every weight that is missing."""
    said = (str(error).splitlines() or [type(error).__name__])[:lines]
    return " ".join(line if len(line) < 160 else line[:160] + " …" for line in map(str.strip, said))


class _StepSeed(Callback):
    """Seeds torch before each forward: what is random in it does not depend on what ran before a restart.

    Not once per epoch: Lightning makes the loader's iterator, which draws a number, sometimes before an epoch's start
    (after a restart) and sometimes after it.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: lightning.Trainer, _module, _batch, index: int) -> None:
        forwards = trainer.current_epoch * trainer.num_training_batches + index
        torch.manual_seed(self.seed * 1_000_003 + forwards * trainer.world_size + trainer.global_rank)


class _Throughput(Callback):
    """Logs images per second, all processes together, since the last line of the log."""

    def __init__(self):
        self.since, self.images = time.perf_counter(), 0

    def on_train_epoch_start(self, *_) -> None:
        self.since, self.images = time.perf_counter(), 0

    def on_train_batch_end(self, trainer: lightning.Trainer, module, _outputs, batch, index: int) -> None:
        self.images += len(batch[0]) * trainer.world_size
        if (index + 1) % trainer.log_every_n_steps == 0:
            now = time.perf_counter()
            module.log("images_per_second", self.images / (now - self.since), batch_size=1)
            self.since, self.images = now, 0


class _Report(Callback):
    """Tells ``progress``, or a bar on the screen, about every tenth step."""

    def __init__(self, progress: Progress | None):
        self.progress, self.shown = progress, contextlib.ExitStack()

    def on_fit_start(self, trainer: lightning.Trainer, *_) -> None:
        if self.progress is None and trainer.is_global_zero:
            self.progress = self.shown.enter_context(progress_bar("training"))

    def on_train_batch_end(self, trainer: lightning.Trainer, *_) -> None:
        total = trainer.num_training_batches * trainer.max_epochs // trainer.accumulate_grad_batches
        if self.progress and (trainer.global_step % 10 == 0 or trainer.global_step == total):
            self.progress(trainer.global_step, int(total), f"loss {float(trainer.callback_metrics.get('loss', 'nan')):.3f}")

    def on_fit_end(self, *_) -> None:
        self.shown.close()

    on_exception = on_fit_end


# Lightning's CSV logger starts its file anew with each start of a run. What a start before wrote is put aside, up to the
# step that the new one goes on from, and joined with the new file at the end, or at the next start.


@rank_zero_only
def _keep_log(folder: Path, step: int) -> None:
    """Put the lines of steps before ``step`` aside."""
    _join_log(folder)
    file = folder / "metrics.csv"
    if file.is_file():
        rows = [row for row in _rows(file) if int(row["step"]) < step]
        _write_rows(folder / "before.csv", rows)
        file.unlink()


def _join_log(folder: Path) -> None:
    before, file = folder / "before.csv", folder / "metrics.csv"
    if before.is_file():
        _write_rows(file, _rows(before) + (_rows(file) if file.is_file() else []))
        before.unlink()


def _rows(file: Path) -> list[dict[str, str]]:
    """Without a last line that a kill or a full disk has cut off."""
    text = file.read_text()
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def _write_rows(file: Path, rows: list[dict[str, str]]) -> None:
    columns = sorted({column for row in rows for column in row} | {"step"})
    part = file.with_suffix(".part")
    with part.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, columns)
        writer.writeheader()
        writer.writerows(rows)
    part.replace(file)


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
    ):
        warnings.filterwarnings("ignore", message)
