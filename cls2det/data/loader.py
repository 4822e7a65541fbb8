"""Batches of detection data: seeded orders that a restart repeats, and every image once for an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from cls2det.data.dataset import DetectionData


def train_loader(
    data: DetectionData,
    *,
    batch_size: int,
    steps_per_epoch: int,
    seed: int,
    loader_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[tuple[Tensor, dict[str, Tensor]]]:
    """Augmented batches in a seeded order; ``batch_size`` is per process. ``pin_memory`` speeds up the way to a GPU."""
    if loader_workers:
        _allow_open_files()
    sampler = SeededSampler(len(data), steps_per_epoch * batch_size, seed)
    return DataLoader(
        data,
        batch_size,
        sampler=sampler,
        num_workers=loader_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=loader_workers > 0,
    )


def test_loader(
    data: DetectionData, *, batch_size: int = 32, loader_workers: int = 0, pin_memory: bool = False, shared: bool = False
) -> DataLoader[tuple[Tensor, dict[str, Tensor]]]:
    """Every image once, in order, not augmented; ``shared``: over the processes of a distributed run."""
    if loader_workers:
        _allow_open_files()
    return DataLoader(
        data,
        batch_size,
        sampler=_SharedOrder(len(data)) if shared else None,
        num_workers=loader_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
    )


def collate(items: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images stay a list: torchvision's detectors resize and batch them, on the device."""
    images, targets = zip(*items, strict=True)
    return list(images), list(targets)


class SeededSampler(Sampler[tuple[int, int]]):
    """An order of (index, augmentation seed) that is a function of (seed, epoch) alone.

    So a run that is resumed at an epoch's start gets the items that the unbroken run would have got, and two runs of one
    seed get the same pictures in the same order.

    An "epoch" is not a pass over the data. It is ``length`` items per process, the stretch between two checkpoints: Lightning
    writes checkpoints at the ends of epochs. The data is walked through in permutations that follow each other without a
    break, and each of the ``world`` processes of a distributed run takes every ``world``-th item.
    """

    def __init__(self, size: int, length: int, seed: int):
        self.size, self.length, self.seed, self.epoch = size, length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rank, world = rank_and_world()
        first = self.epoch * self.length * world + rank
        number, order = -1, torch.empty(0)
        for position in range(first, first + self.length * world, world):
            if position // self.size != number:
                number = position // self.size
                order = torch.randperm(self.size, generator=torch.Generator().manual_seed(mix(self.seed, 0, number)))
            yield int(order[position % self.size]), mix(self.seed, 1, position)


class _SharedOrder(Sampler[int]):
    """0, 1, … without gaps or repeats over all processes: torch's DistributedSampler repeats items to make shares equal."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        rank, world = rank_and_world()
        return len(range(rank, self.size, world))

    def __iter__(self) -> Iterator[int]:
        rank, world = rank_and_world()
        return iter(range(rank, self.size, world))


def mix(seed: int, stream: int, number: int) -> int:
    """32 bits from three numbers (torch's CPU generator uses no more of a seed)."""
    return int.from_bytes(blake2b(f"{seed}/{stream}/{number}".encode(), digest_size=4).digest(), "big")


def rank_and_world() -> tuple[int, int]:
    """Rank of this process, and the number of processes of the run."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _allow_open_files(count: int = 65536) -> None:
    """Raise this process's limit of open files as far as the system lets it.

    Every tensor that a loader worker sends takes one, four per image: the usual limit of 1024 is passed by batches of
    128, and then the worker dies, or hangs.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
