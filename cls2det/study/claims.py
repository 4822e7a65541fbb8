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
    def print_of(root: Path, split: str) -> Fingerprint:
        return fingerprint(DetectionData(root, split))

    for training in trainings:
        options, folder = training.options, training.folder
        check_claim(folder, options)
        if not (folder / "options.json").is_file():
            continue
        data = {split: print_of(options.data_root, split) for split in (options.train_split, options.val_split) if split}
        check_claim(folder, options, Inputs(data, weights_of(options, digest)))
        evaluation = folder / training.split / "evaluation.json"
        then = read(evaluation).get("annotations", {}) if evaluation.is_file() else {}
        if then and (changed := changes(then, print_of(options.data_root, training.split))):
            text = f"{evaluation} is of other data: {training.split} has other {', '.join(changed)}"
            raise FileExistsError(f"{text}. Give another --out, or put them back")
