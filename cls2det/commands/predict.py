"""``cls2det predict``: what a trained student finds in images, as pictures and as numbers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cls2det.commands.options import PredictOptions
from cls2det.data.images import read_image
from cls2det.data.suffixes import describe_unreadable, is_readable, is_unreadable, readable_suffixes
from cls2det.errors import first_lines
from cls2det.evaluation.coco import foreground
from cls2det.evaluation.drawing import draw_boxes, write_picture
from cls2det.evaluation.finite import check_finite, finite_heads
from cls2det.files import make_folder, write_json
from cls2det.models.students import load_student
from cls2det.models.students.limits import allow_detections
from cls2det.training.optimizer import torch_device
from cls2det.training.progress import Progress, progress_bar


def predict(options: PredictOptions, progress: Progress | None = None) -> dict[str, int]:
    """Detect, draw and write; returns the numbers of images, detections and images that were left out.

    Images are turned upright by their EXIF orientation: boxes, width and height are those of the picture as viewers show it.
    """
    threshold, out = options.threshold, options.out
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a score from 0 to 1, found {threshold}")
    if options.most < 1:
        raise ValueError(f"most: expected at least 1 detection per image, found {options.most}")
    search = find_images(options.images, out)
    student, device = load_student(options.weights), torch_device(options.device)
    is_new = not out.exists()
    make_folder(out)
    detector, classes = student.detector.to(device), list(student.classes)
    allow_detections(detector, options.most)
    predictions: list[dict[str, Any]] = []
    unreadable = [{"file": str(file), "reason": f"{file.suffix} cannot be read here"} for file in search.unreadable]
    failures: list[str] = []
    best = 0.0
    with progress_bar("predicting", progress) as report_progress, finite_heads(detector):
        for number, (file, picture) in enumerate(search.pictures.items(), start=1):
            report_progress(number, len(search.pictures), "")
            try:
                image = read_image(file, turned=True, max_pixels=options.max_pixels)
                detections = _detect(detector, image.to(device), options.most)
                best = max([best, *detections["scores"][:1].tolist()])
                sure = detections["scores"] >= threshold
                boxes, labels, scores = (detections[name][sure] for name in ("boxes", "labels", "scores"))
                if not options.no_pictures:
                    write_picture(draw_boxes(image, boxes, labels, classes, scores), out / picture)
            except (ValueError, RuntimeError, MemoryError) as error:  # torch's of a picture too large for the memory, say
                reason = str(error) if isinstance(error, ValueError) else first_lines(error)
                failures.append(reason if str(file) in reason else f"cannot use {file}: {reason}")
                unreadable.append({"file": str(file), "reason": reason})
                print(f"left out: {failures[-1]}", file=sys.stderr)
                continue
            prediction = {
                "file": str(file),
                "width": image.shape[2],
                "height": image.shape[1],
                "boxes": boxes.tolist(),
                "classes": [classes[label - 1] for label in labels.tolist()],
                "scores": scores.tolist(),
            }
            if not options.no_pictures:
                prediction["picture"] = picture.as_posix()
            predictions.append(prediction)
    if not predictions:
        if is_new:
            out.rmdir()
        raise ValueError(f"none of {len(failures)} images could be used; the first: {failures[0]}")
    write_json(
        out / "predictions.json", {"threshold": threshold, "classes": classes, "images": predictions, "unreadable": unreadable}
    )
    if not any(prediction["scores"] for prediction in predictions):
        print(f"no detection has a score of {threshold:g} or more; the best has {best:.2g} (--threshold)", file=sys.stderr)
    return {
        "images": len(predictions),
        "detections": sum(len(prediction["scores"]) for prediction in predictions),
        "unreadable": len(unreadable),
    }


@torch.no_grad()
def _detect(detector: torch.nn.Module, image: Tensor, most: int) -> dict[str, Tensor]:
    """Detections of one uint8 image, on the CPU, best first. Each image alone: its neighbours in a batch would pad it."""
    detections = {name: value.cpu() for name, value in detector([image.float() / 255])[0].items()}
    check_finite(detections, "it")
    detections = foreground(detections)
    order = detections["scores"].argsort(descending=True, stable=True)[:most]
    return {name: value[order] for name, value in detections.items()}


class Found(NamedTuple):
    """What a search found.

    Attributes:
        pictures: image files, each once, with the name of the picture that is drawn for it, under ``out``
        unreadable: files whose names are those of pictures, in formats that cannot be read
    """

    pictures: dict[Path, Path]
    unreadable: list[Path]


def find_images(places: Sequence[Path], out: Path) -> Found:
    """Image files in ``places``, which are files that are taken as they are, and folders that are searched at every depth.

    The picture of a file ``a/b.jpg`` is ``b.jpg``; that of a file in the folder ``photos`` is ``photos/a/b.jpg``. Where two names
    are alike the later is ``b_2.jpg``; names that end in neither JPEG nor PNG get ``.png`` added. Files in ``out`` are left out
    where a folder is searched: this command wrote them. Pictures of unreadable kinds, and folders that cannot be opened, are
    named on stderr.
    """
    names: dict[Path, Path] = {}
    unreadable: dict[Path, None] = {}  # as a set that keeps its order
    inside = Path(out).resolve()
    for place in map(Path, places):
        for file, name in _walk(place):
            is_result = file.resolve().is_relative_to(inside) and not place.resolve().is_relative_to(inside)
            if is_result and not place.is_file():
                continue
            if is_readable(file) or place.is_file():
                names.setdefault(file.resolve(), name)
            elif is_unreadable(file):
                unreadable[file.resolve()] = None
    passed_over = describe_unreadable(unreadable)
    if not names:
        raise ValueError(
            f"no images in {', '.join(map(str, places))}: expected files with {' '.join(sorted(readable_suffixes()))}"
            + (f"; found {passed_over}" if passed_over else "")
        )
    if passed_over:
        print(f"left out: {passed_over}", file=sys.stderr)
    pictures = dict(zip(names, _without_clashes(names.values()), strict=True))
    for picture in pictures.values():
        if (inside / picture) in pictures:
            raise ValueError(f"out: a picture in {out} would overwrite the image {inside / picture}; give another folder")
    return Found(pictures, list(unreadable))


def _walk(place: Path) -> Iterator[tuple[Path, Path]]:
    if not place.exists():
        raise FileNotFoundError(f"images: no file or folder {place}")
    if place.is_file():
        yield place, Path(place.name)
        return
    for file in sorted(_files(place)):
        yield file, place.resolve().name / file.relative_to(place)


def _files(place: Path) -> Iterator[Path]:
    """All files in a folder, also behind links to folders, each folder once: links can lead in a circle."""
    searched = set()

    def report(error: OSError) -> None:
        print(f"not searched: {error.filename}: {error.strerror}", file=sys.stderr)

    for folder, folders, files in os.walk(place, followlinks=True, onerror=report):
        if (real := os.path.realpath(folder)) in searched:
            folders.clear()
            continue
        searched.add(real)
        yield from (Path(folder, name) for name in files if not _is_special(Path(folder, name)))


def _is_special(file: Path) -> bool:
    """Whether it is a pipe or a device, on which a reader would wait. A broken link is not: it is named when it is read."""
    return file.exists() and not file.is_file()


def _without_clashes(names: Iterable[Path]) -> Iterator[Path]:
    taken = set()
    for name in names:
        picture = name if name.suffix.lower() in (".jpg", ".jpeg", ".png") else name.with_name(f"{name.name}.png")
        free, number = picture, 1
        while free.as_posix().lower() in taken:  # lower: there are file systems that ignore case
            number += 1
            free = picture.with_stem(f"{picture.stem}_{number}")
        taken.add(free.as_posix().lower())
        yield free
