"""A bank: a teacher's outputs on every ground-truth crop of a data set, computed once by ``cls2det bank`` and read in its place.

    bank = Bank("bank.safetensors")
    logits = bank(annotation_ids, mirrored=mirrored, generator=generator)      # (n, C), float32, on the CPU

A training step costs a gather of some rows, whatever the teacher's size. ``bank_views`` says what crops are in it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.data.classes import class_order, quoted
from cls2det.data.dataset import DetectionData
from cls2det.data.fingerprint import changes, with_annotation_ids
from cls2det.teachers.accuracy import NO_TEACHER
from cls2det.teachers.bank_file import ANEW, open_bank

FAR = 2.0  # times larger: the pictures that the crops were cut out of, and the student's


class Bank:
    """``bank(annotation_ids)`` gives logits, ``bank.embeddings(annotation_ids)`` an encoder's embeddings.

    Args:
        path: of a file that ``cls2det bank`` wrote
        check: read it once, and compare it with the digest that it holds, about a second per GB

    Attributes:
        about: what the header says, plain values:

            - ``classes``: names, in order of label; ``loss`` (ce, bce or joint) and ``background``: of a teacher
            - ``teacher``, ``encoder``: source, digest of the weights, crop_size, margin, mean and std of the crops, and whether that
              normalisation is the network's own; None where there is none
            - ``data``: fingerprint of the split, with its annotation ids; ``split``: its name
            - ``pictures``: the student and its transform, that pictures were resized and normalised by
            - ``views``, ``flip``, ``augmentation``, ``margins``, ``seed``, ``precision``, ``batch_size``, and ``max_image_side``,
              which older files do not have
            - ``calibration``: of logits of the first view, on ``split``: accuracy, ece, overconfidence, log_likelihood and the
              temperature that would raise it most, by how they are read (``softmax``, ``sigmoid``)
            - ``digest``: of all of this, and of the tensors
        classes: names, in order of the logits' columns
        views: how many there are of each box
        annotation_ids: (N,) int64, ascending

    Raises:
        FileNotFoundError, ValueError: as ``bank_file.open_bank``
    """

    def __init__(self, path: str | Path, *, check: bool = True):
        self.path = Path(path)
        self.about, maps = open_bank(path, check=check)
        self.arrays = {name: np.asarray(array) for name, array in maps.items()}  # views without a map's slower indexing
        self.classes: list[str] = list(self.about["classes"])
        self.views: int = self.about["views"]
        self.annotation_ids = np.array(self.arrays["annotation_ids"])
        self.columns: np.ndarray | None = None  # of the file, for ``classes``; None where the order is the file's

    def __deepcopy__(self, _memo: dict[int, Any]) -> Bank:
        """A copy of what trains reads the same file."""
        return self

    @property
    def has_logits(self) -> bool:
        return "logits" in self.arrays

    @property
    def has_embeddings(self) -> bool:
        return "embeddings" in self.arrays

    @property
    def has_background(self) -> bool:
        """Whether the logits have one column more than there are classes, the last, for the background."""
        return self.has_logits and self.arrays["logits"].shape[3] > len(self.classes)

    @property
    def embedding_size(self) -> int:
        return int(self.arrays["embeddings"].shape[3])

    def __call__(
        self,
        annotation_ids: ArrayLike,
        mirrored: ArrayLike | None = None,
        *,
        draws: ArrayLike | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Logits (n, C), with a column for the background (n, C + 1); float32, on the CPU, without gradient.

        Args:
            annotation_ids: (n,) integers, on the CPU: to read them from a GPU would wait for it
            mirrored: (n,) booleans: whether each picture is mirrored; None is no
            draws: (n,) integers from 0, by which a view is chosen, modulo their number; None draws them from ``generator``
            generator: on the CPU; None is torch's own. Where there is one view, nothing is drawn

        Raises:
            ValueError: an id that the bank does not have; a bank without logits
        """
        rows = self._read("logits", annotation_ids, mirrored, draws, generator)
        return rows if self.columns is None else rows[:, self.columns]

    def embeddings(
        self,
        annotation_ids: ArrayLike,
        mirrored: ArrayLike | None = None,
        *,
        draws: ArrayLike | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Embeddings (n, D), as ``__call__`` gives logits."""
        return self._read("embeddings", annotation_ids, mirrored, draws, generator)

    def logits_of(self, origins: np.ndarray) -> Tensor:
        """Logits (n, C) of boxes by their ``data.origins``."""
        return self(origins["annotation_id"], origins["mirrored"], draws=origins["draw"])

    def embeddings_of(self, origins: np.ndarray) -> Tensor:
        """Embeddings (n, D) of boxes by their ``data.origins``."""
        return self.embeddings(origins["annotation_id"], origins["mirrored"], draws=origins["draw"])

    def _read(
        self,
        name: str,
        annotation_ids: ArrayLike,
        mirrored: ArrayLike | None,
        draws: ArrayLike | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        if name not in self.arrays:
            raise ValueError(f"{self.path} holds no {name}, but {self.content}; {ANEW}")
        values, rows = self.arrays[name], self.rows_of(annotation_ids)
        if self.views == 1:
            views = np.zeros(len(rows), np.int64)
        elif draws is None:
            views = torch.randint(self.views, (len(rows),), generator=generator).numpy()
        else:
            views = np.asarray(draws, dtype=np.int64) % self.views
        sides = np.zeros(len(rows), np.int64)
        if mirrored is not None and values.shape[2] > 1:
            sides[:] = np.asarray(mirrored, dtype=bool)
        places = (rows * self.views + views) * values.shape[2] + sides
        flat = torch.from_numpy(values).flatten(0, 2)  # rows of a list are taken faster than by three indices
        return flat.index_select(0, torch.from_numpy(places)).float()

    def rows_of(self, annotation_ids: ArrayLike) -> np.ndarray:
        """Place (n,) of each annotation in the tensors; ValueError for one that the bank does not have."""
        ids = np.asarray(annotation_ids, dtype=np.int64).reshape(-1)
        rows = np.searchsorted(self.annotation_ids, ids)
        rows[rows == len(self.annotation_ids)] = 0
        if len(ids) and (not len(self.annotation_ids) or (self.annotation_ids[rows] != ids).any()):
            unknown = np.setdiff1d(ids, self.annotation_ids)
            raise ValueError(
                f"{self.path} has nothing of {len(unknown)} annotations ({', '.join(map(str, unknown[:3]))}): it was made of other "
                f"data; {ANEW}"
            )
        return rows

    @property
    def content(self) -> str:
        """Which tensors there are, in words."""
        return " and ".join(name for name in ("logits", "embeddings") if name in self.arrays) or "nothing"

    def for_classes(self, classes: Sequence[str], of_classes: str = "the data") -> Bank:
        """A bank whose columns are ``classes``, in their order: itself, or one that reads the same file.

        Raises:
            ValueError: a name that only one side has
        """
        if list(classes) == self.classes:
            return self
        known = self.about["classes"]
        order = class_order(classes, known, of_classes, str(self.path), f"{ANEW.capitalize()} on the same classes")
        bank = copy.copy(self)
        bank.classes = list(classes)
        bank.columns = np.array([*order, *[len(known)] * self.has_background])
        return bank

    def check_data(self, data: DetectionData) -> None:
        """ValueError unless the bank was made of these data: classes and their order, images, boxes and annotation ids."""
        known = self.about["classes"]
        if data.classes != known:
            class_order(data.classes, known, str(data.annotation_file), str(self.path), f"{ANEW.capitalize()} of these data")
            raise ValueError(
                f"{self.path} has the classes of {data.annotation_file} in another order ({quoted(known)}, here "
                f"{quoted(data.classes)}): they follow the category ids; {ANEW}"
            )
        if texts := changes(self.about["data"], with_annotation_ids(data)):
            raise ValueError(
                f"{self.path} was made of other data than {data.annotation_file}: it has other {', '.join(texts)}; {ANEW}"
            )

    def check_pictures(self, transform: GeneralizedRCNNTransform) -> None:
        """ValueError unless the crops were normalised as the student's pictures, or by the network's own rule.

        A warning where the pictures that they were cut out of had a far other size.

        Args:
            transform: of the student
        """
        then, now = self.about["pictures"]["transform"], _side(transform)
        teacher = self.about["teacher"]
        for name in ("image_mean", "image_std") if teacher and not teacher["own_normalisation"] else ():
            if then[name] != list(getattr(transform, name)):
                raise ValueError(
                    f"{name} is {list(getattr(transform, name))} in the student, and the crops in {self.path} had {then[name]}: its "
                    "teacher looks at other pictures. Train a teacher with --student, and make a bank of it"
                )
        before = int((then["fixed_size"] or then["min_size"])[0])
        if max(before, now) > FAR * min(before, now):
            warnings.warn(
                f"the crops in {self.path} were cut out of pictures of {before} pixels, and the student's have {now}: they are more "
                "blurred than what it sees, or sharper. Make it anew with the student's --student and --image-size",
                stacklevel=3,
            )

    def check_not_at_chance(self) -> None:
        """ValueError unless the logits name the class more often than who always names the commonest one."""
        measured = self.about.get("calibration") or {}
        of_head = next(iter(measured.get("by head", {}).values()), None)
        if not of_head:
            return
        guess, accuracy, count = measured["commonest"] / 100, of_head["accuracy"], measured["crops"]
        if guess == 1 or accuracy / 100 < guess + 2 * (guess * (1 - guess) / count) ** 0.5:
            raise ValueError(
                f"{self.path} names {accuracy:.1f} % of {count} crops right, and naming the commonest class gives "
                f"{100 * guess:.1f} %: it would teach nothing. {NO_TEACHER} (--allow-poor-teacher goes on all the same)"
            )


class AnyBank(Protocol):
    """What the distiller asks of a bank: ``Bank`` and ``BankAverage`` answer it."""

    classes: list[str]
    path: Path

    @property
    def has_background(self) -> bool: ...

    def for_classes(self, classes: Sequence[str], of_classes: str = "the data") -> AnyBank: ...

    def logits_of(self, origins: np.ndarray) -> Tensor: ...


def _side(transform: GeneralizedRCNNTransform) -> int:
    return int((transform.fixed_size or transform.min_size)[0])
