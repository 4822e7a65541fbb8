"""Where the parts of a sweep lie, and the options of its trainings with files in place of names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from cls2det.commands.options import BankOptions, DistillOptions, TeacherOptions
from cls2det.commands.parsing import parse_options
from cls2det.models.zero_shot import PREFIX as ZERO_SHOT
from cls2det.study.plan import Plan

Options = TypeVar("Options", bound=TeacherOptions | DistillOptions | BankOptions)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a sweep's data are, where its trainings are written, and how they run.

    Attributes:
        data_root: the data
        out: the sweep's folder
        run: options of ``run`` for every training
    """

    data_root: Path
    out: Path
    run: dict[str, Any]

    def teacher(self, name: str, seed: int | None) -> Path:
        return self.out / "teachers" / _of_seed(name, seed)

    def bank(self, name: str, seed: int | None) -> Path:
        return self.out / "banks" / f"{_of_seed(name, seed)}.safetensors"

    def detector(self, name: str) -> Path:
        return self.out / "detectors" / name

    def student(self, label: str, seed: int) -> Path:
        slug = re.sub(r"[^\w=.,]+", "-", label.replace("+ ", "")).strip("-").lower()
        return self.out / "runs" / f"{slug}-seed{seed}"

    def options(self, folder: Path) -> dict[str, Any]:
        return {"data_root": str(self.data_root), "out": str(folder), "run": self.run}


def _of_seed(name: str, seed: int | None) -> str:
    return name if seed is None else f"{name}-seed{seed}"


def with_files(options: Mapping[str, Any], plan: Plan, place: Place, seed: int | None) -> dict[str, Any]:
    """``options`` with paths in place of the names of the sweep's teachers, banks and detectors.

    Raises:
        ValueError: a teacher, start or bank that is neither a file nor one of the sweep's
    """
    paths: dict[str, Any] = {}
    for key in ("teacher", "start"):
        name = options.get(key)
        if name in plan.teachers:
            paths[key] = str(place.teacher(name, seed if plan.teachers[name].get("per_seed") else None) / "weights.pt")
        elif name and not name.startswith(ZERO_SHOT) and not Path(name).is_file():
            raise _unknown(key, name, "teachers", plan.teachers)
    if banks := named_banks(options):
        paths["bank"] = [
            name if name not in plan.banks else str(place.bank(name, seed_of(plan, name, seed))) for name in banks
        ]
        if unknown := [name for name in banks if name not in plan.banks and not Path(name).is_file()]:
            raise _unknown("bank", unknown[0], "banks", plan.banks)
    if options.get("detector_teacher") in plan.detectors:
        paths["detector_teacher"] = str(place.detector(options["detector_teacher"]) / "weights.pt")
    return {**options, **paths}


def named_banks(options: Mapping[str, Any]) -> list[str]:
    """Banks that the options of a training name: one, or several."""
    banks = options.get("bank") or []
    return [banks] if isinstance(banks, str) else list(banks)


def seed_of(plan: Plan, bank: str, seed: int | None) -> int | None:
    """The seed in a bank's name: that of the arm, where the bank or its teacher is one per seed."""
    options = plan.banks[bank]
    teacher = plan.teachers.get(str(options.get("teacher")), {})
    return seed if options.get("per_seed") or teacher.get("per_seed") else None


def parsed(name: str, record: type[Options], options: dict[str, Any]) -> Options:
    """The options as a record; ValueError that names the part of the sweep where they do not fit."""
    try:
        return parse_options(record, options)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _unknown(key: str, name: str, kind: str, known: Mapping[str, Any]) -> ValueError:
    return ValueError(
        f"{key}: {name} is neither a file nor one of the sweep's {kind} ({', '.join(known) or 'there are none'})"
    )
