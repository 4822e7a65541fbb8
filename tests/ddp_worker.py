"""One process of test_ddp.py: python ddp_worker.py RANK RENDEZVOUS_FILE OUTPUT_FILE. It sees one image of two."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

sys.path.append(str(Path(__file__).parent))

from cls2det_ops import RoIMap, roi_kd_loss
from op_cases import DIFFERENTIABLE_OPS, Case, make_case

WORLD = 2

# ---- every operator on its own ----


class Gains(torch.nn.Module):
    """Parameters that every differentiable argument of a case goes through: one for each column, or channel."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.gains = torch.nn.ParameterDict(
            {name: torch.nn.Parameter(torch.linspace(0.9, 1.1, case.tensors[name].shape[1])) for name in case.gradients}
        )

    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        shaped = {name: gain.view(1, -1, *[1] * (tensors[name].dim() - 2)) for name, gain in self.gains.items()}
        return tensors | {name: tensors[name] * gain for name, gain in shaped.items()}


def shard(name: str, rank: int) -> dict[str, Tensor]:
    """The part of a batch of two images that one process sees: its image, and the rows on it."""
    k = 9
    tensors, larger = make_case(name, k=k).tensors, make_case(name, k=k + 1).tensors
    of_rows = [key for key, value in tensors.items() if len(value) != len(larger[key])]
    indices = [key for key in ("image_index", "target_image_index") if key in tensors]
    if "target_image_index" in tensors:
        image = tensors["target_image_index"][tensors["matched_idxs"]]
    else:
        image = tensors.get("image_index", torch.arange(k) % WORLD)  # rows of no image, or whole maps: in turn
    part = {key: value[image == rank] if key in of_rows else value for key, value in tensors.items()}
    for key, value in part.items():
        if key in indices:
            part[key] = torch.where(value == rank, 0, -1)
        elif indices and value.dim() == 4 and key not in of_rows:  # the maps of the images
            part[key] = value[rank : rank + 1]
    return part


def op_loss(case: Case, tensors: dict[str, Tensor], student: torch.nn.Module, normalizer: float) -> Tensor:
    arguments = student({name: value.float() if value.is_floating_point() else value for name, value in tensors.items()})
    options = case.options | ({"reduction": "sum"} if case.rows else {})
    output = case.function(**arguments, **options)
    if output.dim() > 0:  # anything per box or image: any function of it will do
        output = output.square().view(len(output), -1).mean(1).sum()
    elif not case.rows:  # the composite divides by the rows it sees
        output = output * len(arguments["boxes"])
    return output / normalizer


def op_results(name: str, rank: int | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one operator, for one of two processes, or for one that sees the whole batch."""
    case = make_case(name)
    student: torch.nn.Module = Gains(case)
    rows = (case.tensors[name] for name in ("boxes", "matched_idxs", *case.gradients) if name in case.tensors)
    count = float(len(next(rows)))
    if rank is None:
        loss = op_loss(case, case.tensors, student, count)
    else:
        student = DistributedDataParallel(student)
        loss = op_loss(case, shard(name, rank), student, count / WORLD)
    loss.backward()
    return loss.detach(), gradients(student)


# ---- the composite in a stand-in for a detector, also in steps without positives ----

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


def steps(rank: int) -> list[dict[str, Tensor]]:
    student = DistributedDataParallel(Student())
    results = []
    for step in STEPS:
        image = step[rank]
        student.zero_grad()
        total = torch.tensor(float(POSITIVES[image]))
        dist.all_reduce(total)
        normalizer = total.clamp(min=1) / WORLD  # DDP averages, so each process divides by its share of the sum
        loss_of(student, image, normalizer).backward()
        results.append(gradients(student))
    return results


def main(rank: int, rendezvous: str, output: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD, timeout=timedelta(seconds=90)
    )
    results: dict[str, object] = {"steps": steps(rank)}
    for name in DIFFERENTIABLE_OPS:
        loss, grads = op_results(name, rank)
        dist.all_reduce(loss)
        results[name] = (loss / WORLD, grads)
    if rank == 0:
        torch.save(results, output)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # at a usual exit gloo now and then ends the process with an error after all is done


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
