"""What keeps a training from ending with nothing: whole checkpoints, losses that stay finite, and one run per folder."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from cls2det.errors import some
from cls2det.files import is_first_process, not_finite, write_torch

REMEDY = (
    "A lower --optim.learning-rate, --run.precision 32-true, smaller weights of the terms, or a look at the data may help. "
    "They make another run: give another --out with them, as the same command would meet the same again"
)
PATIENCE = 10.0  # seconds; loader workers of a run that was killed notice it within five, and end


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces, and renames it.

    Lightning's own goes through a file in TMPDIR. Where that is another disk, it is copied over the old one in place, and a kill
    or a full disk in the middle leaves neither.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        check_weights(checkpoint["state_dict"], f"{path} is not written")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_torch(path, checkpoint)


def check_weights(weights: dict[str, Tensor], consequence: str) -> None:
    """ValueError for weights that are NaN or infinite."""
    if names := not_finite(weights):
        raise ValueError(
            f"{consequence}: the loss was finite, but these weights are not: {some(names)}. A gradient was too large. {REMEDY}"
        )


class FiniteLosses(Callback):
    """Stops every process at the first loss that is NaN or infinite, before a checkpoint of what follows is written.

    Losses are looked at where the log is written, and before a checkpoint: the look waits for a GPU. On a CPU without other
    processes it costs nothing, and every step is looked at.

    Args:
        folder: of the run, for the message
    """

    def __init__(self, folder: Path):
        self.folder, self.step = folder, 0
        self.losses: list[tuple[int, dict[str, Tensor]]] = []  # by step, of this process, since the last look

    def on_train_start(self, trainer: lightning.Trainer, *_) -> None:
        """A checkpoint that only some processes can see would let them go on from different steps."""
        steps = _gathered(trainer, trainer.global_step)
        if len(set(steps)) > 1:
            raise ValueError(
                f"the processes go on from different steps ({some([str(step) for step in steps])}): they do not see the same "
                f"{self.folder / 'last.ckpt'}. Give an --out that all machines share"
            )

    def on_train_batch_start(self, trainer: lightning.Trainer, *_) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, module, outputs, _batch, index: int) -> None:
        terms = {"loss": outputs["loss"]} | getattr(module, "terms", {})
        self.losses.append((self.step, {name: term.detach() for name, term in terms.items()}))
        is_last = index + 1 == trainer.num_training_batches
        is_cheap = trainer.world_size == 1 and outputs["loss"].device.type == "cpu"
        if is_last or is_cheap or (index + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.look(trainer)
        if is_last and trainer.strategy.reduce_boolean_decision(bool(not_finite(module.state_dict())), all=False):
            check_weights(module.state_dict(), f"stopped after step {self.step}")
            raise ValueError(f"stopped after step {self.step}: the weights of another process are not finite. {REMEDY}")

    def look(self, trainer: lightning.Trainer) -> None:
        losses, self.losses = self.losses, []
        values = torch.stack([term.float().reshape(()) for _, terms in losses for term in terms.values()])
        is_finite = bool(values.isfinite().all())  # waits for the device
        if trainer.strategy.reduce_boolean_decision(is_finite):
            return
        faults = [fault for fault in _gathered(trainer, None if is_finite else _first_fault(losses)) if fault]
        step, names = min(faults)
        last = self.folder / "last.ckpt"
        kept = f"{last} is from before" if last.is_file() else "No checkpoint was written yet"
        raise ValueError(f"stopped at step {step}: not finite: {', '.join(names)}. {kept}. {REMEDY}")


def _first_fault(losses: list[tuple[int, dict[str, Tensor]]]) -> tuple[int, list[str]]:
    """The first step with a loss that is not finite, and its terms that are not; the sum only where no term is named."""
    for step, terms in losses:
        values = {name: float(term) for name, term in terms.items()}
        names = not_finite({name: torch.tensor(value) for name, value in values.items()})
        if names:
            return step, [f"{name} ({values[name]})" for name in names if name != "loss" or len(names) == 1]
    raise AssertionError("every loss is finite")


def _gathered(trainer: lightning.Trainer, value: Any) -> list[Any]:
    """The value of every process."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


class OwnSignals(Callback):
    """Leaves SIGTERM to whoever started the training. Lightning would let it wait for the end of a step, and end with status 0."""

    def setup(self, *_, **__) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, *_) -> None:
        with contextlib.suppress(ValueError):  # not the main thread: Lightning has set no handler either
            signal.signal(signal.SIGTERM, self.handler)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """No second command trains in the folder meanwhile. The system ends the lock with the process, however that ends.

    Raises:
        FileExistsError: another command trains there, and still does after ten seconds
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    if not is_first_process():
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):  # a network disk that knows no locks
                    break
                if time.monotonic() > deadline:
                    raise FileExistsError(
                        f"another command trains in {folder}; wait for its end, or give another --out"
                    ) from None
            time.sleep(0.1)
        yield
    finally:
        os.close(handle)
