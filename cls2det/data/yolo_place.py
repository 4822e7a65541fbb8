"""Where a folder of YOLO's layout has its pictures, labels and classes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cls2det.data.parts import WHOLE
from cls2det.data.suffixes import is_readable

CONFIGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")  # others only if there is one alone
CLASS_FILES = ("classes.txt", "labels/classes.txt", "obj.names", "classes.names")


class Place(NamedTuple):
    """Where a split is.

    Attributes:
        file: what messages name: data.yaml, or the folder of the pictures
        sources: folders of pictures, or lists of them
        classes: by number
        keypoints: whether the labels are of poses, whose boxes stand before the key points
    """

    file: Path
    sources: list[Path]
    classes: dict[int, str]
    keypoints: bool


class Config(NamedTuple):
    """A data.yaml."""

    file: Path
    content: dict[str, Any]


def find_yolo(root: Path, split: str, config: Path | None = None) -> Place | None:
    """Where the split is, if ``root`` holds it as YOLO does. ``config`` is the data.yaml, None for that in ``root``."""
    settings = _read_config(root, config)
    sources = _sources(root, split, settings)
    if not sources:
        return None
    if settings:
        return Place(settings.file, sources, _names(settings), bool(settings.content.get("kpt_shape")))
    files = [*(root / name for name in CLASS_FILES), sources[0] / "classes.txt", label_folder(sources[0]) / "classes.txt"]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    return Place(sources[0], sources, dict(enumerate(line.strip() for line in lines if line.strip())), False)


def yolo_splits(root: Path, config: Path | None = None) -> list[str]:
    """Names of the splits that are there."""
    settings = _read_config(root, config)
    names = [key for key in settings.content if key not in ("names", "nc", "path")] if settings else []
    names += [folder.name for place in (root, root / "images") if place.is_dir() for folder in sorted(place.iterdir())]
    names = [WHOLE, *(name for name in names if name not in ("images", "labels"))]
    splits = []
    for name in dict.fromkeys(names):
        with contextlib.suppress(FileNotFoundError):  # a data.yaml may name a split that was never unpacked
            splits += [name] if _sources(root, name, settings) else []
    return splits


def _read_config(root: Path, file: Path | None) -> Config | None:
    """The YAML file with ``names``."""
    files = [file] if file else [root / name for name in CONFIGS if (root / name).is_file()]
    others = sorted((*root.glob("*.yaml"), *root.glob("*.yml"))) if root.is_dir() else []
    for candidate in files or (others if len(others) == 1 else []):
        try:
            content = _load(candidate)
        except ValueError:
            if candidate in files:
                raise
            continue  # a YAML file of something else
        if isinstance(content, dict) and "names" in content:
            return Config(candidate, content)
        if file:
            raise ValueError(f"{file} is no data.yaml of YOLO: it has no names")
    return None


def _load(file: Path) -> Any:
    """With all values as text, as a class may be called "no"."""
    import yaml

    try:
        return yaml.load(file.read_text(encoding="utf-8-sig"), yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from None


def _names(config: Config) -> dict[int, str]:
    names, number = config.content["names"], config.content.get("nc")
    if isinstance(names, list):
        names = {str(place): name for place, name in enumerate(names)}
    if not isinstance(names, dict) or not names or not all(key.isdecimal() and isinstance(names[key], str) for key in names):
        raise ValueError(f"{config.file}: names must be a list of names, or names by number from 0")
    if number is not None and number != str(len(names)):
        raise ValueError(f"{config.file}: nc is {number}, and names has {len(names)}")
    return {int(key): name for key, name in names.items()}


def _sources(root: Path, split: str, config: Config | None) -> list[Path]:
    """Folders and lists of the split's pictures that are there."""
    entry = config.content.get(split) if config else None
    if config and entry and isinstance(entry, (str, list)):
        bases = [config.file.parent / config.content.get("path", "."), config.file.parent]
        sources = []
        for name in entry if isinstance(entry, list) else [entry]:
            places = [base / part for part in (_without_dots(name), name) for base in bases]
            source = next((place for place in places if place.exists()), None)
            if source is None:
                raise FileNotFoundError(f"{config.file}: {split}: {name} is not there; looked for {places[0]}")
            sources.append(source)
        return sources
    folders = [root / split / "images", root / "images" / split, root / split]
    if split == WHOLE and not any(folder.is_dir() for folder in folders):  # a folder of pictures that nobody has split
        return [folder for folder in (root / "images",) if folder.is_dir() and _has_labels(label_folder(folder))]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None or (folder == root / split and not _has_labels(folder)):
        return []
    return [folder]


def _without_dots(name: str) -> str:
    """Without leading ``../``: exported archives have it although nothing lies above them."""
    while name.startswith("../"):
        name = name[3:]
    return name


def _has_labels(folder: Path) -> bool:
    return any(name.endswith(".txt") and name != "classes.txt" for name in os.listdir(folder))


def label_folder(folder: Path) -> Path:
    """``labels`` in place of the last ``images`` of the path, if that is there, or else the folder of the pictures."""
    parts = list(folder.parts)
    if "images" in parts:
        place = len(parts) - 1 - parts[::-1].index("images")
        other = Path(*parts[:place], "labels", *parts[place + 1 :])
        if other.is_dir():
            return other
    return folder


def list_pictures(place: Place) -> Iterator[str]:
    for source in place.sources:
        if source.is_dir():
            for folder, _, names in os.walk(source):
                yield from (os.path.join(folder, name) for name in names if is_readable(name))
        else:
            for line in source.read_text(encoding="utf-8-sig").splitlines():
                if name := line.strip():
                    paths = (source.parent / _without_dots(name), source.parent / name)
                    yield str(next((path for path in paths if path.is_file()), paths[0]))
