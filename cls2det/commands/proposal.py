"""What ``cls2det look`` proposes: size of the input, anchors and recipe, in words and as commands that can be pasted."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
import statistics
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.commands.anchors import UNMATCHED
from cls2det.commands.options import LookOptions
from cls2det.commands.parsing import load_yaml
from cls2det.data.dataset import DetectionData
from cls2det.data.layouts import list_splits, read_split
from cls2det.data.overview import object_sizes, shares_below
from cls2det.data.parts import Part, parse_part
from cls2det.errors import some
from cls2det.models.anchor_fit import MEASURED, Fit, best_overlaps, evenly, fitted, input_boxes, measure
from cls2det.models.anchors import AnchorGrid, anchor_grid
from cls2det.models.students import STUDENTS, build_student, head_of
from cls2det.recipes import find_recipe, recipe_names

SMALL_DATA = "own-small"  # the recipe, and teacher-own-small
MANY = 5000  # images from which on the student's own recipe is long enough
STEPS = 1400  # that the recipe of small data should have at least
EPOCHS = 24  # the same
ENOUGH = 0.9  # share of the objects with a fitted anchor, mean over the classes, with which no larger input is looked for
FACTORS = (1, 1.25, 1.5, 2, 2.5, 3)  # of the student's size, that are tried
FAR_LARGER = 3  # times as large as the input are pictures that a training should reduce as it reads them
LARGEST = 640  # side that is proposed at most, unless the student's own is larger
FEW_OBJECTS = 10  # of a class


class Sized(NamedTuple):
    """A student at a size of its input, on the objects of a data set.

    Attributes:
        side: that images are brought to
        boxes: (n, 4) of all objects in pixels of the input
        grid: the student's own anchors; None of a student that has none
        levels: those taken from the data, as ``--anchors`` takes them
        own: fit of the student's own
        better: fit of those taken from the data
        by_class: share of each class's objects that have one of those at the threshold
    """

    side: int
    boxes: Tensor
    grid: AnchorGrid | None = None
    levels: list[list[list[float]]] | None = None
    own: Fit | None = None
    better: Fit | None = None
    by_class: Mapping[str, float] = MappingProxyType({})

    @property
    def share(self) -> float:
        """Mean over the classes, as in mAP: a rare class of small objects counts as much as a common one."""
        return statistics.fmean(self.by_class.values())


def at_size(name: str, data: DetectionData, image_size: int | None) -> Sized:
    """The student as it meets the data when images are brought to ``image_size``; None is its own size."""
    with torch.device("meta"):  # shapes and no weights
        detector = build_student(name, len(data.classes), image_size)
    transform: GeneralizedRCNNTransform = detector.transform
    boxes, side = input_boxes(data, transform), int((transform.fixed_size or transform.min_size)[0])
    grid = anchor_grid(detector)
    if grid is None or not len(boxes):
        return Sized(side, boxes)
    levels = fitted(grid, boxes)
    better = grid.with_levels(levels)
    return Sized(side, boxes, grid, levels, measure(grid, boxes), measure(better, boxes), _by_class(data, better, boxes))


def _by_class(data: DetectionData, grid: AnchorGrid, boxes: Tensor) -> dict[str, float]:
    matched, labels = best_overlaps(grid, boxes) >= grid.threshold, evenly(data.targets.labels(), MEASURED)
    return {data.classes[label - 1]: matched[labels == label].double().mean().item() for label in labels.unique().tolist()}


def best_size(options: LookOptions, data: DetectionData, first: Sized) -> Sized:
    """The smallest input with which fitted anchors reach ``ENOUGH`` of the objects, or the one beyond which they gain little.

    None is smaller than the student's own, unless that is more than twice the pictures' size.
    """
    student = STUDENTS.get(options.student)
    if options.image_size is not None or first.better is None or student is None or student.fixed_size:
        return first
    shorter = data.targets.sizes().min(1).values.sort().values[len(data) // 2].item()
    best = first
    if first.side > 2 * shorter:
        first = best = at_size(options.student, data, _multiple(2 * shorter))
    for factor in FACTORS[1:]:
        side = _multiple(first.side * factor)
        if best.share >= ENOUGH or side > max(LARGEST, first.side):
            break
        larger = at_size(options.student, data, side)
        if larger.share > best.share + 0.03:
            best = larger
    return best


def _multiple(side: float) -> int:
    return 32 * math.ceil(side / 32)


def propose(options: LookOptions, data: DetectionData, first: Sized) -> dict[str, Any]:
    """Words, and the commands.

    Args:
        options: of ``look``
        data: the split that is trained on
        first: the student at the size that the options ask for
    """
    best, words = best_size(options, data, first), []
    teacher: list[str] = []
    student: list[str] = []
    if best.side != first.side:
        reason = (
            "small objects get more of the student's places"
            if best.side > first.side
            else "the pictures show no more, and small objects have places enough"
        )
        words.append(
            f"Images at {best.side} pixels, not {first.side}: {reason}. A step takes some {(best.side / first.side) ** 2:.2g} times "
            "as long"
        )
        both = ["--image-size", str(best.side)]
    else:
        both = [] if options.image_size is None else ["--image-size", str(options.image_size)]
    longer = data.targets.sizes().max(1).values.sort().values[len(data) // 2].item()
    if longer > FAR_LARGER * best.side:
        words.append(
            f"Pictures are {longer / best.side:.1f} times as large as the input: --max-image-side {2 * best.side} reads them at "
            "twice the input, which trains faster"
        )
        both += ["--max-image-side", str(2 * best.side)]
    recipe, epochs = recipe_for(options.student, len(data))
    if best.own and best.better and best.levels:
        worth = best.better.share > best.own.share + 0.01 or best.better.mean_iou > best.own.mean_iou + 0.03
        if worth:
            words.append(
                f"Anchors from the data (--fit-anchors): {best.better.share:.0%} of the objects get one at IoU "
                f"{best.own.threshold:g} (the student's own: {best.own.share:.0%}), the mean of the best IoUs is "
                f"{best.better.mean_iou:.2f} ({best.own.mean_iou:.2f})"
            )
        if worth and not (recipe and load_yaml(find_recipe(recipe)).get("fit_anchors")):
            student.append("--fit-anchors")
        if poor := sorted((share, name) for name, share in best.by_class.items() if share < ENOUGH):
            shares = some([f"{name} ({share:.0%})" for share, name in poor])
            words.append(
                f"Classes of which less than {ENOUGH:.0%} of the objects get a fitted anchor at {best.side} pixels: {shares}"
            )
        if 1 - best.better.share > UNMATCHED / 2:
            words.append(
                f"{1 - best.better.share:.0%} of the objects are too small for this student all the same: take larger images, "
                "tiles of the pictures, or a student with finer maps (ssd300_vgg16: stride 8; fasterrcnn_mobilenet_v2_fpn: 4)"
            )
    if recipe == SMALL_DATA:
        if options.student != load_yaml(find_recipe(recipe))["student"]:
            both += ["--student", options.student]
        if epochs:
            words.append(
                f"{epochs} epochs: {math.ceil(epochs * len(data) / _optim(recipe)['batch_size'])} steps on {len(data)} pictures"
            )
            student += ["--optim.epochs", str(epochs)]
            if epochs // 4 > _optim(f"teacher-{recipe}")["epochs"]:
                teacher += ["--optim.epochs", str(epochs // 4)]
        sizes = shares_below(object_sizes(best.boxes))
        if sizes and sizes["95 %"] < 48:
            words.append("Crops of 64 pixels for the teacher: larger ones would show small objects no better")
            teacher += ["--crop-size", "64"]
        if head_of(options.student) == "sigmoid":
            teacher += ["--loss", "joint"]
    else:
        both += [] if recipe else ["--student", options.student]
    training, validation = options.split, other_split(options.data_root, options.split)
    if validation is None:
        part = parse_part(training)
        stop = part.stop if part.stop < 100 else 80 + part.start / 5
        training, validation = str(part._replace(stop=stop)), str(Part(part.split, start=stop))
        words.append(f"There is no second split: {validation} is a part of this one, kept apart by file names")
    place = ["--data-root", str(options.data_root), "--train-split", training, "--val-split", validation]
    recipes = (f"teacher-{SMALL_DATA}" if recipe == SMALL_DATA else None, recipe)
    parts = [["--config", name] if name else [] for name in recipes]
    commands = [
        [
            "cls2det",
            "distill",
            *parts[1],
            *place,
            *both,
            *student,
            "--teacher",
            "runs/teacher/weights.pt",
            "--out",
            "runs/distilled",
        ]
    ]
    commands.append(["cls2det", "train", *parts[1], *place, *both, *student, "--out", "runs/baseline"])
    if recipe == SMALL_DATA:
        commands.insert(0, ["cls2det", "teacher", *parts[0], *place, *both, *teacher, "--out", "runs/teacher"])
    else:
        words.append(f"The teacher's recipe for {options.student} is in docs/command-line.md, under Students")
    return {
        "image_size": best.side,
        "anchors": best.levels,
        "fit": None if best.better is None else dataclasses.asdict(best.better),
        "recipe": recipe,
        "words": words,
        "commands": [shlex.join(command) for command in commands],
    }


def recipe_for(student: str, images: int) -> tuple[str | None, int | None]:
    """The name of a recipe, and how many epochs it should have where its own would be too few steps, or more than need be."""
    if images < MANY:
        own = _optim(SMALL_DATA)
        epochs = max(EPOCHS, math.ceil(STEPS * own["batch_size"] / images))
        return SMALL_DATA, epochs if abs(epochs - own["epochs"]) > own["epochs"] / 8 else None
    names = [name for name in recipe_names() if load_yaml(find_recipe(name)).get("student") == student]
    return next((name for name in names if not name.startswith("teacher")), None), None


def _optim(recipe: str) -> dict[str, Any]:
    return dict(load_yaml(find_recipe(recipe))["optim"])


def other_split(root: Path, split: str) -> str | None:
    """A split for validation: of other pictures, not one for the test, and rather one whose name says so."""
    names = [name for name in sorted(list_splits(root)) if name != split and not name.startswith("test")]
    own = _pictures(root, split)
    others = [name for name in names if not own & _pictures(root, name)]
    return next((name for name in others if name.startswith("val")), others[0] if others else None)


def _pictures(root: Path, split: str) -> set[Path]:
    """Paths of a split's pictures; none where it cannot be read."""
    with contextlib.suppress(OSError, ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the look at that split is to come
        columns, _, folder, _ = read_split(root, split)
        return {folder / columns.name(place) for place in range(len(columns))}
    return set()
