"""``cls2det predict``: what a trained student finds in images, as pictures and as numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cls2det.data.images import read_image, to_float
from cls2det.evaluation.drawing import draw_boxes, write_picture
from cls2det.files import write_json
from cls2det.models.students import load_student
from cls2det.training.progress import Progress, progress_bar
from cls2det.training.settings import Device, Run

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}  # of what is taken from folders


def predict(
    weights: Path,
    images: list[Path],
    out: Path,
    threshold: float = 0.5,
    most: int = 100,
    device: Device = "auto",
    no_pictures: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Detect objects in images, and draw them.

    Writes a picture per image under ``out``, in the folders of the images, and ``predictions.json``. An image that cannot be
    read is named and left out.

    Args:
        weights: weights.pt of ``cls2det train`` or ``distill``
        images: image files, and folders, which are searched with all that is below them
        out: folder for what is written
        threshold: detections with a lower score are left out
        most: detections per image at most, those of the highest scores
        device: auto takes a GPU if there is one
        no_pictures: write predictions.json alone
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a score from 0 to 1, found {threshold}")
    out, pictures = Path(out), find_images(images, out)
    student, torch_device = load_student(weights), Run(device).torch_device
    detector, classes = student.detector.to(torch_device), student.classes
    predictions, unreadable = [], []
    with progress_bar("predicting", progress) as told:
        for number, (file, picture) in enumerate(pictures.items(), start=1):
            told(number, len(pictures), "")
            try:
                image = read_image(file)
            except ValueError as error:
                unreadable.append({"file": str(file), "reason": str(error)})
                print(f"left out: {error}", file=sys.stderr)
                continue
            found = _detect(detector, image.to(torch_device), threshold, most)
            prediction = {
                "file": str(file),
                "width": image.shape[2],
                "height": image.shape[1],
                "boxes": found["boxes"].tolist(),
                "classes": [classes[label - 1] for label in found["labels"].tolist()],
                "scores": found["scores"].tolist(),
            }
            if not no_pictures:
                write_picture(draw_boxes(image, found["boxes"], found["labels"], classes, found["scores"]), out / picture)
                prediction["picture"] = picture.as_posix()
            predictions.append(prediction)
    if not predictions:
        raise ValueError(f"none of {len(pictures)} images could be read; the first: {unreadable[0]['reason']}")
    out.mkdir(parents=True, exist_ok=True)
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
    """Detections of one image, on the CPU, best first. Each image alone: its neighbours in a batch would pad it."""
    found = {name: value.cpu() for name, value in detector(to_float([image]))[0].items()}
    order = found["scores"].argsort(descending=True, stable=True)
    order = order[found["scores"][order] >= threshold][:most]
    return {name: value[order] for name, value in found.items()}


def find_images(places: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Image files, each once, and of each the name of its picture under ``out``.

    A file that is given itself gives its last part, one found in a folder ``photos`` ``photos/a/b.jpg``. Where two would be
    alike the later is called ``b_2.jpg``; what is neither JPEG nor PNG gets ``.png`` added. What lies in ``out`` below a folder
    is passed over: it was written by this command.
    """
    names: dict[Path, Path] = {}
    inside = Path(out).resolve()
    for place in map(Path, places):
        for file, name in _walk(place):
            written = file.resolve().is_relative_to(inside) and not place.resolve().is_relative_to(inside)
            if not written or place.is_file():
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
        while free.as_posix().lower() in taken:  # lower: some file systems know no difference
            number += 1
            free = picture.with_stem(f"{picture.stem}_{number}")
        taken.add(free.as_posix().lower())
        yield free
