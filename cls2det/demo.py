"""``cls2det demo``: from nothing to a distilled detector and a table that shows the gain.

Scenes, a teacher and a backbone start are made once; then each arm trains the same student on the same 300 images per
seed, in the same order from the same weights: arms of one seed are paired, and differ in the loss alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

from rich.console import Console

from cls2det import base, commands, report
from cls2det.distill import DistillSettings
from cls2det.jobs import Job, progress_display, run_jobs
from cls2det.scenes import SceneSettings, make_scenes


@dataclasses.dataclass(frozen=True)
class Arm:
    """What an arm changes against the baseline."""

    cls_weight: float = 0.0
    loc_weight: float = 0.0
    box_weight: float = 2.0
    one_hot: bool = False


ARMS = {
    "baseline": Arm(),
    "+ KD-loc": Arm(loc_weight=2.0),
    "+ KD-cls": Arm(cls_weight=0.4),
    "+ both": Arm(cls_weight=0.4, loc_weight=2.0),
}
# What the terms must beat: the same loss with the labels as teacher, and plainly more weight on the boxes.
CONTROLS = {
    "one-hot for KD-cls": Arm(cls_weight=0.4, one_hot=True),
    "box weight for KD-loc": Arm(box_weight=4.0),
}


@dataclasses.dataclass(frozen=True)
class DemoSettings:
    """Everything that shapes the demo's numbers; chosen on the validation split, with other seeds than the report's."""

    scenes: SceneSettings = SceneSettings()  # noqa: RUF009 (frozen)
    teacher_epochs: int = 12  # passes over all train scenes
    teacher_batch: int = 24  # images; about three crops each
    start_epochs: int = 6  # the same for the student's backbone: the "ImageNet weights" of this world
    start_batch: int = 16
    labelled_images: int = 300  # what a student may see
    steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    temperature: float = 2.0
    checkpoint_every: int = 100
    quick: bool = False


QUICK = DemoSettings(
    scenes=SceneSettings(train=800, val=50, test=150),
    teacher_epochs=3,
    start_epochs=1,
    labelled_images=150,
    steps=150,
    checkpoint_every=50,
    quick=True,
)


def demo(
    out: Path | None = None,
    seeds: int | None = None,
    quick: bool = False,
    controls: bool = False,
    first_seed: int = 11,
    split: str = "test",
    device: commands.Device = "auto",
    precision: str = "32-true",
    workers: int | None = None,
    fresh: bool = False,
) -> None:
    """Make data, train a teacher, train a detector with and without distillation, and report.

    Run it again with the same folder after Ctrl-C: it goes on from the last checkpoints.

    Args:
        out: folder for everything that is written (default: runs/demo, or runs/demo-quick)
        seeds: paired runs per arm (default: 3, or 1 with --quick)
        quick: see in 3 minutes that everything runs; too short to show the gain
        controls: train two control arms as well (half as long again)
        first_seed: the first of the seeds (those below 11 were seen while settings were chosen)
        split: split that is reported; look at val while choosing settings
        device: auto takes a GPU if there is one
        precision: of Lightning: 32-true, bf16-mixed, 16-mixed
        workers: trainings at a time (default: one per core, at most 4)
        fresh: forget what is in the folder
    """
    console, began = Console(), time.time()
    settings = QUICK if quick else DemoSettings()
    seeds = (1 if quick else 3) if seeds is None else seeds
    if seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {seeds}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, 4) if workers is None else workers
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    out = Path(out or ("runs/demo-quick" if quick else "runs/demo"))
    _claim(out, settings, fresh)
    device = base.torch_device(device).type
    console.print(
        f"[bold]cls2det demo[/] in {out}: {seeds} seed{'s' * (seeds > 1)} per arm, {workers} at a time on {device}"
        + (", [yellow]quick: too short to show the gain[/]" if quick else "")
    )

    with progress_display(console) as display:
        bar = display.add_task("scenes", text="", total=None)
        make_scenes(
            out / "scenes", settings.scenes, workers, lambda done, total: display.update(bar, completed=done, total=total)
        )
    console.print("  [green]✓[/] scenes")
    how = {"device": device, "precision": precision}
    classifiers = [
        Job(name, classifier_job, (out, name, settings, how))
        for name in ("teacher", "start")
        if not (out / name / "report.json").is_file()
    ]
    run_jobs(classifiers, workers, console)
    arms = ARMS | (CONTROLS if controls else {})
    runs = {
        (arm, seed): out / "arms" / f"{_slug(arm)}-seed{seed}"
        for seed in range(first_seed, first_seed + seeds)
        for arm in arms
    }
    students = [
        Job(f"{arm}, seed {seed}", student_job, (out, folder, arms[arm], seed, split, settings, how))
        for (arm, seed), folder in runs.items()
        if not (folder / split / "evaluation.json").is_file()
    ]
    run_jobs(students, workers, console)
    report.write(
        out,
        runs,
        split=split,
        quick=quick,
        images=settings.labelled_images,
        scenes=settings.scenes.train,
        device=device,
        settings=dataclasses.asdict(settings),
        seconds=time.time() - began,
        console=console,
    )


def classifier_job(out: Path, name: str, settings: DemoSettings, how: dict, progress: base.Progress) -> None:
    """The teacher, or the classifier from which the student's backbone starts."""
    architecture, epochs, batch_size = {
        "teacher": ("resnet18", settings.teacher_epochs, settings.teacher_batch),
        "start": ("compact", settings.start_epochs, settings.start_batch),
    }[name]
    commands.teacher(
        out / "scenes",
        out / name,
        architecture=architecture,
        image_size=settings.scenes.size,
        test_split="test",
        epochs=epochs,
        batch_size=batch_size,
        cache=True,
        progress=progress,
        **how,
    )


def student_job(
    out: Path, folder: Path, arm: Arm, seed: int, split: str, settings: DemoSettings, how: dict, progress: base.Progress
) -> None:
    """Train and evaluate one arm with one seed."""
    distils = arm.cls_weight or arm.loc_weight
    if not (folder / "report.json").is_file():
        commands.train(
            out / "scenes",
            folder,
            image_size=settings.scenes.size,
            images=settings.labelled_images,
            teacher=out / "teacher" / "weights.pt" if distils else None,
            start=out / "start" / "weights.pt",
            distill=DistillSettings(arm.cls_weight, arm.loc_weight, settings.temperature, one_hot=arm.one_hot),
            box_weight=arm.box_weight,
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            cache=True,
            seed=seed,
            checkpoint_every=settings.checkpoint_every,
            progress=progress,
            **how,
        )
    commands.evaluate(folder / "weights.pt", out / "scenes", split, folder / split, how["device"], progress)


def _claim(out: Path, settings: DemoSettings, fresh: bool) -> None:
    """Make ``out`` this demo's; refuse a folder that holds runs with other settings or something else."""
    stamp, file = (
        json.loads(
            json.dumps(
                {
                    "arms": {name: dataclasses.asdict(arm) for name, arm in (ARMS | CONTROLS).items()},
                    **dataclasses.asdict(settings),
                }
            )
        ),
        out / "settings.json",
    )
    if out.exists() and any(out.iterdir()):
        if not file.is_file():
            raise FileExistsError(f"{out} holds something other than a demo; give another --out")
        if fresh:
            shutil.rmtree(out)
        elif json.loads(file.read_text()) != stamp:
            raise FileExistsError(
                f"{out} holds a demo made with other settings; give --fresh to start it anew, or another --out"
            )
    out.mkdir(parents=True, exist_ok=True)
    base.write_json(file, stamp)


def _slug(arm: str) -> str:
    return arm.replace("+ ", "").replace(" ", "-").lower()
