"""Run by torchrun in test_bank_ddp.py: two gloo processes train with a bank, and write what they read and what they computed."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from bank_cases import KD_CLS
from cls2det.teachers.bank import Bank
from cls2det.training.detector import DetectorTraining
from cls2det.training.settings import Optim, Run
from training_cases import distill

STEPS, BATCH, SEED = 2, 2, 3  # BATCH images in each process


def recorded() -> tuple[list, list]:
    """What each step reads of the bank, and its weights before and gradients after the backward; filled by the training."""
    reads, steps = [], []
    read = Bank.logits_of

    def logits_of(bank, origins):
        rows = read(bank, origins)
        reads.append({"annotation_ids": torch.from_numpy(origins["annotation_id"].copy()), "rows": rows.clone()})
        return rows

    def on_train_batch_start(module, *_):
        steps.append({"weights": {name: value.clone() for name, value in module.detector.state_dict().items()}})

    def on_after_backward(module):
        parameters = module.detector.named_parameters()
        steps[-1]["gradients"] = {name: value.grad.clone() for name, value in parameters if value.grad is not None}

    Bank.logits_of = logits_of
    DetectorTraining.on_train_batch_start, DetectorTraining.on_after_backward = on_train_batch_start, on_after_backward
    return reads, steps


def main(data: Path, bank: Path, out: Path) -> None:
    torch.set_num_threads(1)
    reads, steps = recorded()
    distill(
        data,
        out / "run",
        bank=[bank],
        classifier=KD_CLS,
        term_weights="fixed",
        augmentation="ssd",
        images=None,
        seed=SEED,
        optim=Optim(steps=STEPS, batch_size=BATCH),
        run=Run(device="cpu", devices=2, checkpoint_every=STEPS, log_every=1),
    )
    torch.save({"reads": reads, "steps": steps}, out / f"{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
