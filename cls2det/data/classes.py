"""Classes of two sides, a split and weights say, are the same if their names are; order and ids may differ."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from cls2det.errors import some

SAME_CLASSES = "List all classes in the annotation files of all splits, also those without objects"


def class_order(wanted: Sequence[str], found: Sequence[str], of_wanted: str, of_found: str, remedy: str) -> list[int]:
    """Place in ``found`` of each of ``wanted``.

    Args:
        wanted: names of classes
        found: the same names, in any order
        of_wanted: what ``wanted`` are the classes of, for the message
        of_found: the same for ``found``
        remedy: the way out, for the message

    Raises:
        ValueError: a name that only one side has
    """
    only_wanted = [name for name in wanted if name not in found]
    only_found = [name for name in found if name not in wanted]
    if only_found or only_wanted:
        sides = [
            f"only {side} has {quoted(names)}" for side, names in ((of_wanted, only_wanted), (of_found, only_found)) if names
        ]
        raise ValueError(
            f"{of_wanted} has {counted(wanted)} and {of_found} {counted(found)}, of other names: {', '.join(sides)}"
            f"{overlooked(only_wanted, only_found)}. {remedy}"
        )
    return [list(found).index(name) for name in wanted]


def quoted(names: Sequence[str]) -> str:
    """The first names in quotes, which show blanks, and how many more there are."""
    return some([repr(name) for name in names])


def counted(classes: Sequence[str]) -> str:
    return f"{len(classes)} class" if len(classes) == 1 else f"{len(classes)} classes"


def plain(name: str) -> str:
    """The name without what is easily overlooked: case, and blanks around it or doubled in it."""
    return " ".join(name.split()).casefold()


def overlooked(names: Sequence[str], others: Sequence[str]) -> str:
    """For a message: the first of ``names`` that differs from one of ``others`` by case or blanks alone; "" if none does."""
    twins = {plain(other): other for other in others}
    pair = next(((name, twins[plain(name)]) for name in names if plain(name) in twins), None)
    return f"; {pair[0]!r} and {pair[1]!r} differ by case or blanks alone, which counts" if pair else ""


def warn_of_twins(classes: Sequence[str], file: Path) -> None:
    """Warn of classes of one file whose names differ by case or blanks alone: most likely one class, written in two ways."""
    first: dict[str, str] = {}
    pairs = [f"{first[plain(name)]!r} and {name!r}" for name in classes if first.setdefault(plain(name), name) != name]
    if pairs:
        warnings.warn(
            f"{file}: categories differ by case or blanks alone and count as different classes: {some(pairs)}",
            stacklevel=3,
        )
