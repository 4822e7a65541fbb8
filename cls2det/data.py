"""COCO-format data: the demo's scenes, COCO itself, or anyone's own.

    root/annotations/instances_<split>.json
    root/<split>/<file_name>

so ``DetectionData("coco", "train2017")`` reads COCO as it unpacks, and ``DetectionData("runs/demo/scenes", "train")``
reads the demo. An item is (image uint8 (3, H, W), target), a target holds
``boxes`` (n, 4) float32 xyxy in pixels, ``labels`` (n,) int64 from 1 (0 is background) and ``image_id``.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

CLASSES_FROM = 1  # label of the first class; 0 is background


class DetectionData(Dataset):
    """One split of COCO-format data.

    Crowd boxes and boxes with no area are dropped. Category ids may have gaps (COCO's do): labels are contiguous,
    in order of category id. ``data[index, seed]`` augments with that seed, ``data[index]`` does not.

    Args:
        root: folder that holds ``annotations/`` and the split's images
        split: name of the split, as in ``annotations/instances_<split>.json``
        augment: a ``torchvision.transforms.v2`` transform, or None
        keep: positions of the images to use, or None for all
        labelled_only: leave out images with no box (for training)
        cache: keep decoded images in memory (for small data)
    """

    def __init__(self, root: str | Path, split: str, *, augment: v2.Transform | None = None,
                 keep: Tensor | None = None, labelled_only: bool = False, cache: bool = False):
        root = Path(root)
        self.folder, self.annotation_file = root / split, root / "annotations" / f"instances_{split}.json"
        self.coco = load_coco(self.annotation_file)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no image folder {self.folder}; expected {root}/<split>/ beside {root}/annotations/")
        categories = sorted(self.coco.dataset["categories"], key=lambda category: category["id"])
        self.classes = [category["name"] for category in categories]
        self.category_ids = [category["id"] for category in categories]
        label_of = {category_id: label for label, category_id in enumerate(self.category_ids, start=CLASSES_FROM)}
        self.targets = [_target(self.coco, image_id, label_of, self.annotation_file) for image_id in sorted(self.coco.imgs)]
        if labelled_only:
            self.targets = [target for target in self.targets if len(target["labels"])]
        if keep is not None:
            self.targets = [self.targets[index] for index in keep.tolist()]
        if not self.targets:
            raise ValueError(f"{self.annotation_file} leaves no image to use")
        self.augment = augment
        self.cache: dict[int, Tensor] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        index, seed = key if isinstance(key, tuple) else (key, None)
        image, target = self._image(index), self.targets[index]
        if self.augment is None or seed is None:
            return image, target
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=image.shape[-2:])
        with torch.random.fork_rng(devices=[]):  # the picture depends on (index, seed), not on who loads it or when
            torch.manual_seed(seed)
            image, target = self.augment(tv_tensors.Image(image), {**target, "boxes": boxes})
        return image.as_subclass(Tensor), {**target, "boxes": target["boxes"].as_subclass(Tensor)}

    def _image(self, index: int) -> Tensor:
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        path = self.folder / self.coco.imgs[int(self.targets[index]["image_id"])]["file_name"]
        if not path.is_file():
            raise FileNotFoundError(f"{self.annotation_file} names {path}, which is not there")
        image = decode_image(str(path), ImageReadMode.RGB)
        if self.cache is not None:
            self.cache[index] = image
        return image


def load_coco(annotation_file: str | Path):
    """``pycocotools.coco.COCO`` of a file, without its prints and with a clear error."""
    from pycocotools.coco import COCO

    if not Path(annotation_file).is_file():
        raise FileNotFoundError(f"no annotation file {annotation_file}; expected <root>/annotations/instances_<split>.json in COCO format")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(annotation_file))
    missing = {"images", "annotations", "categories"} - set(coco.dataset)
    if missing:
        raise ValueError(f"{annotation_file} is not COCO detection data: it lacks {', '.join(sorted(missing))}")
    return coco


def _target(coco, image_id: int, label_of: dict[int, int], file: Path) -> dict[str, Tensor]:
    """Boxes and labels of one image, clipped to it."""
    width, height = coco.imgs[image_id]["width"], coco.imgs[image_id]["height"]
    boxes, labels = [], []
    for annotation in coco.imgToAnns[image_id]:
        if annotation["category_id"] not in label_of:
            raise ValueError(f"{file}: annotation {annotation['id']} has category {annotation['category_id']}, which is not listed")
        x, y, w, h = annotation["bbox"]
        box = [max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)]
        if not annotation.get("iscrowd", 0) and box[2] > box[0] and box[3] > box[1]:
            boxes.append(box)
            labels.append(label_of[annotation["category_id"]])
    return {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64), "image_id": torch.tensor(image_id)}


def train_augmentation(*, zoom: float = 1.3, colour: float = 0.3, flip: bool = True) -> v2.Transform:
    """Zoom in or out by up to ``zoom`` with a shift, colour jitter and, where mirrored objects keep their class, flips."""
    steps: list[v2.Transform] = [
        v2.RandomAffine(degrees=0, translate=(0.15, 0.15), scale=(1 / zoom, zoom), interpolation=v2.InterpolationMode.BILINEAR, fill=114),
        v2.ClampBoundingBoxes(),
        v2.ColorJitter(brightness=colour, contrast=colour, saturation=colour),
        v2.SanitizeBoundingBoxes(min_size=4),
    ]
    return v2.Compose(([v2.RandomHorizontalFlip()] if flip else []) + steps)


class SeededSampler(Sampler):
    """An order of (index, augmentation seed) that is a function of (seed, epoch) alone.

    So a run that is resumed at an epoch's start sees what the unbroken run would have seen, and every arm of a
    seed sees the same pictures in the same order. An "epoch" is ``length`` items per process, whatever the size
    of the data: the data is walked through in permutations that follow each other without a break, and each of the
    ``world`` processes of a distributed run takes every ``world``-th item.
    """

    def __init__(self, size: int, length: int, seed: int):
        self.size, self.length, self.seed, self.epoch = size, length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rank, world = _world()
        first = self.epoch * self.length * world + rank
        number, order = -1, torch.empty(0)
        for position in range(first, first + self.length * world, world):
            if position // self.size != number:
                number = position // self.size
                order = torch.randperm(self.size, generator=torch.Generator().manual_seed(_mix(self.seed, 0, number)))
            yield int(order[position % self.size]), _mix(self.seed, 1, position)


def _mix(seed: int, stream: int, number: int) -> int:
    """32 bits from three numbers (torch's CPU generator looks at no more of a seed than these)."""
    return int.from_bytes(blake2b(f"{seed}/{stream}/{number}".encode(), digest_size=4).digest(), "big")


def _world() -> tuple[int, int]:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def collate(items: list) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images stay a list: torchvision's detectors resize and batch them, on the device."""
    images, targets = zip(*items)
    return list(images), list(targets)


def train_loader(data: DetectionData, *, batch_size: int, steps_per_epoch: int, seed: int, loader_workers: int = 0) -> DataLoader:
    """Augmented batches in a seeded order; ``batch_size`` is per process."""
    sampler = SeededSampler(len(data), steps_per_epoch * batch_size, seed)
    return DataLoader(data, batch_size, sampler=sampler, num_workers=loader_workers, collate_fn=collate,
                      persistent_workers=loader_workers > 0)


def test_loader(data: DetectionData, *, batch_size: int = 32, loader_workers: int = 0) -> DataLoader:
    """Every image once, in order, not augmented."""
    return DataLoader(data, batch_size, num_workers=loader_workers, collate_fn=collate)
