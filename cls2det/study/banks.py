"""The banks of a plan: which there are, with which options, and how one is made between the teachers and the students."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from cls2det.commands.bank import bank, check_bank
from cls2det.commands.options import BankOptions
from cls2det.study.jobs import Job
from cls2det.study.place import Place, named_banks, parsed, seed_of, with_files
from cls2det.study.plan import Plan, merge
from cls2det.teachers.bank_file import read_header
from cls2det.training.progress import Progress


@dataclasses.dataclass(frozen=True)
class BankOfSweep:
    """A bank that arms read.

    Attributes:
        name: what the progress display calls it
        options: of ``cls2det bank``
    """

    name: str
    options: BankOptions

    @property
    def is_done(self) -> bool:
        """Whether it is there, and its teacher too: once a teacher has been trained anew, ``bank`` compares the two."""
        return self.options.out.is_file() and self._is_there

    @property
    def _is_there(self) -> bool:
        teacher = self.options.teacher
        return teacher is None or teacher.suffix != ".pt" or teacher.is_file()

    @property
    def job(self) -> Job:
        return Job(self.name, make_bank, (self.options,))

    def check(self) -> None:
        """FileExistsError if the file, finished or not, is a bank of other options, other data or another teacher."""
        if self._is_there:
            check_bank(self.options)

    def summary(self) -> str:
        """A sentence about the finished bank, for the report."""
        about, places, begin, end = read_header(self.options.out)
        boxes = places["annotation_ids"][1][0]
        views = f"{about['views']} view{'s' if about['views'] > 1 else ''}"
        views += f" of augmentation {about['augmentation']}" + (", mirrored too" if about["flip"] else "")
        return f"{self.name}: {boxes} boxes, {views}, {(end - begin) / 2**20:.1f} MiB"


def make_bank(options: BankOptions, progress: Progress) -> None:
    bank(options, progress)


def banks_of(plan: Plan, place: Place) -> list[BankOfSweep]:
    """Those banks that an arm, or all of them, name.

    Split, augmentation and size of the pictures are those of the arms where the bank does not say otherwise, so that its views
    are what they train on.
    """
    shared = {
        "split": plan.train.get("train_split", "train"),
        "augmentation": plan.train.get("augmentation", "none"),
        "max_image_side": plan.train.get("max_image_side"),
    }
    banks = []
    for name in used_banks(plan):
        own = {key: value for key, value in plan.banks[name].items() if key != "per_seed"}
        for seed in dict.fromkeys(seed_of(plan, name, seed) for seed in plan.seeds):
            where = {"data_root": str(place.data_root), "out": str(place.bank(name, seed))}
            last = {**where, "device": place.run.get("device", "auto")}
            merged = merge(shared, own, {} if seed is None else {"seed": seed}, last)
            label = f"bank {place.bank(name, seed).stem}"
            banks.append(BankOfSweep(label, parsed(label, BankOptions, with_files(merged, plan, place, seed))))
    return banks


def used_banks(plan: Plan) -> list[str]:
    users = (plan.train, *plan.arms.values())
    names = {name for user in users for name in named_banks(user)}
    return [name for name in plan.banks if name in names]


def check_devices(banks: Iterable[BankOfSweep]) -> None:
    """ValueError for a bank that several processes make: the jobs of a sweep run side by side, one per GPU."""
    for made in banks:
        if made.options.devices > 1:
            raise ValueError(
                f"{made.name}: a bank of a sweep is made by one process, found devices {made.options.devices}. Leave it at 1, or "
                "make the bank with `cls2det bank` and give its path to the arms"
            )
