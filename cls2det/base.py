"""What the teacher and the students share: saved weights, the optimiser, and the way a Lightning run is set up and resumed."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar, Timer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

Progress = Callable[[int, int, str], None]  # (step, steps, what to say)


class SavedModule(lightning.LightningModule):
    """A LightningModule that keeps its arguments and weights in one small file, apart from the training checkpoints."""

    @rank_zero_only
    def save(self, path: str | Path) -> None:
        """Write arguments and weights, by way of a temporary file: what is at ``path`` is whole."""
        part = Path(f"{path}.part")
        torch.save({"settings": dict(self.hparams), "weights": self.state_dict()}, part)
        part.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> SavedModule:
        """What ``save`` wrote, in eval mode, on the CPU; read with ``weights_only=True``."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no weights at {path}")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict) or set(saved) != {"settings", "weights"}:
            raise ValueError(f"{path} was not written by {cls.__name__}.save")
        try:
            model = cls(**saved["settings"])
        except TypeError as error:
            raise ValueError(f"{path} holds something other than a {cls.__name__}: {error}") from None
        model.load_state_dict(saved["weights"])
        return model.eval()

    def configure_optimizers(self) -> dict:
        """AdamW with a one-cycle schedule by step, from ``learning_rate``, ``weight_decay`` and ``total_steps``."""
        settings = self.hparams
        optimizer = torch.optim.AdamW(self.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"])
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings["learning_rate"], total_steps=settings["total_steps"] + 1, pct_start=0.15
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def to_float(images: Iterable[Tensor]) -> list[Tensor]:
    """uint8 images as float32 in [0, 1], which torchvision's detectors want."""
    return [image.float() / 255 for image in images]


def torch_device(name: str) -> torch.device:
    """ "auto" is the GPU if there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


@rank_zero_only
def write_json(path: Path, content: dict) -> dict:
    """Write by way of a temporary file: what is at ``path`` is whole. Returns ``content``."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2))
    part.replace(path)
    return content


# Options that a restart may change: they decide where and how a run happens, not what comes out.
NOT_CLAIMED = {"out", "progress", "device", "devices", "precision", "cache", "loader_workers"}


def claim(folder: str | Path, options: dict[str, Any]) -> None:
    """Make ``folder`` the place of a run with these options; refuse one that holds a run with others, which would be resumed."""
    stamp = {name: _plain(value) for name, value in options.items() if name not in NOT_CLAIMED}
    file = Path(folder) / "options.json"
    if file.is_file():
        held = json.loads(file.read_text())
        other = sorted(name for name in stamp.keys() | held.keys() if stamp.get(name) != held.get(name))
        if other:
            raise FileExistsError(
                f"{folder} holds a run with other options ({', '.join(other)}); give another --out or remove it"
            )
    else:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(file, stamp)


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    return str(value) if isinstance(value, Path) else value


def fit(
    module: SavedModule,
    loader,
    folder: str | Path,
    *,
    epochs: int,
    seed: int,
    device: str = "auto",
    devices: int = 1,
    precision: str = "32-true",
    progress: Progress | None = None,
) -> float:
    """Train for ``epochs`` epochs, or go on from ``folder/last.ckpt``; returns seconds of training, interruptions left out.

    A checkpoint is written after each epoch. Data order, augmentation and every random draw are functions of (seed,
    step), so a run that was stopped and started again makes the steps that the unbroken run would have made.
    """
    quiet()
    folder = Path(folder)
    last, timer = folder / "last.ckpt", Timer(verbose=False)
    trainer = lightning.Trainer(
        accelerator={"cuda": "gpu"}.get(device, device),
        devices=devices,
        precision=precision,
        max_epochs=epochs,
        gradient_clip_val=10.0,
        callbacks=[
            ModelCheckpoint(folder, "last", save_top_k=1, enable_version_counter=False),
            _StepSeed(seed),
            timer,
            _Report(progress) if progress else RichProgressBar(),
        ],
        logger=CSVLogger(folder, name="", version="log"),
        log_every_n_steps=min(25, len(loader)),
        default_root_dir=folder,
        enable_model_summary=False,
        enable_progress_bar=progress is None,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, loader, ckpt_path=last if last.is_file() else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    return timer.time_elapsed("train")


class _StepSeed(Callback):
    """Seeds torch before each step: what is random in it does not depend on what ran before a restart.

    Not once per epoch: Lightning makes the loader's iterator, which draws a number, sometimes before an epoch's start
    (after a restart) and sometimes after it.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: lightning.Trainer, *_) -> None:
        torch.manual_seed(self.seed * 1_000_003 + trainer.global_step * trainer.world_size + trainer.global_rank)


class _Report(Callback):
    """Tells ``progress`` about every tenth step."""

    def __init__(self, progress: Progress):
        self.progress = progress

    def on_train_batch_end(self, trainer: lightning.Trainer, *_) -> None:
        total = trainer.num_training_batches * trainer.max_epochs
        if trainer.global_step % 10 == 0 or trainer.global_step == total:
            self.progress(trainer.global_step, int(total), f"loss {float(trainer.callback_metrics.get('loss', 'nan')):.3f}")


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
    ):
        warnings.filterwarnings("ignore", message)
