"""Options that version 0.1 wrote otherwise: in commands, recipes, sweeps' files and the options.json of runs.

Every reader of options passes them through ``present`` first (words of a command line through ``present_word``), so no other
place knows an old name.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

GROUPS = {"distill": "classifier", "kd": "chen", "tbd": "harmony"}  # of options; kd and tbd are distillers too
# Values that version 0.1 used for "not given", "all" or "none"; they are None now.
NOT_GIVEN = {
    "name": "",
    "image_size": 0,
    "images": 0,
    "seeds": 0,
    "workers": 0,
    "optim.base_batch": 0,
    "optim.steps": 0,
    "optim.clip_norm": 0,
    "run.ema": 0,
    "run.validate_every": 0,
    "run.ratio_every": 0,
    "classifier.pixel_size": 0,
    "classifier.chunk": 0,
    "classifier.max_positives": 0,
}
# What options.json of a run of ``train`` held although nothing was distilled.
UNREAD_BY_TRAIN = (
    *("teacher", "detector_teacher", "distillers", "classifier"),
    *("chen", "fgfi", "gid", "fkd", "fgd", "pkd", "cwd", "bckd", "harmony"),
)
NEWER: dict[str, dict[str, Any]] = {"teacher": {"freeze_body": False}}  # options that old runs lack, and what they did


def present(options: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """Options under their present names and with their present values.

    Args:
        options: nested values by name, or by dotted path
        source: where they come from, for the warning about those that were old; "" for no warning
    """
    changes: dict[str, str] = {}
    result: dict[str, Any] = {}
    for name, value in options.items():
        new_name = present_path(name)
        if new_name in result or (new_name != name and new_name in options):
            raise ValueError(
                f"{source or 'options'}: {name} is the old name of {new_name}, and both are there; keep {new_name}"
            )
        if new_name != name:
            changes[name.split(".")[0]] = new_name.split(".")[0]
        if isinstance(value, Mapping):
            value = {key: _value(f"{new_name}.{key}", item, changes) for key, item in value.items()}
        result[new_name] = _value(new_name, value, changes)
    if changes and source:
        _warn(source, changes)
    return result


def present_path(path: str) -> str:
    """``classifier.temperature`` for ``distill.temperature``."""
    group, *names = path.split(".")
    return ".".join((GROUPS.get(group, group), *names))


def present_words(words: list[str]) -> list[str]:
    """Words of a command line, with the options' present names."""
    changes, result = {}, []
    for word in words:
        if word.startswith("--"):
            option, *value = word[2:].split("=", 1)
            if (new := present_path(option)) != option:
                changes[f"--{option}"] = f"--{new}"
                word = "--" + "=".join((new, *value))
        result.append(word)
    if changes:
        _warn("the command line", changes)
    return result


def present_run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Content of a run's options.json, as it would be written today."""
    options = present(options)
    if options.get("command") == "train":
        options = {name: value for name, value in options.items() if name not in UNREAD_BY_TRAIN}
    return {**NEWER.get(options.get("command", ""), {}), **options}


def _value(path: str, value: Any, changes: dict[str, str]) -> Any:
    if path in NOT_GIVEN and value == NOT_GIVEN[path] and value is not None:
        changes[f"{path} {value!r}"] = f"{path} null"
        return None
    if path == "distillers" and isinstance(value, list | tuple):
        changes |= {name: GROUPS[name] for name in value if name in GROUPS}
        return [GROUPS.get(name, name) for name in value]
    return value


def _warn(source: str, changes: Mapping[str, str]) -> None:
    text = ", ".join(f"{new} in place of {old}" for old, new in changes.items())
    warnings.warn(f"{source} has options of version 0.1, which still work; write {text}", stacklevel=4)
