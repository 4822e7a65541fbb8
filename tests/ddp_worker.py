"""One process of test_ddp.py: python ddp_worker.py RANK WORLD RENDEZVOUS_FILE OUTPUT_FILE."""

from __future__ import annotations

import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from cls2det_ops import RoIMap, roi_kd_loss

POSITIVES = (7, 0, 5)  # of each image; the second one has none
STEPS = ((0, 2), (1, 2), (1, 1))  # the image that each of the two processes sees


class Student(torch.nn.Module):
    """A stand-in for a detector: logits and boxes of the positives of one image from its features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.logits = torch.nn.Linear(4, 4)
        self.boxes = torch.nn.Linear(4, 4)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        centre = torch.tensor([2.0, 3.0, 9.0, 8.0])
        return self.logits(features), centre + self.boxes(features).tanh()


def loss_of(student: torch.nn.Module, image: int, normalizer: torch.Tensor) -> torch.Tensor:
    random = torch.Generator().manual_seed(100 + image)
    k = POSITIVES[image]
    logits, boxes = student(torch.randn(k, 4, generator=random))
    pixels = torch.randn(1, 3, 12, 12, generator=random)
    teacher = torch.randn(2, 3, generator=random)
    targets = torch.tensor([[1.0, 1.0, 9.0, 9.0], [3.0, 2.0, 11.0, 10.0]])
    match = torch.randint(2, (k,), generator=random)
    index = torch.zeros(2, dtype=torch.int64)
    return roi_kd_loss(logits, boxes, teacher, targets, match, index, RoIMap(pixels, 2, 6), normalizer=normalizer).loss


def gradients(student: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name.removeprefix("module."): parameter.grad.clone() for name, parameter in student.named_parameters()}


def main(rank: int, world: int, rendezvous: str, output: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world, timeout=timedelta(seconds=90)
    )
    student = DistributedDataParallel(Student())
    found = []
    for step in STEPS:
        image = step[rank]
        student.zero_grad()
        total = torch.tensor(float(POSITIVES[image]))
        dist.all_reduce(total)
        normalizer = total.clamp(min=1) / world  # DDP averages, so each process divides by its share of the sum
        loss_of(student, image, normalizer).backward()
        found.append(gradients(student))
    if rank == 0:
        torch.save(found, output)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
