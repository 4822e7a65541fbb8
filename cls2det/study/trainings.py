"""The trainings of a plan: which there are, with which options, and in which folders."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torchvision.models import get_model
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.commands.distill import distill
from cls2det.commands.evaluate import evaluate
from cls2det.commands.options import DistillOptions, EvaluateOptions, TeacherOptions
from cls2det.commands.teacher import teacher
from cls2det.data.classes import SAME_CLASSES, class_order
from cls2det.data.layouts import read_classes
from cls2det.distill import DETECTOR_METHODS, Distillation
from cls2det.distill.classifier import check_sources
from cls2det.models.anchors import set_anchors
from cls2det.models.networks import is_foreign
from cls2det.models.students import build_student
from cls2det.settings import TERMS
from cls2det.study.banks import BankOfSweep, used_banks
from cls2det.study.jobs import Job
from cls2det.study.place import Place, parsed, with_files
from cls2det.study.plan import Plan, merge
from cls2det.teachers.detector import PREFIX, DetectorTeacher
from cls2det.training.progress import Progress
from cls2det.training.settings import torchrun_processes

Options = TypeVar("Options", bound=TeacherOptions | DistillOptions, covariant=True)


@dataclasses.dataclass(frozen=True)
class Training(Generic[Options]):
    """One training of a sweep.

    Attributes:
        name: what the progress display calls it
        options: of ``cls2det teacher``, or of ``cls2det distill``
        split: on which a student is evaluated
    """

    name: str
    options: Options
    split: str

    @property
    def folder(self) -> Path:
        return self.options.out

    @property
    def weights(self) -> Path:
        return self.folder / "weights.pt"

    @property
    def is_done(self) -> bool:
        last = "report.json" if isinstance(self.options, TeacherOptions) else f"{self.split}/evaluation.json"
        return (self.folder / last).is_file()

    @property
    def job(self) -> Job:
        return Job(self.name, run_training, (self,))

    def summary(self) -> str:
        """A sentence about a finished teacher or detector teacher, for the report."""
        options, report = (read(self.folder / name) for name in ("options.json", "report.json"))
        if isinstance(self.options, TeacherOptions):
            text = f"teacher `{self.folder.name}`: {report['crops']} crops of {report['images']} images"
            if report.get("accuracy") is None:
                return text
            right = f"{report['accuracy']:.1f} % of the crops of {options['val_split']} right"
            return f"{text}, {right}, ECE {report['ece']:.1f} %"
        table = read(self.folder / self.split / "evaluation.json")
        size = f"{report['images']} images, {report['parameters']} parameters"
        return f"detector teacher `{self.folder.name}`: {options['student']}, {size}, mAP {table['mAP']:.1f} on {self.split}"


def run_training(training: Training[TeacherOptions | DistillOptions], progress: Progress) -> None:
    """Train, and evaluate a student; what is finished is not done again."""
    options = training.options
    if isinstance(options, TeacherOptions):
        teacher(options, progress)
        return
    if not (training.folder / "report.json").is_file():
        distill(options, progress)
    evaluation = EvaluateOptions(
        training.weights,
        options.data_root,
        training.split,
        training.folder / training.split,
        batch_size=options.optim.batch_size,
        loader_workers=options.run.workers,
        max_detections=options.run.max_detections,
        device=options.run.device,
    )
    evaluate(evaluation, progress)


def teacher_trainings(plan: Plan, place: Place) -> list[Training[TeacherOptions]]:
    """Those teachers that an arm, a detector, a bank that is read, or all of them, name."""
    users = [plan.train, *plan.arms.values(), *plan.detectors.values(), *(plan.banks[name] for name in used_banks(plan))]
    names = {user.get(key) for user in users for key in ("teacher", "start")}
    trainings = []
    for name, options in plan.teachers.items():
        if name not in names:
            continue
        for seed in plan.seeds if options.get("per_seed") else [None]:
            folder = place.teacher(name, seed)
            own_seed = {} if seed is None else {"seed": seed}
            options = {key: value for key, value in options.items() if key != "per_seed"}
            merged = merge({"val_split": plan.split}, options, own_seed, place.options(folder))
            trainings.append(Training(folder.name, parsed(folder.name, TeacherOptions, merged), plan.split))
    return trainings


def detector_trainings(plan: Plan, place: Place) -> list[Training[DistillOptions]]:
    """Those detectors that an arm, or all of them, name as their teacher."""
    names = {user.get("detector_teacher") for user in (plan.train, *plan.arms.values())}
    trainings = []
    for name, options in plan.detectors.items():
        if name in names:
            last = {"name": name, "val_split": None, **place.options(place.detector(name))}
            merged = merge({"distillers": []}, options, last)  # the recipe's distillers would need a teacher
            label = f"detector {name}"
            with_paths = with_files(merged, plan, place, seed=None)
            trainings.append(Training(label, parsed(label, DistillOptions, with_paths), plan.split))
    return trainings


def student_trainings(plan: Plan, place: Place) -> list[Training[DistillOptions]]:
    """Every arm with every student and seed; seeds first, so that a report of an unfinished sweep has whole pairs."""
    trainings: dict[Path, Training[DistillOptions]] = {}
    students = plan.students or [plan.train.get("student", "ssd_compact")]
    for seed, student, (name, changes) in itertools.product(plan.seeds, students, plan.arms.items()):
        label = name if len(students) == 1 else f"{student} {name}"
        folder = place.student(label, seed)
        if folder in trainings:
            raise ValueError(f"two arms would be written to {folder}; give them names that differ in more than signs")
        nothing = {"classifier": dict.fromkeys(TERMS, 0.0)}
        last = {"seed": seed, "student": student, "name": name, "val_split": None, **place.options(folder)}
        merged = with_files(merge(nothing, plan.train, changes, last), plan, place, seed)
        trainings[folder] = Training(f"{label}, seed {seed}", parsed(label, DistillOptions, merged), plan.split)
    return list(trainings.values())


def check_processes(trainings: Iterable[Training]) -> None:
    """A training is one process: to start another, Lightning would run the command of this one again, which is the sweep."""
    if torchrun_processes():
        raise ValueError(
            "a sweep is one process, which starts its trainings side by side (--workers); start it without torchrun"
        )
    for training in trainings:
        run = training.options.run
        if run.processes > 1:
            raise ValueError(
                f"{training.name}: a training of a sweep is one process, found run.devices {run.devices} and run.num_nodes "
                f"{run.num_nodes}. Leave them at 1: trainings run side by side, one per GPU (--workers)"
            )


def check_splits(trainings: Iterable[Training], data_root: Path) -> None:
    """ValueError where a split that is trained on lists other classes than the one that is evaluated on."""
    for train_split, split in {(training.options.train_split, training.split): None for training in trainings}:
        (train_classes, train_file), (classes, file) = (read_classes(data_root, name) for name in (train_split, split))
        class_order(train_classes, classes, str(train_file), str(file), SAME_CLASSES)


def check_students(
    students: Iterable[Training[DistillOptions]],
    teachers: Iterable[Training[TeacherOptions]],
    detectors: Iterable[Training[DistillOptions]],
    banks: Iterable[BankOfSweep] = (),
) -> None:
    """Teachers, banks and methods fit their students; otherwise a ValueError, before hours are spent on the teachers.

    Students and detector teachers are built on the meta device, where weights have no values and a forward costs nothing; their
    anchors are real. Teachers that are files, and anchors that are fitted to data, are left to the runs.
    """
    # Networks of timm and transformers have a normalisation of their own, which fits every student.
    trained = [training for training in teachers if not is_foreign(training.options.architecture)]
    student_of = {training.weights: training.options.student for training in trained}
    for made in banks:
        if student := _student_of_bank(made, student_of):
            student_of[made.options.out] = student
    options_of_detector = {str(training.weights): training.options for training in detectors}
    checked = set()
    for training in students:
        options = training.options
        if options.distils and "classifier" in options.distillers:
            _check_sources(training)
        sources = [path for path in (options.teacher, *(options.bank or ())) if path]
        students_of_teachers = [student_of[path] for path in sources if path in student_of]
        fits = [options, options_of_detector.get(options.detector_teacher or "", options)]
        case = (options.student, options.image_size, str(options.anchors), *(each.fit_anchors for each in fits))
        case += (*students_of_teachers, options.detector_teacher, *options.methods)
        if case in checked:
            continue
        checked.add(case)
        for student_of_teacher in students_of_teachers:
            _check_normalisation(options.student, student_of_teacher)
        methods = [name for name in options.methods if name in DETECTOR_METHODS]
        if methods and options.detector_teacher and not any(each.fit_anchors for each in fits):
            detector = _detector(options.detector_teacher, options_of_detector)
            if detector is not None:
                teacher = DetectorTeacher(detector, ["one", "other"], [1, 2])
                settings = {name: getattr(options, name) for name in methods}
                Distillation(_with_anchors(options), teacher=teacher, settings=settings)


def _check_sources(training: Training[DistillOptions]) -> None:
    options = training.options
    try:
        check_sources(options.classifier, has_teacher=options.teacher is not None, has_bank=bool(options.bank))
    except ValueError as error:
        raise ValueError(f"{training.name}: {error}") from None


def _student_of_bank(made: BankOfSweep, student_of: Mapping[Path, str]) -> str | None:
    """The student whose pictures a bank's teacher looked at; None where its normalisation is the network's own, or not known."""
    of_teacher = student_of.get(made.options.teacher) if made.options.teacher else None
    if of_teacher and made.options.student:
        _check_normalisation(made.options.student, of_teacher)
    return of_teacher


def _check_normalisation(name: str, student_of_teacher: str) -> None:
    if name == student_of_teacher:
        return
    students = (_meta_student(student, None) for student in (name, student_of_teacher))
    transforms: list[GeneralizedRCNNTransform] = [student.transform for student in students]
    means_and_stds = [(list(transform.image_mean), list(transform.image_std)) for transform in transforms]
    if means_and_stds[0] != means_and_stds[1]:
        raise ValueError(f"a teacher for {student_of_teacher} does not fit {name}: their inputs are normalised differently")


def _detector(source: str, options: Mapping[str, DistillOptions]) -> torch.nn.Module | None:
    if source in options:
        return _with_anchors(options[source])
    if source.startswith(PREFIX):
        with torch.device("meta"):
            return get_model(source.removeprefix(PREFIX), weights=None, weights_backbone=None)
    return None


def _with_anchors(options: DistillOptions) -> torch.nn.Module:
    if options.anchors is None:
        return _meta_student(options.student, options.image_size)
    with torch.device("meta"):
        student = build_student(options.student, 2, options.image_size)
    set_anchors(student, options.anchors)
    return student


@cache
def _meta_student(name: str, image_size: int | None) -> torch.nn.Module:
    with torch.device("meta"):
        return build_student(name, 2, image_size)


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))
