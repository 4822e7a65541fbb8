"""COCO-format data: the demo's scenes, COCO itself, or anyone's own.

    root/annotations/instances_<split>.json
    root/<split>/<file_name>

so ``DetectionData("coco", "train2017")`` reads COCO as it unpacks, and ``DetectionData("runs/demo/scenes", "train")``
reads the demo. An item is (image uint8 (3, H, W), target), a target holds
``boxes`` (n, 4) float32 xyxy in pixels, ``labels`` (n,) int64 from 1 (0 is background) and ``image_id``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.io import ImageReadMode, decode_image

CLASSES_FROM = 1  # label of the first class; 0 is background


class DetectionData(Dataset):
    """One split of COCO-format data.

    Crowd boxes and boxes with no area are dropped. Category ids may have gaps (COCO's do): labels are contiguous,
    in order of category id. ``data[index, seed]`` augments with that seed, ``data[index]`` does not.

    Args:
        root: folder that holds ``annotations/`` and the split's images
        split: name of the split, as in ``annotations/instances_<split>.json``
        augment: how training pictures are varied, or None
        keep: positions of the images to use, or None for all
        labelled_only: leave out images with no box (for training)
        cache: keep decoded images in memory (for small data)
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        augment: Augmentation | None = None,
        keep: Tensor | None = None,
        labelled_only: bool = False,
        cache: bool = False,
    ):
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
        return self.augment(image, target, seed) if self.augment and seed is not None else (image, target)

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
        raise FileNotFoundError(
            f"no annotation file {annotation_file}; expected <root>/annotations/instances_<split>.json in COCO format"
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(annotation_file))
    except (json.JSONDecodeError, AssertionError, KeyError) as error:
        raise ValueError(f"{annotation_file} is not COCO-format json: {error!r}") from None
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
            raise ValueError(
                f"{file}: annotation {annotation['id']} has category {annotation['category_id']}, which is not listed"
            )
        x, y, w, h = annotation["bbox"]
        box = [max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)]
        if not annotation.get("iscrowd", 0) and box[2] > box[0] and box[3] > box[1]:
            boxes.append(box)
            labels.append(label_of[annotation["category_id"]])
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "image_id": torch.tensor(image_id),
    }


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Zoom with a shift, colour jitter and, where mirrored objects keep their class, flips.

    One bilinear warp and one multiply-add per image: with images as small as the demo's, a chain of separate transforms
    costs as much as a third of a training step.

    Args:
        zoom: the image is scaled by 1/zoom to zoom
        shift: and moved by up to this share of its size
        colour: each channel is multiplied by 1 ± colour, all are shifted by up to ± colour / 2 of the range
        flip: mirror half of the time
        visible: boxes of which less than this share stays in the image are dropped
    """

    zoom: float = 1.2
    shift: float = 0.1
    colour: float = 0.2
    flip: bool = False
    visible: float = 0.6

    def __call__(self, image: Tensor, target: dict[str, Tensor], seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """uint8 image (3, H, W) and its target; a function of ``seed``."""
        draw = torch.rand(8, generator=torch.Generator().manual_seed(seed)) * 2 - 1  # in [-1, 1)
        scale = self.zoom ** draw[0].item()
        across, down = (self.shift * draw[1:3]).tolist()  # shares of the image
        mirror = -1.0 if self.flip and draw[3] < 0 else 1.0

        # Output place p, in [-1, 1], shows input place (p - 2·shift) / scale; boxes go the other way.
        height, width = image.shape[-2:]
        grid = torch.empty(1, height, width, 2)
        grid[..., 0] = ((torch.arange(width) + 0.5) * (2 / width) - 1 - 2 * across) * (mirror / scale)
        grid[..., 1] = (((torch.arange(height) + 0.5) * (2 / height) - 1 - 2 * down) / scale)[:, None]
        grey = 114.0
        warped = F.grid_sample(image[None].float() - grey, grid, align_corners=False)[0] + grey
        gain = 1 + self.colour * draw[4:7, None, None]
        warped = ((warped - grey) * gain + (grey + 255 * self.colour / 2 * draw[7])).clamp_(0, 255).to(torch.uint8)

        size = torch.tensor([width, height] * 2)
        boxes = target["boxes"]
        if mirror < 0:
            boxes = torch.stack((size[0] - boxes[:, 2], boxes[:, 1], size[0] - boxes[:, 0], boxes[:, 3]), 1)
        boxes = (boxes - size / 2) * scale + size / 2 + size * torch.tensor([across, down] * 2)
        inside = boxes.clamp(min=torch.zeros(4), max=size.float())
        keep = _area(inside) >= self.visible * _area(boxes)
        return warped, {**target, "boxes": inside[keep], "labels": target["labels"][keep]}


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


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
    images, targets = zip(*items, strict=True)
    return list(images), list(targets)


def train_loader(
    data: DetectionData, *, batch_size: int, steps_per_epoch: int, seed: int, loader_workers: int = 0
) -> DataLoader:
    """Augmented batches in a seeded order; ``batch_size`` is per process."""
    sampler = SeededSampler(len(data), steps_per_epoch * batch_size, seed)
    return DataLoader(
        data,
        batch_size,
        sampler=sampler,
        num_workers=loader_workers,
        collate_fn=collate,
        persistent_workers=loader_workers > 0,
    )


def test_loader(data: DetectionData, *, batch_size: int = 32, loader_workers: int = 0) -> DataLoader:
    """Every image once, in order, not augmented."""
    return DataLoader(data, batch_size, num_workers=loader_workers, collate_fn=collate)
