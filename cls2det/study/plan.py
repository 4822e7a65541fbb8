"""Plans: the YAML files of sweeps, read and checked.

    extends: demo            another sweep's file or name, of which this one says the changes
    scenes: {...}            settings of the demo's scenes, made first, unless there is a --data-root
    on_scenes: {...}         what holds on these scenes alone, as counts of images and notes; left out with --data-root
    teachers:                what ``cls2det teacher`` trains first, by name
      teacher: {...}
      own: {per_seed: true, ...}     one per seed, with the seed of the arm
    banks:                   what ``cls2det bank`` makes of the teachers, by name, for ``bank`` of the arms
      four: {teacher: teacher, views: 4, ...}     per seed too, where its teacher is; split and augmentation are those of ``train``
    detectors:               what ``cls2det train`` trains next, by name, for ``detector_teacher`` of the arms
      wide: {student: ssd_compact_wide, ...}
    recipe: ssd300           a recipe of ``cls2det distill`` under all arms (a teacher may have one too)
    train: {...}             options of ``cls2det distill`` that all arms share
    arms:                    what each changes; ``teacher`` and ``start`` may name one of the teachers above
      baseline: {}
      + KD-cls: {teacher: teacher, classifier: {kd_cls_weight: 0.4}}
    grid:                    more arms: every combination of these, named after the values
      classifier.temperature: [1, 2, 3]
    students: [...]          every arm with each of these students; default: the student of ``train``
    seeds: [11, 12, 13]
    split: val               split that is evaluated
    notes: [...]             sentences under the report's tables
    title: ...               heading of the report
    quick: true              the runs are too short to show a gain, and the report says so

Arms of one seed see the same images in the same order from the same weights: they differ only in what they change. No term is
distilled unless an arm, or ``train``, says so.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cls2det.commands.parsing import load_yaml, read_yaml
from cls2det.commands.renamed import present, present_path
from cls2det.recipes import find_recipe

BY_NAME = ("teachers", "banks", "detectors", "arms")  # options of trainings and banks, by name


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep's file, see above; its recipes are merged into ``train``, ``teachers`` and ``detectors``, its grid into ``arms``."""

    train: dict[str, Any]
    seeds: list[int]
    arms: dict[str, dict[str, Any]]
    teachers: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    banks: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    detectors: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    students: list[str] | None = None
    scenes: dict[str, Any] | None = None
    split: str = "val"
    notes: list[str] = dataclasses.field(default_factory=list)
    title: str = "Distilling a classifier into a detector"
    quick: bool = False


KEYS = {field.name for field in dataclasses.fields(Plan)} | {"recipe", "grid", "on_scenes"}
ON_SCENES = {"train", "teachers", "detectors", "notes"}  # what a part that holds on scenes alone may say


def load_plan(config: str | Path, recipe: str | None = None, *, other_data: bool = False) -> Plan:
    """Read a sweep's file.

    Args:
        config: its path, or its name
        recipe: in place of the file's
        other_data: the sweep's scenes are not made, and what holds on them alone is left out
    """
    content = _read(find_recipe(config))
    recipe = recipe or content.pop("recipe", None)
    content.pop("recipe", None)
    on_scenes = content.pop("on_scenes", None) or {}
    if other_data:
        content.pop("scenes", None)
    elif content.get("scenes"):
        notes = [*on_scenes.get("notes", []), *content.get("notes", [])]
        content = merge(on_scenes, content, {"notes": notes})
    content["train"] = on_recipe({"recipe": recipe, **content["train"]})
    for kind in ("teachers", "detectors"):
        content[kind] = {name: on_recipe(options) for name, options in content.get(kind, {}).items()}
    content["arms"] = content.get("arms", {}) | _grid_arms(content.pop("grid", {}))
    if not content["arms"]:
        raise ValueError("a sweep needs arms or a grid")
    return Plan(**content)


def on_recipe(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options``, on top of the recipe that they name."""
    changes = {key: value for key, value in options.items() if key != "recipe"}
    return merge(read_yaml(options["recipe"]), changes) if options.get("recipe") else changes


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, later ones in front."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merge(result[key], value) if nested else copy.deepcopy(value)
    return result


def _read(path: Path) -> dict[str, Any]:
    """Content of a sweep's file, on top of what it extends; arms and grid are replaced whole, not merged."""
    content = load_yaml(path)
    if isinstance(content, dict) and "extends" in content:
        base = _read(find_recipe(content.pop("extends")))
        _check(path, base | content)
        content = _present(path, content)
        return merge(base, content) | {key: content[key] for key in ("arms", "grid") if key in content}
    _check(path, content)
    return _present(path, content)


def _check(path: Path, content: Any) -> None:
    if not isinstance(content, dict) or not {"train", "seeds"} <= set(content) <= KEYS:
        raise ValueError(f"{path} is not a sweep: expected train, seeds and some of {', '.join(sorted(KEYS))}")
    for key, kind in {"seeds": list, **dict.fromkeys(("train", "grid", *BY_NAME), dict)}.items():
        if not isinstance(content.get(key) or kind(), kind):
            raise ValueError(f"{path}: {key} must be a {'list' if kind is list else 'mapping'}, found {content[key]!r}")
    on_scenes = content.get("on_scenes") or {}
    if not isinstance(on_scenes, dict) or not set(on_scenes) <= ON_SCENES:
        raise ValueError(f"{path}: on_scenes must be a mapping of {', '.join(sorted(ON_SCENES))}, found {on_scenes!r}")
    for name, values in (content.get("grid") or {}).items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{path}: {name} of grid must be a list of values, found {values!r}")
    for key in BY_NAME:
        for name, options in (content.get(key) or {}).items():
            if not isinstance(name, str):
                raise ValueError(f"{path}: a name in {key} must be text, found {name!r}; put it in quotes")
            if not isinstance(options or {}, dict):
                raise ValueError(f"{path}: {name} of {key} must be a mapping of options, found {options!r}")


def _present(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The options' present names; {} for keys without a value."""
    content = {key: {} if value is None and key in ("train", "grid", *BY_NAME) else value for key, value in content.items()}
    if "train" in content:
        content["train"] = present(content["train"], str(path))
    for key in BY_NAME:
        if key in content:
            content[key] = {name: present(options or {}, str(path)) for name, options in content[key].items()}
    if "grid" in content:
        content["grid"] = present(content["grid"], str(path))
    return content


def _grid_arms(grid: Mapping[str, list]) -> dict[str, dict[str, Any]]:
    """An arm per combination of the grid's values."""
    arms = {}
    for values in itertools.product(*grid.values()) if grid else ():
        combination = dict(zip(map(present_path, grid), values, strict=True))
        changes = merge(*(_nested(path, value) for path, value in combination.items()))
        arms[", ".join(f"{path.split('.')[-1]}={value}" for path, value in combination.items())] = changes
    return arms


def _nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value
