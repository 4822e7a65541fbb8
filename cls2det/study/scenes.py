"""Scenes for the demo: real handwritten digits on real photographs, as COCO-format data.

    root/annotations/instances_{train,val,test}.json      the layout of COCO itself
    root/{train,val,test}/000017.jpg
    root/scenes.json                                      how it was made; a stale stamp is remade

Nothing is downloaded: the glyphs are scikit-learn's ``load_digits`` and the photographs lie in the
wheels of scikit-image and scikit-learn. No glyph and no photograph is in two splits, so ``val`` and
``test`` ask for new writers on new backgrounds. Scene ``i`` of a split depends on (seed, split, i) alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, lru_cache, partial
from importlib.resources import files
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

FORMAT = 1  # raise it when the pictures change: scenes made by an older version are then remade

SOURCES = {"sklearn": "scikit-learn", "skimage": "scikit-image"}  # packages of the digits and photographs
# Photographs by split, as (package, path inside its wheel).
PHOTOGRAPHS = {
    "train": [
        ("skimage", f"data/{name}")
        for name in (
            "astronaut.png",
            "coffee.png",
            "brick.png",
            "grass.png",
            "motorcycle_left.png",
            "retina.jpg",
            "camera.png",
        )
    ]
    + [("sklearn", "datasets/images/china.jpg")],
    "val": [("skimage", f"data/{name}") for name in ("hubble_deep_field.jpg", "coins.png", "moon.png", "clock_motion.png")],
    "test": [("skimage", f"data/{name}") for name in ("chelsea.png", "gravel.png", "rocket.jpg", "ihc.png")]
    + [("sklearn", "datasets/images/flower.jpg")],
}
# Rows of load_digits by split. Later rows come from other writers.
GLYPHS = {"train": (0, 1058), "val": (1058, 1258), "test": (1258, 1797)}
SPLITS = tuple(PHOTOGRAPHS)


@dataclasses.dataclass(frozen=True)
class SceneSettings:
    """What the scenes look like. Lengths are in pixels, colours and alphas in [0, 1].

    Args:
        train: number of training scenes
        val: number of validation scenes (every choice of a setting looks at these)
        test: number of test scenes (the report looks at these)
        size: side of the square scene
        seed: seed of everything in the scenes
        max_objects: a scene holds 1 to this many digits
        height: smallest and largest height of a digit before it is turned; log-uniform
        rotation: largest turn, in degrees
        contrast: smallest and largest mean colour distance between a digit and what lies behind it
        distractors: mean number of unlabelled bars, rings and checker boards
        noise: largest standard deviation of the Gaussian noise
    """

    train: int = 4000
    val: int = 500
    test: int = 1000
    size: int = 96
    seed: int = 0
    max_objects: int = 5
    height: tuple[float, float] = (14.0, 48.0)
    rotation: float = 15.0
    contrast: tuple[float, float] = (0.25, 0.65)
    distractors: float = 2.0
    noise: float = 0.08


def make_scenes(
    root: str | Path,
    settings: SceneSettings = SceneSettings(),
    workers: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Render the scenes under ``root`` unless it holds them already; returns ``root``.

    They are built in a folder beside ``root`` and renamed at the end, so ``root`` never holds a part of them.

    Raises:
        FileExistsError: ``root`` holds other files
        ImportError: scikit-learn or scikit-image is missing
    """
    root = Path(root)
    stamp = json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(settings)}))
    if _read_stamp(root) == stamp:
        return root
    for package, distribution in SOURCES.items():
        if find_spec(package) is None:
            raise ImportError(f"the scenes are made of pictures in {distribution}: pip install 'cls2det[study]'")
    if root.exists() and _read_stamp(root) is None and any(root.iterdir()):
        raise FileExistsError(f"{root} holds files that are not scenes of this demo; give an empty or a new folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    build = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        total, done = sum(getattr(settings, split) for split in SPLITS), 0
        (build / "annotations").mkdir()
        with _mapper(workers) as parallel_map:
            for split in SPLITS:
                (build / split).mkdir()
                scenes = []
                for scene in parallel_map(partial(_write_scene, build, split, settings), range(getattr(settings, split))):
                    scenes.append(scene)
                    done += 1
                    on_progress(done, total)
                coco = _as_coco(scenes, settings)
                (build / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco), encoding="utf-8")
        (build / "scenes.json").write_text(json.dumps(stamp, indent=2), encoding="utf-8")
        os.chmod(build, 0o755)
        if root.exists():
            shutil.rmtree(root)
        build.rename(root)
    except BaseException:
        shutil.rmtree(build, ignore_errors=True)
        raise
    return root


def render_scene(split: str, index: int, settings: SceneSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One scene: image (size, size, 3) uint8, boxes (n, 4) xyxy in pixels, digits (n,)."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), index])
    canvas = _background(rng, split, settings.size)
    for _ in range(rng.poisson(settings.distractors)):
        _paste_distractor(rng, canvas)
    images, digits = _glyphs()
    first, end = GLYPHS[split]
    boxes: list[tuple[float, float, float, float]] = []
    labels: list[int] = []
    for _ in range(rng.integers(1, settings.max_objects + 1)):
        glyph = rng.integers(first, end)
        box = _paste_glyph(rng, canvas, images[glyph], boxes, settings)
        if box is not None:
            boxes.append(box)
            labels.append(int(digits[glyph]))
    canvas += rng.normal(0.0, rng.uniform(0.0, settings.noise), canvas.shape)
    return (
        (np.clip(canvas, 0.0, 1.0) * 255 + 0.5).astype(np.uint8),
        np.array(boxes, float).reshape(-1, 4),
        np.array(labels, int),
    )


# ---------------------------------------------------------------- parts of a scene


@lru_cache(maxsize=1)
def _glyphs() -> tuple[np.ndarray, np.ndarray]:
    """All glyphs as alpha in [0, 1], (1797, 8, 8), and their digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images / 16.0).astype(np.float32), data.target


@cache
def _photograph(package: str, path: str) -> np.ndarray:
    """A photograph as float32 RGB in [0, 1]; large ones are halved so that a crop shows something."""
    file = files(package) / path
    if not file.is_file():
        raise FileNotFoundError(
            f"the installed {package} lacks {path}, one of the demo's photographs; they come with its wheel"
        )
    with file.open("rb") as handle:
        picture = Image.open(handle).convert("RGB")
    while min(picture.size) > 600:
        picture = picture.reduce(2)
    return np.asarray(picture, np.float32) / 255


def _background(rng: np.random.Generator, split: str, size: int) -> np.ndarray:
    """A crop of 1 to 2.5 times the scene, brought to its size, with colour jitter and mirrored half of the time."""
    choices = PHOTOGRAPHS[split]
    photograph = _photograph(*choices[rng.integers(len(choices))])
    side = int(min(size * rng.uniform(1.0, 2.5), *photograph.shape[:2]))
    top = rng.integers(photograph.shape[0] - side + 1)
    left = rng.integers(photograph.shape[1] - side + 1)
    crop = Image.fromarray((photograph[top : top + side, left : left + side] * 255).astype(np.uint8))
    canvas = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR), np.float32) / 255
    if rng.random() < 0.5:
        canvas = canvas[:, ::-1]
    gain, shift = rng.uniform(0.7, 1.3, 3), rng.uniform(-0.1, 0.1, 3)
    return np.clip((canvas - 0.5) * gain + 0.5 + shift, 0.0, 1.0)


def _paste(canvas: np.ndarray, alpha: np.ndarray, colour: np.ndarray, top: int, left: int) -> None:
    """Blend ``colour`` into the canvas where ``alpha`` (h, w) says so."""
    region = canvas[top : top + alpha.shape[0], left : left + alpha.shape[1]]
    region += alpha[..., None] * (colour - region)


def _paste_distractor(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """A bar, a ring or a small checker board: contrasted shapes that are no digit."""
    size, scale = canvas.shape[0], 4  # drawn four times too large, for smooth edges
    side = int(rng.uniform(8, 30))
    shape = Image.new("L", (side * scale, side * scale))
    draw = ImageDraw.Draw(shape)
    full = side * scale - 1
    kind = rng.integers(3)
    if kind == 0:
        draw.line([(full * rng.random(), 0), (full * rng.random(), full)], fill=255, width=int(full * rng.uniform(0.1, 0.3)))
    elif kind == 1:
        draw.ellipse([0, 0, full, full], outline=255, width=max(1, int(full * rng.uniform(0.08, 0.2))))
    else:
        cells = int(rng.integers(2, 5))
        for row in range(cells):
            for column in range(row % 2, cells, 2):
                draw.rectangle(
                    [full * column / cells, full * row / cells, full * (column + 1) / cells, full * (row + 1) / cells],
                    fill=255,
                )
    shape = shape.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR).reduce(scale)
    alpha = np.asarray(shape, np.float32) / 255 * rng.uniform(0.5, 1.0)
    top, left = rng.integers(size - side + 1, size=2)
    _paste(canvas, alpha, rng.random(3), top, left)


def _paste_glyph(
    rng: np.random.Generator, canvas: np.ndarray, glyph: np.ndarray, taken: Iterable, settings: SceneSettings
) -> tuple[float, float, float, float] | None:
    """Paste one digit; returns its tight box (alpha > 0.3), or None if no free place was found."""
    low, high = settings.height
    for _ in range(20):
        height = math.exp(rng.uniform(math.log(low), math.log(high)))
        width = height * math.exp(rng.uniform(-0.2, 0.2))
        stamp = Image.fromarray((glyph * 255).astype(np.uint8)).resize((round(width), round(height)), Image.Resampling.BICUBIC)
        stamp = stamp.rotate(rng.uniform(-settings.rotation, settings.rotation), Image.Resampling.BICUBIC, expand=True)
        alpha = np.asarray(stamp, np.float32) / 255
        rows, columns = np.where((alpha > 0.3).any(1))[0], np.where((alpha > 0.3).any(0))[0]
        room_y, room_x = settings.size - alpha.shape[0], settings.size - alpha.shape[1]
        if room_y < 0 or room_x < 0 or not len(rows):
            continue
        top, left = rng.integers(room_y + 1), rng.integers(room_x + 1)
        box = (float(left + columns[0]), float(top + rows[0]), float(left + columns[-1] + 1), float(top + rows[-1] + 1))
        if any(_iou(box, other) > 0.1 for other in taken):
            continue
        behind = canvas[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])].mean((0, 1))
        for _ in range(50):
            colour = rng.random(3)
            if settings.contrast[0] <= np.abs(colour - behind).mean() <= settings.contrast[1]:
                break
        _paste(canvas, alpha * rng.uniform(0.75, 1.0), colour, top, left)
        return box
    return None


def _iou(a: tuple, b: tuple) -> float:
    overlap = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return overlap / (area - overlap)


# ---------------------------------------------------------------- files


def _write_scene(root: Path, split: str, settings: SceneSettings, index: int) -> tuple[str, np.ndarray, np.ndarray]:
    image, boxes, labels = render_scene(split, index, settings)
    name = f"{index:06d}.jpg"
    Image.fromarray(image).save(root / split / name, quality=95, subsampling=0)
    return name, boxes, labels


def _as_coco(scenes: list, settings: SceneSettings) -> dict:
    """COCO-format annotations. Category ids start at 1; the digit is the name."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (name, boxes, labels) in enumerate(scenes, start=1):
        images.append({"id": image_id, "file_name": name, "width": settings.size, "height": settings.size})
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "iscrowd": 0,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                }
            )
    categories = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
    return {
        "info": {"description": "cls2det demo scenes"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _read_stamp(root: Path) -> dict | None:
    try:
        return json.loads((root / "scenes.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


class _mapper:
    """``map`` in this process for one worker, in ``workers`` fresh processes otherwise."""

    def __init__(self, workers: int):
        self.pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else None

    def __enter__(self):
        return partial(self.pool.map, chunksize=50) if self.pool else map

    def __exit__(self, kind, *_):
        if self.pool:
            self.pool.shutdown(cancel_futures=kind is not None)
