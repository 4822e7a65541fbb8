"""``cls2det sweep``: arms by seeds of trainings from one plan (``plan.py``), side by side, and their report."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from cls2det.commands.renamed import present
from cls2det.errors import some
from cls2det.files import make_folder, write_json
from cls2det.study.banks import banks_of, check_devices
from cls2det.study.claims import check_claims
from cls2det.study.jobs import cores, run_jobs
from cls2det.study.options import ReportOptions, SweepOptions
from cls2det.study.place import Place
from cls2det.study.plan import Plan, load_plan
from cls2det.study.report import report
from cls2det.study.scenes import SceneSettings, make_scenes
from cls2det.study.trainings import (
    Training,
    check_processes,
    check_splits,
    check_students,
    detector_trainings,
    student_trainings,
    teacher_trainings,
)
from cls2det.training.optimizer import torch_device
from cls2det.training.progress import log_lines, progress_display
from cls2det.training.runs import changed_options
from cls2det.training.settings import Device


def sweep(options: SweepOptions) -> dict[str, Any]:
    """Train, evaluate and report; returns what ``report`` returns."""
    plan = load_plan(options.config, options.recipe, other_data=options.data_root is not None)
    changes: dict[str, Any] = {"seeds": options.seeds, "split": options.split, "students": options.students}
    plan = dataclasses.replace(plan, **{key: value for key, value in changes.items() if value})
    if options.start:
        plan = dataclasses.replace(plan, train=plan.train | {"start": str(options.start)})
    if unknown := set(options.arms or ()) - set(plan.arms):
        raise ValueError(f"no arm {', '.join(sorted(unknown))}; there are {', '.join(plan.arms)}")
    if options.arms:
        plan = dataclasses.replace(plan, arms={name: arm for name, arm in plan.arms.items() if name in options.arms})
    return run_sweep(
        plan,
        options.out,
        data_root=options.data_root,
        device=options.device,
        precision=options.precision,
        workers=options.workers,
        fresh=options.fresh,
    )


def run_sweep(
    plan: Plan,
    out: Path,
    *,
    data_root: Path | None = None,
    device: Device = "auto",
    precision: str | None = None,
    workers: int | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """What ``sweep`` does, with a plan; the arguments are options of ``SweepOptions``."""
    console, start = Console(), time.time()
    if not plan.seeds:
        raise ValueError("a sweep needs at least one seed")
    if workers is not None and workers < 1:
        raise ValueError(f"--workers must be 1 or more, got {workers}")
    if bool(data_root) == bool(plan.scenes):
        raise ValueError("give --data-root, or a sweep that makes its scenes")
    run = {"device": torch_device(device).type} | ({"precision": precision} if precision else {})
    gpus = _gpus() if run["device"] == "cuda" else []
    workers = workers or len(gpus) or min(cores(), 4)
    place = Place(data_root or out / "scenes", out, run)
    detectors, teachers = detector_trainings(plan, place), teacher_trainings(plan, place)
    banks, students = banks_of(plan, place), student_trainings(plan, place)
    trainings: list[Training[Any]] = [*teachers, *detectors, *students]
    check_processes(trainings)
    check_devices(banks)
    if not plan.scenes:  # a folder that is none, or a split that is not there, leaves nothing behind
        check_splits([training for training in trainings if fresh or not training.is_done], place.data_root)
    _claim(out, plan, fresh)
    console.print(f"[bold]{escape(str(out))}[/]: {len(students)} trainings, {workers} at a time on {run['device']}")
    if plan.scenes:
        _make_scenes(place.data_root, plan.scenes, workers, console)
        check_splits([training for training in trainings if not training.is_done], place.data_root)
    check_claims(trainings)
    for made in banks:
        made.check()
    check_students(students, teachers, detectors, banks)
    for group in (teachers, banks, detectors, students):
        run_jobs([part.job for part in group if not part.is_done], workers, console, gpus)
    notes = [*plan.notes, *(part.summary() for group in (teachers, banks, detectors) for part in group)]
    folders = [training.folder for training in students]
    result = report(ReportOptions(folders, out, plan.split, notes=notes, title=plan.title, quick=plan.quick), console)
    console.print(f"[dim]{(time.time() - start) / 60:.1f} minutes; all is in {escape(str(out))}[/]")
    return result


def _make_scenes(root: Path, settings: dict[str, Any], workers: int, console: Console) -> None:
    try:
        scenes = SceneSettings(**settings)
    except TypeError as error:
        raise ValueError(f"scenes: {error}") from None
    with progress_display(console) as display:
        bar, lines = display.add_task("scenes", text="", total=None), log_lines(console)

        def on_progress(step: int, total: int) -> None:
            display.update(bar, completed=step, total=total)
            lines("scenes", step, total, "")

        make_scenes(root, scenes, workers, on_progress)
    console.print("  [green]✓[/] scenes")


def _claim(out: Path, plan: Plan, fresh: bool) -> None:
    """Make ``out`` this sweep's; refuse a folder that holds one with other settings, or something else.

    Seeds, arms and banks may be added later: they have their own folders and files.
    """
    parts = {"scenes": plan.scenes, "teachers": plan.teachers, "detectors": plan.detectors, "train": plan.train}
    file = out / "sweep.json"
    if out.is_dir() and any(out.iterdir()):
        if not file.is_file():
            raise FileExistsError(f"{out} holds something other than a sweep; give another --out")
        if fresh:
            shutil.rmtree(out)
        elif changes := changed_options(
            _present_parts(json.loads(file.read_text(encoding="utf-8"))), _present_parts(json.loads(json.dumps(parts)))
        ):
            raise FileExistsError(
                f"{out} holds a sweep with other settings: {some(changes)}. Give --fresh to start it anew, or another --out"
            )
    make_folder(out)
    write_json(file, parts)


def _present_parts(parts: dict[str, Any]) -> dict[str, Any]:
    """Content of a sweep.json with the options' present names, and without what is not there."""
    parts = {name: part for name, part in parts.items() if part is not None}
    for kind in ("teachers", "detectors"):
        parts[kind] = {name: present(options) for name, options in parts.get(kind, {}).items()}
    return parts | {"train": present(parts.get("train", {}))}


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
