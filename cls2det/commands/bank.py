"""``cls2det bank``: what a teacher makes of every ground-truth crop of a data set, in one file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
from torch import Tensor

from cls2det.commands.bank_inputs import Opened, annotations_of, columns_of, header_of, open_inputs
from cls2det.commands.options import BankOptions
from cls2det.data.augment import get_augmentation
from cls2det.data.dataset import DetectionData
from cls2det.errors import JobFailed
from cls2det.files import make_folder
from cls2det.teachers import bank_file, bank_views
from cls2det.teachers.calibration import best_temperature, calibration, log_likelihood
from cls2det.training.optimizer import torch_device
from cls2det.training.progress import Progress, progress_bar
from cls2det.training.settings import torchrun_processes

MARK_EVERY = 5.0  # seconds of work that a kill may cost
MOST_MEASURED = 20_000  # crops that calibration is measured on
READ_AS = {"ce": ("softmax",), "bce": ("sigmoid",), "joint": ("softmax", "sigmoid")}


def bank(options: BankOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Write the bank, or go on with it; returns what it holds, and how fast it was made."""
    _check(options)
    opened = open_inputs(options)
    about = header_of(options, opened)
    ids, labels = annotations_of(opened.data)
    path, steps = options.out, -(-len(opened.data) // options.batch_size)
    make_folder(path.parent)
    bank_file.check_same(path, about)
    if path.exists():
        bank_file.open_bank(path)
        return _result(path, 0, 0.0)
    shape = (len(ids), options.views, 1 + about["flip"])
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {"annotation_ids": ("I64", (len(ids),)), "labels": ("I64", (len(ids),))}
    if opened.teacher is not None:
        shapes["logits"] = ("F16", (*shape, columns_of(opened.teacher)))
    if opened.encoder is not None:
        shapes["embeddings"] = ("F16", (*shape, opened.encoder.size))

    def fill(arrays: dict[str, np.ndarray]) -> None:
        arrays["annotation_ids"][:], arrays["labels"][:] = ids, labels

    bank_file.begin(path, about, shapes, steps, fill)
    left, began = np.flatnonzero(bank_file.Part(path, steps).done == 0).tolist(), time.perf_counter()
    with progress_bar("bank", progress) as report:
        if options.devices == 1:
            _work(0, options, steps, left, opened, report)
        else:
            _in_processes(options, steps, left, len(opened.data), report)
    seconds = time.perf_counter() - began
    part = bank_file.Part(path, steps)
    if not part.done.all():
        raise RuntimeError(f"{path} is not finished: {int((part.done == 0).sum())} of {steps} steps are left")
    if opened.teacher is not None:
        about |= {"calibration": _calibration(options, opened, part.arrays)}
    part.finish(about)
    images = [image for step in left for image in _images_of(step, options, len(opened.data))]
    return _result(path, sum(len(opened.data.targets[image]["boxes"]) for image in images), seconds)


def check_bank(options: BankOptions) -> None:
    """FileExistsError if ``options.out``, finished or not, is a bank of other options, other data or another teacher."""
    path = options.out
    if bank_file.is_begun(path):
        bank_file.check_same(path, header_of(options, open_inputs(options)))


def _check(options: BankOptions) -> None:
    if (torchrun_processes() or 1) > 1:
        raise ValueError(
            "a bank is made by one command, which starts its processes itself (--devices); start it without torchrun"
        )
    if not options.teacher and not options.encoder:
        raise ValueError("a bank is made of a teacher (--teacher), of an encoder (--encoder), or of both; found neither")
    for name in ("views", "batch_size", "devices"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
    if not options.margins or min(options.margins) < 0:
        raise ValueError(f"margins must be shares from 0, one or more; got {options.margins}")
    if options.views < len(options.margins):
        raise ValueError(f"there are {len(options.margins)} margins, and {options.views} views to have them: give --views")
    if options.views > len(options.margins) and options.augmentation in ("none", "flip"):
        raise ValueError(
            f"{options.views} views of augmentation {options.augmentation} with {len(options.margins)} margins would be the same "
            "crops again: give the training's --augmentation, more --margins, or fewer --views (mirrored views count apart: --flip)"
        )


def _images_of(step: int, options: BankOptions, images: int) -> range:
    """Places of the images of a step of the work."""
    return range(step * options.batch_size, min((step + 1) * options.batch_size, images))


def _in_processes(options: BankOptions, steps: int, left: list[int], images: int, report: Progress) -> None:
    """A process for each device; each takes its share of the steps, and writes their rows to the one file."""
    context = torch.multiprocessing.spawn(_work, (options, steps, left), options.devices, join=False, daemon=True)
    done = bank_file.Part(options.out, steps).done
    try:
        while not context.join(timeout=0.5):
            report(min(int(done.sum()) * options.batch_size, images), images, "")
    except torch.multiprocessing.ProcessRaisedException as error:
        raise JobFailed(f"a process that makes the bank failed:\n{error}") from None
    finally:
        for process in context.processes:
            process.terminate()
            process.join()


def _work(
    rank: int,
    options: BankOptions,
    steps: int,
    left: list[int],
    opened: Opened | None = None,
    report: Progress | None = None,
) -> None:
    """The share of process ``rank`` in the steps that are ``left`` of all: every so many of them."""
    if opened is None:
        torch.set_num_threads(max(1, torch.get_num_threads() // options.devices))
        opened = open_inputs(options)
    device = torch_device(options.device)
    if device.type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    part, size, images = bank_file.Part(options.out, steps), options.batch_size, len(opened.data)
    share = left[rank :: options.devices]
    sources = _sources(options, opened, device)
    augment = None if options.augmentation == "none" else get_augmentation(options.augmentation)
    pictures = bank_views.ViewPictures(opened.data, augment, options.views, options.seed)
    batches = [_images_of(step, options, images) for step in share]
    waiting: list[int] = []
    marked = time.perf_counter()
    try:
        for step, batch in zip(share, bank_views.loader(pictures, batches, options.loader_workers), strict=True):
            for group in bank_views.groups(batch, size):
                for name, source in sources.items():
                    crops = source.crops(group, device)
                    rows = np.searchsorted(part.arrays["annotation_ids"], crops.annotation_ids)
                    part.arrays[name][rows, crops.views] = source.rows(crops, part.arrays[name].shape[2] > 1).numpy()
            waiting.append(step)
            if time.perf_counter() - marked > MARK_EVERY:
                part.mark(waiting)
                waiting, marked = [], time.perf_counter()
            if report:
                done = int((part.done != 0).sum()) + len(waiting)
                report(min(done * size, images), images, "")
    finally:
        part.mark(waiting)


def _sources(options: BankOptions, opened: Opened, device: torch.device) -> dict[str, bank_views.Source]:
    """By the tensor that they write."""
    dtype = {"32": torch.float32, "bf16": torch.bfloat16}[options.precision]
    sources = {}
    if opened.teacher is not None:
        sources["logits"] = bank_views.of_teacher(opened.teacher, opened.transform, options.margins, device, dtype)
    if opened.encoder is not None:
        sources["embeddings"] = bank_views.of_encoder(opened.encoder, opened.transform, options.margins, device)
    return sources


def _calibration(options: BankOptions, opened: Opened, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """How often and how surely the logits of the first view name the class: on the val_split, or on the bank's own boxes."""
    teacher = opened.teacher
    assert teacher is not None
    if options.val_split:
        logits, classes = _validation_logits(options, opened)
    else:
        rows = np.unique(np.linspace(0, len(arrays["labels"]) - 1, MOST_MEASURED).astype(np.int64))
        logits = torch.from_numpy(arrays["logits"][rows, 0, 0].astype(np.float32))
        classes = torch.from_numpy(arrays["labels"][rows] - 1)
    by_head = {}
    for head in READ_AS[teacher.loss] if len(classes) else ():
        is_sigmoid = head == "sigmoid"
        read = logits[:, : len(teacher.classes)] if is_sigmoid else logits
        measured = calibration(teacher.probabilities(logits, sigmoid=is_sigmoid), classes)
        by_head[head] = {
            **{name: measured[name] for name in ("accuracy", "ece", "overconfidence")},
            "log_likelihood": log_likelihood(read, classes, sigmoid=is_sigmoid),
            "temperature": best_temperature(read, classes, sigmoid=is_sigmoid),
        }
    commonest = 100 * classes.bincount().max().item() / len(classes) if len(classes) else 0.0
    split = options.val_split or options.split
    return {"split": split, "crops": len(classes), "commonest": commonest, "by head": by_head}


def _validation_logits(options: BankOptions, opened: Opened) -> tuple[Tensor, Tensor]:
    """Of the boxes of the val_split as they are, spread over it where there are many, and their classes."""
    data = DetectionData(
        options.data_root,
        str(options.val_split),
        labelled_only=True,
        max_pixels=options.max_pixels,
        classes=opened.data.classes,
        classes_of=str(opened.data.annotation_file),
        origins=True,
    )
    device = torch_device(options.device)
    assert opened.teacher is not None
    source = bank_views.of_teacher(opened.teacher, opened.transform, options.margins, device)
    ids, labels = annotations_of(data)
    images = np.unique(np.linspace(0, len(data) - 1, max(1, MOST_MEASURED * len(data) // max(len(ids), 1))).astype(np.int64))
    batches = [part.tolist() for part in np.array_split(images, -(-len(images) // options.batch_size))]
    parts, classes = [], []
    pictures = bank_views.ViewPictures(data, None, 1, options.seed)
    for batch in bank_views.loader(pictures, batches, options.loader_workers):
        for group in bank_views.groups(batch, options.batch_size):
            crops = source.crops(group, device)
            parts.append(source.rows(crops, flip=False)[:, 0])
            classes.append(torch.from_numpy(labels[np.searchsorted(ids, crops.annotation_ids)] - 1))
    return torch.cat(parts), torch.cat(classes)


def _result(path: Path, annotations: int, seconds: float) -> dict[str, Any]:
    """What is printed: of this call, and of the whole file."""
    header = bank_file.read_header(path)
    about, size = header.about, path.stat().st_size
    count = header.places["annotation_ids"][1][0]
    crops = annotations * about["views"] * (1 + about["flip"])
    measured = about.get("calibration") or {"split": None, "by head": {}}
    first: dict[str, Any] = next(iter(measured["by head"].values()), {})
    return {
        "annotations": count,
        "views": about["views"],
        "MiB": size / 2**20,
        "kB per 1000 boxes": (header.end - header.begin) / max(count, 1),
        "crops of this call": crops,
        "crops per second": crops / seconds if seconds else None,
        "split": measured["split"],
        **{name: first.get(name) for name in ("accuracy", "ece", "overconfidence")},
    }
