"""A teacher of other classes: which of the teacher's classes stand for which of the data's, and what becomes of their logits.

    mapping = {"husky": "dog", "poodle": "dog", "animal": ["cat", "dog"], "sofa": None}       # teacher's name: data's name

Names that both sides have, and that the table does not mention, stand for each other. Of a teacher's class that stands for none
nothing is left, unless the teacher has a column for the background: its probability goes there.

==================================  ==========================================  ================================
case                                softmax                                     sigmoids
==================================  ==========================================  ================================
several finer classes, one coarser  their probabilities add up                  1 - Π (1 - p), as if independent
a coarser class, several finer      its probability is shared evenly            the same
a class that stands for none        left out, the others are scaled to sum 1    left out
==================================  ==========================================  ================================

Probabilities are those at temperature 1: a temperature is applied to the logits that come out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cls2det.data.classes import class_order, overlooked, quoted

ClassTable = Mapping[str, str | Sequence[str] | None]
HEADS = ("softmax", "sigmoid")


class ClassMap(nn.Module):
    """From a teacher's logits (N, columns) to those of the data's classes (N, C), or (N, C + 1) with a column for the background.

    Args:
        sources: of each class of the data, columns of the teacher
        shares: of each column of the teacher, how many classes of the data share its probability
        background: columns of the teacher that add up to the background; none for no such column
        head: how the logits are read, "softmax" or "sigmoid"
    """

    table: Tensor
    log_shares: Tensor
    background: Tensor

    def __init__(self, sources: Sequence[Sequence[int]], shares: Mapping[int, int], background: Sequence[int], head: str):
        super().__init__()
        self.head = head
        self.is_order = all(len(row) == 1 and shares[row[0]] == 1 for row in sources) and len(background) < 2
        width = max(map(len, sources))
        table = [[*row, *[row[0]] * (width - len(row))] for row in sources]
        weights = [[*(math.log(shares[column]) for column in row), *[math.inf] * (width - len(row))] for row in sources]
        self.register_buffer("table", torch.tensor(table), persistent=False)
        self.register_buffer("log_shares", torch.tensor(weights), persistent=False)
        self.register_buffer("background", torch.tensor(background, dtype=torch.int64), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        if self.is_order:
            return logits[:, torch.cat([self.table[:, 0], self.background])]
        logits = logits.float()
        parts, log_shares = logits[:, self.table], self.log_shares  # (N, C, sources)
        mapped = (parts - log_shares).logsumexp(2) if self.head == "softmax" else _any_of(parts, log_shares)
        if not len(self.background):
            return mapped
        return torch.cat([mapped, logits[:, self.background].logsumexp(1, keepdim=True)], 1)


def _any_of(logits: Tensor, log_shares: Tensor) -> Tensor:
    """Logit of 1 - Π (1 - p / share) over the last dimension; where all p are next to 0, of their sum, which is the same."""
    shares = log_shares.exp()
    log_missed = torch.where(shares == 1, F.logsigmoid(-logits), torch.log1p(-logits.sigmoid() / shares)).sum(2)
    little = (F.logsigmoid(logits) - log_shares).logsumexp(2)
    is_little = log_missed > -1e-5
    some = log_missed.masked_fill(is_little, -1.0)
    return torch.where(is_little, little, torch.log(-torch.expm1(some)) - some)


def class_map(
    wanted: Sequence[str],
    known: Sequence[str],
    table: ClassTable | None,
    *,
    head: str = "softmax",
    background: bool = False,
    of_wanted: str = "the data",
    of_known: str = "the teacher",
) -> ClassMap | None:
    """The map from a teacher of the classes ``known`` to the classes ``wanted``; None where these are the same, in one order.

    Args:
        wanted: names of the data's classes, in order of label
        known: names of the teacher's classes, in order of its columns
        table: see above; None takes the same names in any order, and nothing else
        head: how the logits are read
        background: whether the teacher's last column, beyond ``known``, is that of the background
        of_wanted: what ``wanted`` are the classes of, for messages
        of_known: the same for ``known``

    Raises:
        ValueError: names that a side does not have, a class of the data that nothing stands for, no such head
    """
    if head not in HEADS:
        raise ValueError(f"head is {' or '.join(HEADS)}, found {head!r}")
    if table is None:
        remedy = "Train the teacher on the same classes, or say which of its classes stand for which (class_mapping)"
        targets: list[list[int]] = [[] for _ in known]
        for place, column in enumerate(class_order(wanted, known, of_wanted, of_known, remedy)):
            targets[column].append(place)
    else:
        targets = _targets(wanted, known, table, of_wanted, of_known)
    sources = [[column for column, places in enumerate(targets) if place in places] for place in range(len(wanted))]
    if bare := [name for name, row in zip(wanted, sources, strict=True) if not row]:
        raise ValueError(
            f"class_mapping leaves classes of {of_wanted} without one of {of_known}: {quoted(bare)}; it maps names of {of_known} to "
            f"names of {of_wanted}"
        )
    others = [column for column, places in enumerate(targets) if not places]
    ours = ClassMap(
        sources,
        {column: len(places) for column, places in enumerate(targets)},
        [len(known), *others] if background else [],
        head,
    )
    same = ours.is_order and list(wanted) == list(known) and sources == [[place] for place in range(len(wanted))]
    return None if same else ours


def _targets(wanted: Sequence[str], known: Sequence[str], table: ClassTable, of_wanted: str, of_known: str) -> list[list[int]]:
    """For every class of the teacher, the places of the data's classes that it stands for."""
    values = {name: _names(name, value) for name, value in table.items()}
    named = [name for names in values.values() for name in names]
    for names, side, others in ((list(values), of_known, known), (named, of_wanted, wanted)):
        if unknown := [name for name in names if name not in others]:
            raise ValueError(
                f"class_mapping names {quoted(unknown)}, which {side} does not have{overlooked(unknown, others)}; "
                f"there are {quoted(others)}"
            )
    places = {name: place for place, name in enumerate(wanted)}
    return [
        [places[target] for target in dict.fromkeys(values[name])]
        if name in values
        else ([places[name]] if name in places else [])
        for name in known
    ]


def _names(name: str, value: Any) -> list[str]:
    """A table's value as names."""
    names = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if wrong := [entry for entry in (name, *names) if not isinstance(entry, str)]:
        raise ValueError(
            f"class_mapping maps a name to a name, to names, or to null, found {wrong[0]!r} in {name!r}: {value!r}; "
            "put a name that looks like a number in quotes"
        )
    return names


class Mapped(nn.Module):
    """A reader whose logits are brought to the data's classes; its layers are as they were."""

    def __init__(self, reader: nn.Module, classes: nn.Module):
        super().__init__()
        self.reader, self.classes = reader, classes

    def forward(self, crops: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.reader(crops)
        return {**outputs, "logits": self.classes(outputs["logits"])}


def shared_copy(module: nn.Module) -> Any:
    """A copy that shares its parts with the module, and to which others can be added."""
    copied = copy.copy(module)
    for name in ("_modules", "_parameters", "_buffers"):
        copied.__dict__[name] = dict(module.__dict__[name])
    return copied
