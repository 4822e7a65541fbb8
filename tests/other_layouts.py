"""Data sets of ``rectangles.py`` rewritten as other tools lay them out: Pascal VOC and YOLO."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rectangles import annotation_file

SPLITS = ("train", "val")


def read(root: Path, split: str) -> tuple[list[str], list[tuple[dict[str, Any], list[dict[str, Any]]]]]:
    """Names of the classes; images with their annotations."""
    content = json.loads(annotation_file(root, split).read_text(encoding="utf-8"))
    pairs = [
        (image, [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]) for image in content["images"]
    ]
    return [category["name"] for category in content["categories"]], pairs


def page(name: str, size: Sequence[int] | None, objects: Sequence[tuple[str, Sequence[float], int]]) -> str:
    """An XML file: of each object its class, xmin, ymin, xmax, ymax, and whether it is difficult."""
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    items = [
        f"<object><name>{label}</name><pose>Unspecified</pose><difficult>{difficult}</difficult><bndbox>"
        f"<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for label, box, difficult in objects
    ]
    return "\n".join(["<annotation>", f"<filename>{name}</filename>", sides, *items, "</annotation>", ""])


def make_voc(data: Path, root: Path, *, flat: bool = False) -> Path:
    """The challenge's layout or, ``flat``, XML files beside the pictures in a folder per split."""
    for split in SPLITS:
        classes, pairs = read(data, split)
        xmls, pictures = (root / split,) * 2 if flat else (root / "Annotations", root / "JPEGImages")
        lists = root / "ImageSets" / "Main"
        for folder in (xmls, pictures) if flat else (xmls, pictures, lists):
            folder.mkdir(parents=True, exist_ok=True)
        for image, entries in pairs:
            name = image["file_name"] if flat else f"{split}_{image['file_name']}"
            shutil.copyfile(data / split / image["file_name"], pictures / name)
            corners = [(x + 1, y + 1, x + w, y + h) for x, y, w, h in (entry["bbox"] for entry in entries)]
            objects = [(classes[entry["category_id"] - 1], box, 0) for entry, box in zip(entries, corners, strict=True)]
            text = page(name, (image["width"], image["height"]), objects)
            (xmls / Path(name).with_suffix(".xml")).write_text(text, encoding="utf-8")
        if not flat:
            names = [f"{split}_{Path(image['file_name']).stem}\n" for image, _ in pairs]
            (lists / f"{split}.txt").write_text("".join(names), encoding="utf-8")
    return root


def make_yolo(data: Path, root: Path, *, form: str = "archive") -> Path:
    """YOLO's layout.

    Args:
        data: in COCO's layout
        root: made
        form: "archive" (data.yaml, train/images, valid/images), "folders" (data.yaml, images/train, images/val), "classes"
            (classes.txt, images/train), or "flat" (classes.txt, labels beside the pictures in a folder per split)
    """
    for split in SPLITS:
        classes, pairs = read(data, split)
        folder = "valid" if (split, form) == ("val", "archive") else split
        places = {"archive": (f"{folder}/images", f"{folder}/labels"), "flat": (folder, folder)}
        pictures, labels = (root / name for name in places.get(form, (f"images/{folder}", f"labels/{folder}")))
        for place in {pictures, labels}:
            place.mkdir(parents=True)
        for image, entries in pairs:
            shutil.copyfile(data / split / image["file_name"], pictures / image["file_name"])
            width, height = image["width"], image["height"]
            lines = [
                f"{entry['category_id'] - 1} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}\n"
                for entry, (x, y, w, h) in ((entry, entry["bbox"]) for entry in entries)
            ]
            if lines:
                (labels / image["file_name"]).with_suffix(".txt").write_text("".join(lines))
    if form in ("classes", "flat"):
        (root / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    elif form == "archive":
        text = f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: {len(classes)}\nnames: {classes}\n"
        (root / "data.yaml").write_text(text, encoding="utf-8")
    else:
        names = "".join(f"  {number}: {name}\n" for number, name in enumerate(classes))
        (root / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}", encoding="utf-8")
    return root


LAYOUTS = {
    "voc": make_voc,
    "voc, flat": lambda data, root: make_voc(data, root, flat=True),
    **{f"yolo, {form}": lambda data, root, form=form: make_yolo(data, root, form=form) for form in ("archive", "folders")},
    **{f"yolo, {form}": lambda data, root, form=form: make_yolo(data, root, form=form) for form in ("classes", "flat")},
}
