"""Which options make a run what it is: options.json holds these, and a restart in the same folder must have the same."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from cls2det.commands.options import DistillOptions, PretrainOptions, TeacherOptions, TrainOptions
from cls2det.commands.renamed import present
from cls2det.data.fingerprint import Fingerprint
from cls2det.models.weights import weights_digest
from cls2det.teachers.bank_file import read_header
from cls2det.training import runs
from cls2det.training.settings import CLAIMED

# Options that a restart may change. Of those of ``run``, CLAIMED alone must stay.
NOT_IDENTITY = ("out", "allow_poor_teacher", "run")
# What options.json of a run of ``train`` held although nothing was distilled.
UNREAD_BY_TRAIN = (
    *("teacher", "detector_teacher", "distillers", "classifier"),
    *("chen", "fgfi", "gid", "fkd", "fgd", "pkd", "cwd", "bckd", "harmony"),
)
# Options that are newer than some runs, with what these did, which is not today's default.
OF_OLDER_RUNS = {"term_weights": "fixed"}
DATA_FOLDERS = ("annotations", "Annotations", "ImageSets", "JPEGImages", "images", "labels")  # beside those of splits
KINDS = {"teacher": TeacherOptions, "train": TrainOptions, "distill": DistillOptions, "pretrain": PretrainOptions}


def identity(options: TeacherOptions | TrainOptions | PretrainOptions) -> dict[str, Any]:
    """The command and the options that make the run, as plain values."""
    command = "train"
    if isinstance(options, DistillOptions):
        if options.distils:
            command = "distill"
        else:
            options = options.without_distillation()
    elif not isinstance(options, TrainOptions):
        command = "teacher" if isinstance(options, TeacherOptions) else "pretrain"
    values = dataclasses.asdict(options)
    record = {name: value for name, value in values.items() if name not in NOT_IDENTITY}
    run = {name: values["run"].get(name) for name in CLAIMED}
    return _plain({"command": command, **record, "run": run})


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(value, default=lambda part: vars(part) if dataclasses.is_dataclass(part) else str(part)))


def present_run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Content of a run's options.json, as it would be written today: an option that is newer than the run has its default."""
    options = present(options)
    command = options.get("command")
    if command == "train":
        options = {name: value for name, value in options.items() if name not in UNREAD_BY_TRAIN}
    return {**options, **_missing(KINDS[command], options)} if command in KINDS else options


def _missing(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a record that are not there, and the groups in which some are not, with defaults for these."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if default is dataclasses.MISSING or field.name in ("out", "allow_poor_teacher"):
            continue
        values = OF_OLDER_RUNS.get(field.name, _plain(default))
        if field.name == "run":
            values = {name: values.get(name) for name in CLAIMED}
        if field.name not in options:
            result[field.name] = values
        elif isinstance(values, dict) and isinstance(options[field.name], Mapping):
            result[field.name] = {**values, **options[field.name]}
    return result


def as_begun(options: DistillOptions) -> DistillOptions:
    """The options of a run that an older version began in the folder: it goes on as it was begun, whatever the default is now."""
    file = options.out / "options.json"
    try:
        then = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no run, or one that ``claim`` has more to say about
        return options
    if not isinstance(then, dict) or then.get("command") != "distill":
        return options
    changes: dict[str, Any] = {
        name: value for name, value in OF_OLDER_RUNS.items() if name not in then and getattr(options, name) != value
    }
    for name, value in changes.items():
        logging.getLogger(__name__).info("%s was begun by an older version: it goes on with %s %s", options.out, name, value)
    return dataclasses.replace(options, **changes)


def claim(options: TeacherOptions | TrainOptions | PretrainOptions, data: dict[str, Fingerprint]) -> None:
    """Make ``options.out`` the folder of the run.

    Args:
        options: of the run
        data: fingerprints by split

    Raises:
        FileExistsError: it holds a run of another identity, or one whose data or teachers have changed since
        OSError: nothing can be written there
        ValueError: it lies among the data
    """
    if not (options.out / "options.json").is_file():
        _check_place(options)
    runs.claim(options.out, identity(options), runs.Inputs(data, weights_of(options)), rename=present_run)


def check_claim(
    folder: Path, options: TeacherOptions | TrainOptions | PretrainOptions, inputs: runs.Inputs | None = None
) -> None:
    """FileExistsError if the folder holds a run of another identity, or, where ``inputs`` are given, with others."""
    runs.check_claim(folder, identity(options), present_run, inputs)


def weights_of(
    options: TeacherOptions | TrainOptions | PretrainOptions, digest: Callable[[Path], str] = weights_digest
) -> dict[str, str]:
    """Digests of the files and folders that a run starts from and learns from, by option; of those that are there.

    Args:
        options: of the run
        digest: of a weights.pt; those of other libraries are read as bytes
    """
    names = ["start", "student", "architecture", "backbone_weights"]
    if isinstance(options, DistillOptions) and options.distils:
        names += ["teacher", "detector_teacher", "encoder", "encoder_weights"]
    digests = digests_of({name: getattr(options, name, None) for name in names}, digest)
    if isinstance(options, DistillOptions) and options.bank and all(path.is_file() for path in options.bank):
        digests["bank"] = " ".join(str(read_header(path).about["digest"]) for path in options.bank)
    return digests


def digests_of(values: Mapping[str, Any], digest: Callable[[Path], str] = weights_digest) -> dict[str, str]:
    """Digests of the files and folders that options name, as ``weights_of``; ``values`` are those of the options."""
    digests = {}
    for name, given in values.items():
        value = str(given or "")
        prefix = next((prefix for prefix in ("hf:", "zero-shot:") if value.startswith(prefix)), "")
        path = Path(value.removeprefix(prefix)).expanduser()
        if name in OURS and path.is_file():
            digests[name] = digest(path)
        elif value and (prefix or name.endswith("_weights")) and (files := _files_of(path)):
            digests[name] = files_digest(files)
    return digests


OURS = ("start", "teacher", "detector_teacher", "encoder")  # options whose file is a weights.pt


def _files_of(path: Path) -> list[Path]:
    """A file, or the weights and settings in a folder of transformers or safetensors."""
    if path.is_file():
        return [path]
    return sorted([*path.glob("*.safetensors"), *path.glob("*.json")]) if path.is_dir() else []


def files_digest(files: Sequence[Path]) -> str:
    """A digest of the bytes of files."""
    digest = blake2b(digest_size=8)
    for file in files:
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _check_place(options: TeacherOptions | TrainOptions | PretrainOptions) -> None:
    """What a run writes among the pictures or annotations would be taken for data the next time."""
    out, root = options.out.resolve(), options.data_root.resolve()
    root = root.parent if root.is_file() else root
    folders = [root / name for name in (*DATA_FOLDERS, options.train_split, options.val_split) if name]
    if out == root or any(out.is_relative_to(folder) for folder in folders):
        raise ValueError(f"out: {options.out} lies among the data of {options.data_root}; give a folder beside them")
