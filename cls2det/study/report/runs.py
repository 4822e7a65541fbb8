"""Finds trained and evaluated runs in folders, reads what they left, and says which arm each belongs to.

A run is a folder with ``options.json`` (of ``cls2det train`` or ``distill``) and ``<split>/evaluation.json``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cls2det.commands.identity import present_run
from cls2det.settings import DISTILLERS

WITH_STUDENT = ("train", "distill")  # commands whose runs are compared
FEW_STEPS = 500  # below them a detector has hardly begun
# options that say what is distilled
DISTILLED = ("distillers", "detector_teacher", "encoder", "encoder_weights", "term_weights", "balance", *DISTILLERS)
TERM_NAMES = {"kd_cls_weight": "KD-cls", "loc_weight": "loc", "kd_loc_weight": "KD-loc"}
METHOD_NAMES = {"chen": "Chen", "harmony": "harmony", "regions": "regions"}  # of the others, the upper case
# What runs of one arm may differ in: it does not say what is learnt, or goes with the seed.
NOT_THE_ARM = (
    "seed",
    "name",
    "command",
    "data_root",
    "data.",
    "weights",
    "val_split",
    "out",
    "teacher",
    "bank",
    "start",
    "run.",
)
# But precision, averaged weights and the number of processes do change what is learnt: a note says where they differ.
NOT_LEARNT = (*NOT_THE_ARM[:-1], "run.checkpoint_every", "run.skip_bad_images")


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One training and its evaluation. ``result``: columns of ``evaluation.json`` and ``report.json`` by name."""

    folder: Path
    student: str
    arm: str
    seed: int
    options: dict[str, Any]
    result: dict[str, Any]

    @property
    def data_root(self) -> Path:
        return Path(self.result.get("data_root") or self.options["data_root"])


def find_runs(folders: Sequence[str | Path], split: str) -> tuple[list[RunRecord], list[str]]:
    """Runs under the folders that were evaluated on the split, baselines first, and notes on what is odd about them.

    Raises ValueError if there are none, or if two of them are the same seed of the same arm of the same student.
    """
    by_folder: dict[Path, RunRecord] = {}
    without: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder} to look for runs in")
        runs = []
        for file in sorted(folder.rglob("options.json")):
            options = read_json(file)
            if not isinstance(options, dict) or options.get("command") not in WITH_STUDENT:
                continue
            if (file.parent / split / "evaluation.json").is_file():
                runs.append(_read(file.parent, present_run(options), split))
            else:
                without.append(file.parent)
        runs.sort(key=lambda run: (_count_terms(run.options) if run.arm != "baseline" else -1, natural(run.arm), run.seed))
        for run in runs:
            by_folder.setdefault(run.folder.resolve(), run)
    if not by_folder:
        raise ValueError(_nothing_found(folders, split, without))
    runs = _tell_apart(list(by_folder.values()))
    _check(runs, split)
    runs.sort(key=lambda run: run.arm != "baseline")
    return runs, _notes(runs, split, without)


def arm_name(options: dict[str, Any]) -> str:
    """``options["name"]``, or what is distilled: baseline, + KD-cls, + loc, + loc + KD-loc, + all, + all, auto, + FKD …"""
    if options.get("name"):
        return options["name"]
    settings, distillers = options.get("classifier") or {}, _distillers(options)
    teacher = bool(options.get("teacher") or options.get("bank"))
    terms = [
        name
        for weight, name in TERM_NAMES.items()
        if settings.get(weight) and (teacher or weight == "loc_weight") and "classifier" in distillers
    ]
    terms = ["all"] if len(terms) == len(TERM_NAMES) else terms
    terms += [METHOD_NAMES.get(name, name.upper()) for name in distillers if name != "classifier"]
    control = settings.get("control", "none")
    if not terms:
        return "baseline"
    notes = [control] if control != "none" else []
    notes += ["auto"] if options.get("term_weights") == "auto" else []
    notes += ["bank"] if options.get("bank") else []
    return ", ".join(["".join(f" + {term}" for term in terms)[1:], *notes])


def _distillers(options: dict[str, Any]) -> list[str]:
    return options.get("distillers", ["classifier"]) if options["command"] == "distill" else []


def by_arm(runs: Iterable[RunRecord], student: str | None = None) -> dict[str, list[RunRecord]]:
    """Runs (of one student) by arm, in order of first appearance."""
    arms: dict[str, list[RunRecord]] = {}
    for run in runs:
        if student in (None, run.student):
            arms.setdefault(run.arm, []).append(run)
    return arms


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not json: {error}") from None


def natural(text: str) -> list:
    """Sort key with numbers in order of value: 9 before 10."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(1, float(part), "") if number % 2 else (0, 0.0, part) for number, part in enumerate(parts)]


def _read(folder: Path, options: dict[str, Any], split: str) -> RunRecord:
    missing = {"student", "seed", "data_root"} - set(options)
    if missing:
        raise ValueError(f"{folder}/options.json lacks {', '.join(sorted(missing))}")
    training = read_json(folder / "report.json") if (folder / "report.json").is_file() else {}
    result = training | read_json(folder / split / "evaluation.json")
    for name, value in result.items():
        values = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in values):
            raise ValueError(f"{folder}: {name} is {value}; evaluate the run again, or leave it out")
    return RunRecord(folder, options["student"], arm_name(options), options["seed"], options, result)


def _count_terms(options: dict[str, Any]) -> int:
    """How many terms have a weight: arms are shown in this order."""
    settings, distillers = options.get("classifier") or {}, _distillers(options)
    terms = [weight for weight in TERM_NAMES if settings.get(weight) and "classifier" in distillers]
    return len(terms) + len([name for name in distillers if name != "classifier"])


def _nothing_found(folders: Sequence[str | Path], split: str, without: list[Path]) -> str:
    text = (
        f"no run in {', '.join(map(str, folders))}: looked, at every depth, for a folder with options.json "
        f"(of train or distill) and {split}/evaluation.json"
    )
    if without:
        others = sorted({file.parent.name for folder in without for file in folder.glob("*/evaluation.json")})
        text += f"; {len(without)} trained but not evaluated on {split}, such as {without[0]}" + (
            f" (there is: {', '.join(others)})" if others else ""
        )
        text += f"; cls2det evaluate --weights {without[0]}/weights.pt --split {split} --out {without[0]}/{split} … does"
    return text


def _flat(options: dict[str, Any], prefix: str = "", apart: tuple[str, ...] = NOT_THE_ARM) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= _flat(value, f"{prefix}{name}.", apart) if isinstance(value, dict) else {prefix + name: value}
    return {name: value for name, value in flat.items() if not name.startswith(apart)}


def differing(runs: Iterable[RunRecord], apart: tuple[str, ...] = NOT_THE_ARM) -> list[str]:
    """Names of the options in which runs differ, without those that begin with one of ``apart``."""
    flats = [_flat(run.options, apart=apart) for run in runs]
    names = {name: None for flat in flats for name in flat}
    return [name for name in names if any(flat.get(name) != flats[0].get(name) for flat in flats)]


def _tell_apart(runs: list[RunRecord]) -> list[RunRecord]:
    """Runs that were given no name but differ in options become arms of their own, named after the values."""
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for run in runs:
        if not run.options.get("name"):
            groups.setdefault((run.student, run.arm), []).append(run)
    renamed = {}
    for group in groups.values():
        if names := differing(group):
            for run in group:
                flat = _flat(run.options)
                values = ", ".join(f"{name.split('.')[-1]}={flat.get(name)}" for name in names)
                renamed[run.folder] = dataclasses.replace(run, arm=f"{run.arm} ({values})")
    return [renamed.get(run.folder, run) for run in runs]


def _check(runs: list[RunRecord], split: str) -> None:
    first: dict[tuple, RunRecord] = {}
    for run in runs:
        other = first.setdefault((run.student, run.arm, run.seed), run)
        if other is not run:
            raise ValueError(
                f"{other.folder} and {run.folder} are both {run.student}, {run.arm}, seed {run.seed}: "
                "train with --name to tell them apart, or leave one out"
            )
        if run.data_root.resolve() != runs[0].data_root.resolve():
            raise ValueError(
                f"{runs[0].folder} was evaluated on {split} of {runs[0].data_root}, {run.folder} on that of {run.data_root}: "
                "report them apart"
            )


def _notes(runs: list[RunRecord], split: str, without: list[Path]) -> list[str]:
    notes = []
    if without:
        shown = ", ".join(f"`{folder}`" for folder in without[:3]) + (" …" if len(without) > 3 else "")
        notes.append(f"Left out, for want of {split}/evaluation.json: {len(without)} trained run(s): {shown}.")
    for student in dict.fromkeys(run.student for run in runs):
        arms = by_arm(runs, student)
        for arm, group in arms.items():
            if names := differing(group, NOT_LEARNT):
                notes.append(f"**Runs of {student}, {arm} differ in {', '.join(names)}**; their mean is of unlike things.")
        others = [name for name in differing(group[0] for group in arms.values()) if name.split(".")[0] not in DISTILLED]
        if others:
            notes.append(f"Arms of {student} differ in more than what is distilled: {', '.join(others)}.")
    if few := [run.result["steps"] for run in runs if (run.result.get("steps") or FEW_STEPS) < FEW_STEPS]:
        notes.append(f"**{len(few)} run(s) had {min(few)} to {max(few)} steps**: too short a training flatters the teacher.")
    return notes
