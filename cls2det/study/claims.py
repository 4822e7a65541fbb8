"""What a sweep finds in its folder is of this plan, of these data and of these teachers, or an error before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from cls2det.commands.identity import check_claim, weights_of
from cls2det.commands.options import DistillOptions, TeacherOptions
from cls2det.data.dataset import DetectionData
from cls2det.data.fingerprint import Fingerprint, changes, fingerprint
from cls2det.models.weights import weights_digest
from cls2det.study.trainings import Training, read
from cls2det.training.runs import Inputs


def check_claims(trainings: Iterable[Training[TeacherOptions | DistillOptions]]) -> None:
    """FileExistsError if a folder holds a run with other options, or its data or teachers have changed since: done or half done."""
    digest = cache(weights_digest)

    @cache
    def open_split(root: Path, split: str, order_of: str | None = None) -> DetectionData:
        """With the classes in the order of another split, as a training opens it."""
        return DetectionData(root, split, classes=open_split(root, order_of).classes if order_of else None)

    @cache
    def print_of(root: Path, split: str, train_split: str) -> Fingerprint:
        return fingerprint(open_split(root, split, None if split == train_split else train_split))

    for training in trainings:
        options, folder = training.options, training.folder
        check_claim(folder, options)
        if not (folder / "options.json").is_file():
            continue
        root, trained = options.data_root, options.train_split
        data = {split: print_of(root, split, trained) for split in (trained, options.val_split) if split}
        check_claim(folder, options, Inputs(data, weights_of(options, digest)))
        evaluation = folder / training.split / "evaluation.json"
        then = read(evaluation).get("annotations", {}) if evaluation.is_file() else {}
        if then and (changed := changes(then, print_of(root, training.split, trained))):
            text = f"{evaluation} is of other data: {training.split} has other {', '.join(changed)}"
            raise FileExistsError(f"{text}. Give another --out, or put them back")
