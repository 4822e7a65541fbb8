"""``cls2det predict``: what a trained student finds in images, as pictures and as numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cls2det.commands.options import PredictOptions
from cls2det.data.images import read_image
from cls2det.evaluation.drawing import draw_boxes, write_picture
from cls2det.files import make_folder, write_json
from cls2det.models.students import load_student
from cls2det.training.optimizer import torch_device
from cls2det.training.progress import Progress, progress_bar

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}  # of the files that are taken from folders


def predict(options: PredictOptions, progress: Progress | None = None) -> dict[str, int]:
    """Detect, draw and write; returns the numbers of images, detections and unreadable images."""
    threshold, out = options.threshold, options.out
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a score from 0 to 1, found {threshold}")
    pictures = find_images(options.images, out)
    student, device = load_student(options.weights), torch_device(options.device)
    is_new = not out.exists()
    make_folder(out)
    detector, classes = student.detector.to(device), list(student.classes)
    predictions: list[dict[str, Any]] = []
    unreadable: list[dict[str, str]] = []
    with progress_bar("predicting", progress) as report_progress:
        for number, (file, picture) in enumerate(pictures.items(), start=1):
            report_progress(number, len(pictures), "")
            try:
                image = read_image(file)
            except ValueError as error:
                unreadable.append({"file": str(file), "reason": str(error)})
                print(f"left out: {error}", file=sys.stderr)
                continue
            detections = _detect(detector, image.to(device), threshold, options.most)
            boxes, labels, scores = (detections[name] for name in ("boxes", "labels", "scores"))
            prediction = {
                "file": str(file),
                "width": image.shape[2],
                "height": image.shape[1],
                "boxes": boxes.tolist(),
                "classes": [classes[label - 1] for label in labels.tolist()],
                "scores": scores.tolist(),
            }
            if not options.no_pictures:
                write_picture(draw_boxes(image, boxes, labels, classes, scores), out / picture)
                prediction["picture"] = picture.as_posix()
            predictions.append(prediction)
    if not predictions:
        if is_new:
            out.rmdir()
        raise ValueError(f"none of {len(pictures)} images could be read; the first: {unreadable[0]['reason']}")
    write_json(
        out / "predictions.json", {"threshold": threshold, "classes": classes, "images": predictions, "unreadable": unreadable}
    )
    return {
        "images": len(predictions),
        "detections": sum(len(prediction["scores"]) for prediction in predictions),
        "unreadable": len(unreadable),
    }


@torch.no_grad()
def _detect(detector: torch.nn.Module, image: Tensor, threshold: float, most: int) -> dict[str, Tensor]:
    """Detections of one uint8 image, on the CPU, best first. Each image alone: its neighbours in a batch would pad it."""
    detections = {name: value.cpu() for name, value in detector([image.float() / 255])[0].items()}
    order = detections["scores"].argsort(descending=True, stable=True)
    order = order[detections["scores"][order] >= threshold][:most]
    return {name: value[order] for name, value in detections.items()}


def find_images(places: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Image files, each once, with the name of the picture that is drawn for it, under ``out``.

    The picture of a file ``a/b.jpg`` is ``b.jpg``; that of a file in the folder ``photos`` is ``photos/a/b.jpg``. Where two names
    are alike the later is ``b_2.jpg``; names that end in neither JPEG nor PNG get ``.png`` added. Files in ``out`` are left out
    where a folder is searched: this command wrote them.
    """
    names: dict[Path, Path] = {}
    inside = Path(out).resolve()
    for place in map(Path, places):
        for file, name in _walk(place):
            is_result = file.resolve().is_relative_to(inside) and not place.resolve().is_relative_to(inside)
            if not is_result or place.is_file():
                names.setdefault(file.resolve(), name)
    if not names:
        raise ValueError(f"no images in {', '.join(map(str, places))}: expected files with {' '.join(sorted(SUFFIXES))}")
    pictures = dict(zip(names, _without_clashes(names.values()), strict=True))
    for picture in pictures.values():
        if (inside / picture) in pictures:
            raise ValueError(f"out: a picture in {out} would overwrite the image {inside / picture}; give another folder")
    return pictures


def _walk(place: Path) -> Iterator[tuple[Path, Path]]:
    if not place.exists():
        raise FileNotFoundError(f"images: no file or folder {place}")
    if place.is_file():
        yield place, Path(place.name)
        return
    for file in sorted(place.rglob("*")):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            yield file, place.resolve().name / file.relative_to(place)


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
