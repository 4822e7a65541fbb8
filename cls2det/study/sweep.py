"""Sweeps: arms by seeds of trainings from one YAML file, as jobs side by side, and their report.

    extends: demo            another sweep's file or name, of which this one says the changes
    scenes: {...}            settings of the demo's scenes, made first; or give --data-root
    teachers:                what ``cls2det teacher`` shall train first, by name
      teacher: {...}
      own: {per_seed: true, ...}     one per seed, with the seed of the arm
    detectors:               what ``cls2det train`` shall train next, by name, for ``detector_teacher`` of the arms
      wide: {student: ssd_compact_wide, ...}
    recipe: ssd300           a recipe of ``cls2det distill`` under all arms (a teacher may have one too)
    train: {...}             options of ``cls2det distill`` that all arms share
    arms:                    what each changes; ``teacher`` and ``start`` may name a teacher of above
      baseline: {}
      + KD-cls: {teacher: teacher, distill: {kd_cls_weight: 0.4}}
    grid:                    more arms: every combination of these, named after the values
      distill.temperature: [1, 2, 3]
    students: [...]          every arm with each of these students; default: the student of ``train``
    seeds: [11, 12, 13]
    split: val               split that is evaluated
    notes: [...]             sentences under the report's tables

Arms of one seed see the same images in the same order from the same weights: they differ in what they change alone. No term
is distilled unless an arm, or ``train``, says so.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from torchvision.models import get_model

from cls2det import commands
from cls2det.cli import parse_options
from cls2det.distill import DETECTOR_METHODS as METHODS
from cls2det.distill import TERMS, DetectorTeacher, Distillation
from cls2det.files import write_json
from cls2det.models.students import build_student
from cls2det.recipes import find_recipe
from cls2det.study.jobs import Job, run_jobs
from cls2det.study.report import report
from cls2det.study.scenes import SceneSettings, make_scenes
from cls2det.teachers.detector import PREFIX
from cls2det.training.progress import Progress, progress_display
from cls2det.training.runs import check_claim, run_record
from cls2det.training.settings import Device, Run, torchrun_processes

KEYS = {
    "recipe",
    "scenes",
    "teachers",
    "detectors",
    "train",
    "arms",
    "grid",
    "students",
    "seeds",
    "split",
    "notes",
    "title",
    "quick",
}

NAMED = ("teachers", "detectors")  # what is trained before the students, by name


def sweep(
    config: str,
    out: Path,
    data_root: Path | None = None,
    recipe: str | None = None,
    start: Path | None = None,
    seeds: list[int] | None = None,
    arms: list[str] | None = None,
    split: str | None = None,
    device: Device = "auto",
    precision: str | None = None,
    workers: int = 0,
    fresh: bool = False,
) -> dict:
    """Train every arm of a sweep with every seed, evaluate, and report.

    Run it again with the same folder after Ctrl-C: it goes on from the last checkpoints, and does what is missing.

    Args:
        config: a sweep's YAML file or name, see ``cls2det recipes``; `cls2det recipes --name study` shows one to begin from
        out: folder for everything that is written
        data_root: COCO-format data; none if the sweep makes scenes
        recipe: in place of the sweep's
        start: weights from which the backbone of every student starts, in place of the sweep's
        seeds: in place of the sweep's
        arms: only these
        split: in place of the sweep's
        device: auto takes a GPU if there is one
        precision: of Lightning: 32-true, bf16-mixed, 16-mixed; in place of the sweep's
        workers: trainings at a time; 0: one per GPU, or per core and at most 4
        fresh: forget what is in the folder
    """
    given = {"recipe": recipe, "seeds": seeds, "split": split}
    plan = load_sweep(config) | {key: value for key, value in given.items() if value}
    if start:
        plan["train"] = plan["train"] | {"start": str(start)}
    return run_sweep(plan, out, data_root, arms, device, precision, workers, fresh)


def load_sweep(config: str | Path) -> dict[str, Any]:
    """The content of a sweep's file, on top of what it extends; arms and grid are replaced whole, not merged."""
    path = find_recipe(config)
    content = yaml.safe_load(path.read_text())
    if isinstance(content, dict) and "extends" in content:
        whole = load_sweep(content.pop("extends"))
        content = _merged(whole, content) | {key: content[key] for key in ("arms", "grid") if key in content}
    if not isinstance(content, dict) or not {"train", "seeds"} <= set(content) <= KEYS:
        raise ValueError(f"{path} is not a sweep: expected train, seeds and some of {', '.join(sorted(KEYS))}")
    for key, kind in {"seeds": list, **dict.fromkeys(("train", "arms", "grid", *NAMED), dict)}.items():
        if not isinstance(content.get(key) or kind(), kind):
            raise ValueError(f"{path}: {key} must be a {'list' if kind is list else 'mapping'}, found {content[key]!r}")
    for key in ("arms", *NAMED):
        for name, options in (content.get(key) or {}).items():
            if not isinstance(options or {}, dict):
                raise ValueError(f"{path}: {name} of {key} must be a mapping of options, found {options!r}")
    return content


def run_sweep(
    plan: dict[str, Any],
    out: Path,
    data_root: Path | None,
    only: Sequence[str] | None,
    device: Device,
    precision: str | None,
    workers: int,
    fresh: bool,
) -> dict:
    """What ``sweep`` does, with the file's content."""
    console, began, out = Console(), time.time(), Path(out)
    if not plan["seeds"]:
        raise ValueError("a sweep needs at least one seed")
    if workers < 0:
        raise ValueError(f"--workers must be 0 or more, got {workers}")
    if bool(data_root) == bool(plan.get("scenes")):
        raise ValueError("give --data-root, or a sweep that makes its scenes, and not both")
    arms = {name: arm for name, arm in _arms(plan).items() if not only or name in only}
    if unknown := set(only or ()) - set(arms):
        raise ValueError(f"no arm {', '.join(sorted(unknown))}; there are {', '.join(_arms(plan))}")
    plan = plan | {
        "train": _on_recipe({"recipe": plan.get("recipe"), **plan["train"]}),
        **{
            kind: {name: _on_recipe(options) for name, options in plan.get(kind, {}).items()}
            for kind in ("teachers", "detectors")
        },
    }
    run = {"device": Run(device).torch_device.type} | ({"precision": precision} if precision else {})
    gpus = _gpus() if run["device"] == "cuda" else []
    workers = workers or len(gpus) or min(_cores(), 4)
    split, trainings = plan.get("split", "val"), len(arms) * len(plan["seeds"]) * len(plan.get("students", [None]))
    root = Path(data_root or out / "scenes")
    detectors = _detector_jobs(plan, arms, root, out, split, run)
    jobs = _teacher_jobs(plan, [*arms.values(), *plan["detectors"].values()], root, out, split, run)
    runs = _student_jobs(plan, arms, root, out, split, run)
    _check_processes((jobs | detectors | runs).values())
    _claim(out, plan, fresh)
    console.print(f"[bold]{out}[/]: {trainings} trainings, {workers} at a time on {run['device']}")

    if plan.get("scenes"):
        _scenes(root, plan["scenes"], workers, console)
    for folder, job in (jobs | detectors | runs).items():  # what is there was made with these options, or nothing is done
        options = job.arguments[0]
        command = "teacher" if folder in jobs else commands.command_of(options)
        check_claim(folder, run_record(command, options, options["run"]))
    taught = {str(folder / "weights.pt"): job.arguments[0]["student"] for folder, job in jobs.items()}
    _check_normalisation(
        {(job.arguments[0]["student"], taught.get(str(job.arguments[0]["teacher"]))) for job in runs.values()}
    )
    _check_methods(
        (job.arguments[0] for job in runs.values()),
        {str(folder / "weights.pt"): job.arguments[0] for folder, job in detectors.items()},
    )
    run_jobs([job for folder, job in jobs.items() if not (folder / "report.json").is_file()], workers, console, gpus)
    for group in (detectors, runs):
        missing = [job for folder, job in group.items() if not (folder / split / "evaluation.json").is_file()]
        run_jobs(missing, workers, console, gpus)
    taught_by = [f"teacher `{folder.name}`: {_described(folder)}" for folder in jobs]
    taught_by += [f"detector teacher `{folder.name}`: {_described_detector(folder, split)}" for folder in detectors]
    result = report(
        list(runs),
        out,
        split,
        notes=[*plan.get("notes", []), *taught_by],
        title=plan.get("title", "Distilling a classifier into a detector"),
        quick=plan.get("quick", False),
        console=console,
    )
    console.print(f"[dim]{(time.time() - began) / 60:.1f} minutes; all is in {out}[/]")
    return result


def _on_recipe(options: dict[str, Any]) -> dict[str, Any]:
    """``options``, on top of the recipe that they name."""
    recipe, own = options.get("recipe"), {key: value for key, value in options.items() if key != "recipe"}
    return _merged(yaml.safe_load(find_recipe(recipe).read_text()), own) if recipe else own


def _arms(plan: dict[str, Any]) -> dict[str, dict]:
    """Changes by arm, grid included."""
    arms = {name: changes or {} for name, changes in plan.get("arms", {}).items()}
    grid = plan.get("grid", {})
    for values in itertools.product(*grid.values()) if grid else ():
        changes: dict[str, Any] = {}
        for path, value in zip(grid, values, strict=True):
            *groups, leaf = path.split(".")
            place = changes
            for group in groups:
                place = place.setdefault(group, {})
            place[leaf] = value
        name = ", ".join(f"{path.split('.')[-1]}={value}" for path, value in zip(grid, values, strict=True))
        arms[name] = changes
    if not arms:
        raise ValueError("a sweep needs arms or a grid")
    return arms


def _teacher_jobs(plan: dict, users: list[dict], root: Path, out: Path, split: str, run: dict) -> dict[Path, Job]:
    """Jobs by folder, for those teachers that an arm, a detector, or all, name."""
    jobs = {}
    for name, options in plan["teachers"].items():
        if not any(name in (user.get("teacher"), user.get("start")) for user in [plan["train"], *users]):
            continue
        for seed in plan["seeds"] if options.get("per_seed") else [None]:
            folder = _teacher_folder(out, name, seed)
            given = {"seed": seed} if seed is not None else {}
            options = {key: value for key, value in options.items() if key != "per_seed"}
            last = {"data_root": str(root), "out": str(folder), "run": run}
            merged = _merged({"val_split": split}, options, given, last)
            jobs[folder] = Job(folder.name, _teacher_job, (parse_options("teacher", merged),))
    return jobs


def _detector_jobs(plan: dict, arms: dict, root: Path, out: Path, split: str, run: dict) -> dict[Path, Job]:
    """Jobs by folder, for those detectors that an arm, or all, name as their teacher."""
    jobs = {}
    for name, options in plan["detectors"].items():
        if not any(user.get("detector_teacher") == name for user in [plan["train"], *arms.values()]):
            continue
        folder = out / "detectors" / name
        last = {"name": name, "val_split": None, "data_root": str(root), "out": str(folder), "run": run}
        merged = _with_weights(
            _merged({"distillers": []}, options, last), plan, out, None
        )  # a recipe's own terms have no teacher
        jobs[folder] = Job(f"detector {name}", _student_job, (parse_options("distill", merged), split))
    return jobs


def _student_jobs(plan: dict, arms: dict, root: Path, out: Path, split: str, run: dict) -> dict[Path, Job]:
    """Jobs by folder: seeds first, so that a sweep that is looked at early has whole pairs."""
    jobs = {}
    students = plan.get("students", [plan["train"].get("student", "ssd_compact")])
    for seed, student, (name, changes) in itertools.product(plan["seeds"], students, arms.items()):
        label = name if len(students) == 1 else f"{student} {name}"
        folder = out / "runs" / f"{_slug(label)}-seed{seed}"
        if folder in jobs:
            raise ValueError(f"two arms would be written to {folder}; give them names that differ in more than signs")
        given = {"seed": seed, "student": student, "name": name, "val_split": None, "data_root": str(root), "out": str(folder)}
        merged = _merged({"classifier": dict.fromkeys(TERMS, 0.0)}, plan["train"], changes, given, {"run": run})
        options = parse_options("distill", _with_weights(merged, plan, out, seed))
        jobs[folder] = Job(f"{label}, seed {seed}", _student_job, (options, split))
    return jobs


def _with_weights(options: dict, plan: dict, out: Path, seed: int | None) -> dict:
    """``options`` with paths in place of the names of the sweep's teachers and detectors."""
    paths = {}
    for key in ("teacher", "start"):
        teacher = plan["teachers"].get(options.get(key))
        if teacher is not None:
            paths[key] = str(_teacher_folder(out, options[key], seed if teacher.get("per_seed") else None) / "weights.pt")
    for key in ("teacher", "start"):
        if (given := options.get(key)) and key not in paths and not Path(given).is_file():
            known = ", ".join(plan["teachers"]) or "there are none"
            raise ValueError(f"{key}: {given} is neither a file nor one of the sweep's teachers ({known})")
    if options.get("detector_teacher") in plan["detectors"]:
        paths["detector_teacher"] = str(out / "detectors" / options["detector_teacher"] / "weights.pt")
    return options | paths


def _teacher_job(options: dict, progress: Progress) -> None:
    commands.teacher(**options, progress=progress)


def _student_job(options: dict, split: str, progress: Progress) -> None:
    folder = Path(options["out"])
    if not (folder / "report.json").is_file():
        commands.distill(**options, progress=progress)
    batch, run = options["optim"].batch_size, options["run"]
    weights = folder / "weights.pt"
    commands.evaluate(weights, options["data_root"], split, folder / split, batch, run.workers, run.device, progress)


def _scenes(root: Path, settings: dict, workers: int, console: Console) -> None:
    try:
        wanted = SceneSettings(**settings)
    except TypeError as error:
        raise ValueError(f"scenes: {error}") from None
    with progress_display(console) as display:
        bar = display.add_task("scenes", text="", total=None)
        make_scenes(
            root,
            wanted,
            workers,
            lambda done, total: display.update(bar, completed=done, total=total),
        )
    console.print("  [green]✓[/] scenes")


def _described(folder: Path) -> str:
    content = json.loads((folder / "report.json").read_text())
    said = f"{content['crops']} crops of {content['images']} images"
    if content.get("accuracy") is not None:
        split = json.loads((folder / "options.json").read_text())["val_split"]
        said += f", {content['accuracy']:.1f} % of the crops of {split} right, ECE {content['ece']:.1f} %"
    return said


def _described_detector(folder: Path, split: str) -> str:
    options, content = (json.loads((folder / name).read_text()) for name in ("options.json", "report.json"))
    found = json.loads((folder / split / "evaluation.json").read_text())
    return f"{options['student']}, {content['images']} images, {content['parameters']} parameters, mAP {found['mAP']:.1f} on {split}"


def _claim(out: Path, plan: dict, fresh: bool) -> None:
    """Make ``out`` this sweep's; refuse a folder that holds one with other settings, or something else.

    Seeds and arms may be added later: they have their own folders.
    """
    stamp = {key: value for key, value in plan.items() if key in ("scenes", "teachers", "detectors", "train")}
    file = out / "sweep.json"
    if out.exists() and any(out.iterdir()):
        if not file.is_file():
            raise FileExistsError(f"{out} holds something other than a sweep; give another --out")
        if fresh:
            shutil.rmtree(out)
        elif json.loads(file.read_text()) != stamp:
            raise FileExistsError(f"{out} holds a sweep with other settings; give --fresh to start it anew, or another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, stamp)


def _merged(*layers: dict) -> dict:
    """Nested dictionaries, later ones in front."""
    whole: dict = {}
    for layer in layers:
        for key, value in layer.items():
            nested = isinstance(value, dict) and isinstance(whole.get(key), dict)
            whole[key] = _merged(whole[key], value) if nested else copy.deepcopy(value)
    return whole


def _teacher_folder(out: Path, name: str, seed: int | None) -> Path:
    return out / "teachers" / (name if seed is None else f"{name}-seed{seed}")


def _check_processes(jobs: Iterable[Job]) -> None:
    """A job is one process: to start another, Lightning would run the command of this one again, which is the sweep."""
    if torchrun_processes():
        raise ValueError(
            "a sweep is one process, which starts its trainings side by side (--workers); start it without torchrun"
        )
    for job in jobs:
        run = job.arguments[0]["run"]
        if run.processes > 1:
            raise ValueError(
                f"{job.name}: a training of a sweep is one process, found run.devices {run.devices} and run.num_nodes "
                f"{run.num_nodes}. Leave them at 1: trainings run side by side, one per GPU (--workers)"
            )


def _check_normalisation(pairs: Iterable[tuple[str, str | None]]) -> None:
    """A teacher sees inputs scaled like its student's: said before hours are spent on one that does not."""
    for student, taught in pairs:
        if taught is None:
            continue
        one, other = (build_student(name, 2).transform for name in (student, taught))
        if (list(one.image_mean), list(one.image_std)) != (list(other.image_mean), list(other.image_std)):
            raise ValueError(f"a teacher for {taught} does not fit {student}: their inputs are normalised differently")


def _check_methods(runs: Iterable[dict], detectors: dict[str, dict]) -> None:
    """Each method fits its student and its detector teacher, which are built with random weights to see that."""
    seen = set()
    for run in runs:
        methods, source = [name for name in METHODS if name in run["distillers"]], run["detector_teacher"]
        if not methods or not source or (case := (run["student"], run["image_size"], source, *methods)) in seen:
            continue
        seen.add(case)
        if source in detectors:
            teacher = build_student(detectors[source]["student"], 2, detectors[source]["image_size"])
        elif source.startswith(PREFIX):
            teacher = get_model(source.removeprefix(PREFIX), weights=None, weights_backbone=None)
        else:  # a file: its run says
            continue
        student = build_student(run["student"], 2, run["image_size"])
        Distillation(student, None, DetectorTeacher(teacher, ["one", "other"], [1, 2]), {name: run[name] for name in methods})


def _slug(label: str) -> str:
    return re.sub(r"[^\w=.,]+", "-", label.replace("+ ", "")).strip("-").lower()


def _gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
