"""What a bank holds: crops of every ground-truth box in V views, and what a teacher or an encoder makes of them.

View 0 is the box in the picture as it is. Each further view is the box in a picture that the recipe's augmentation made, with
its colours and scale, if the box is whole there: after several tries that cut it, the picture as it is takes their place. View v is
enlarged by margin v, modulo the number of margins. With flips, each crop is encoded as it is and mirrored: the mirrored crop
itself, pixel by pixel.

Crops go the way of a live teacher's: the picture is resized and normalised as the student's, then ``roi_crop`` cuts the box out.
Every random draw is a function of (seed, image, view).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.data.augment import Augment
from cls2det.data.dataset import DetectionData
from cls2det.data.images import to_float
from cls2det.data.loader import mix
from cls2det.data.origins import begin
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.teachers.crops import enlarged
from cls2det.teachers.encoder import Encoder
from cls2det.teachers.frozen import Replayed
from cls2det.teachers.normalisation import Renormalise

WHOLE = 0.95  # share of its area from which a box counts as whole: crops are cut at whole pixels
TRIES = 4  # pictures that are made for a view, until each box was whole in one
CHUNK = 256  # crops that go through the network at a time
MOST_BOXES = 1024  # of the pictures that are cropped together
STREAM = 2  # of draws from the seed; the loader of trainings has 0 and 1


class Picture(NamedTuple):
    """A picture, and the boxes that are cropped out of it.

    Attributes:
        image: (3, H, W) uint8
        boxes: (m, 4) xyxy in pixels
        annotation_ids: (m,) int64
        views: (m,) int64
        is_mirrored: so that its crops must be turned around
    """

    image: Tensor
    boxes: Tensor
    annotation_ids: np.ndarray
    views: np.ndarray
    is_mirrored: bool


class ViewPictures(Dataset[list[Picture]]):
    """Of each image the pictures that show each of its boxes once per view.

    Args:
        data: with ``origins``, without augmentation
        augment: of views beyond the first, or None
        views: V
        seed: of all draws
    """

    def __init__(self, data: DetectionData, augment: Augment | None, views: int, seed: int):
        self.data, self.augment, self.views, self.seed = data, augment, views, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> list[Picture]:
        image, target = self.data[index]
        boxes, ids = target["boxes"], target["annotation_ids"].numpy()
        plain: list[tuple[int, np.ndarray]] = [
            (0, np.arange(len(ids)))
        ]  # view, and rows that are taken from the picture as it is
        pictures = []
        for view in range(1, self.views):
            left = np.arange(len(ids))
            for attempt in range(TRIES if self.augment and len(ids) else 0):
                assert self.augment is not None
                number = (int(target["image_id"]) * self.views + view) * TRIES + attempt
                seed = mix(self.seed, STREAM, number)
                varied, kept = self.augment(image, begin(target, seed), seed)
                origins: Any = kept["origins"]  # an array: targets are tensors, but for this
                is_wanted = (origins["visible"] >= WHOLE) & np.isin(origins["annotation_id"], ids[left])
                if is_wanted.any():
                    taken = origins["annotation_id"][is_wanted]
                    kept_boxes = kept["boxes"][torch.from_numpy(is_wanted)]
                    is_mirrored = bool(origins["mirrored"][0])
                    pictures.append(Picture(varied, kept_boxes, taken, np.full(len(taken), view), is_mirrored))
                    left = left[~np.isin(ids[left], taken)]
                if not len(left):
                    break
            plain.append((view, left))
        rows = np.concatenate([rows for _, rows in plain])
        views = np.concatenate([np.full(len(rows), view) for view, rows in plain])
        return [Picture(image, boxes[torch.from_numpy(rows)], ids[rows], views, False), *pictures]


def joined(items: list[list[Picture]]) -> list[Picture]:
    """Collates items."""
    return [picture for item in items for picture in item]


def loader(pictures: ViewPictures, batches: Sequence[Sequence[int]], workers: int) -> DataLoader[list[Picture]]:
    """The pictures of each batch of images."""
    order = [list(batch) for batch in batches]
    return DataLoader(pictures, batch_sampler=order, num_workers=workers, collate_fn=joined)


class Crops(NamedTuple):
    """Crops of a batch, none of them mirrored.

    Attributes:
        annotation_ids: (N,) int64
        views: (N,) int64
        inputs: (N, 3, S, S) for each thing that is encoded of a box, as a network takes them
    """

    annotation_ids: np.ndarray
    views: np.ndarray
    inputs: list[Tensor]


class Source:
    """A teacher or encoder that a bank is made of: ``source(pictures)`` gives what it makes of their crops.

    Args:
        transform: of the student: how pictures are resized and normalised
        margins: of the views
        cut: (images, boxes, image_index) to crops, as the network takes them
        encode: crops to rows (N, columns), which are stored
    """

    def __init__(
        self,
        transform: GeneralizedRCNNTransform,
        margins: Sequence[float],
        cut: Callable[[Tensor, Tensor, Tensor], list[Tensor]],
        encode: Callable[[list[Tensor]], Tensor],
    ):
        self.transform, self.margins, self.cut, self.encode = transform, margins, cut, encode

    @torch.no_grad()
    def crops(self, pictures: Sequence[Picture], device: torch.device) -> Crops:
        images = [picture.image.to(device) for picture in pictures]
        targets = [{"boxes": picture.boxes.to(device)} for picture in pictures]
        batch, targets = self.transform.eval()(to_float(images), targets)
        counts = [len(picture.boxes) for picture in pictures]
        views = np.concatenate([picture.views for picture in pictures])
        margins = torch.tensor(self.margins, dtype=torch.float32)[torch.from_numpy(views) % len(self.margins)].to(device)
        boxes = torch.cat([target["boxes"] for target in targets])
        boxes = torch.where(margins[:, None] > 0, enlarged_by(boxes, margins), boxes)
        image_index = torch.from_numpy(np.repeat(np.arange(len(pictures)), counts)).to(device)
        inputs = self.cut(batch.tensors, boxes, image_index)
        if any(picture.is_mirrored for picture in pictures):
            mirrored = torch.from_numpy(np.repeat([picture.is_mirrored for picture in pictures], counts)).to(device)
            inputs = [torch.where(mirrored[:, None, None, None], crops.flip(3), crops) for crops in inputs]
        return Crops(np.concatenate([picture.annotation_ids for picture in pictures]), views, inputs)

    def rows(self, crops: Crops, flip: bool) -> Tensor:
        """(N, F, columns) float32, on the CPU: of each crop as it is and, with ``flip``, mirrored.

        Raises:
            ValueError: a value that is not finite
        """
        parts = []
        for start in range(0, len(crops.views), CHUNK):
            inputs = [part[start : start + CHUNK] for part in crops.inputs]
            sides = [self.encode(inputs)]
            if flip:
                sides.append(self.encode([part.flip(3) for part in inputs]))
            parts.append(torch.stack(sides, 1).float())
        rows = torch.cat(parts).cpu()
        if len(bad := torch.nonzero(~rows.isfinite().flatten(1).all(1)).flatten()):
            raise ValueError(
                f"the teacher's output is not finite for annotation {crops.annotation_ids[int(bad[0])]}: its weights are damaged, or "
                "--precision 32 is needed"
            )
        return rows.clamp(-65504, 65504)  # what 16 bits hold


def enlarged_by(boxes: Tensor, margins: Tensor) -> Tensor:
    """Boxes (N, 4), each enlarged by its margin (N,), a share of its size, on each side."""
    return torch.lerp(boxes, enlarged(boxes, 1.0), margins[:, None])


def of_teacher(
    teacher: CropClassifier,
    transform: GeneralizedRCNNTransform,
    margins: Sequence[float],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Source:
    """Logits, read as ``BoxDistiller`` reads them."""
    reader: nn.Module = teacher.reader((), True, dtype).to(device)
    if not teacher.is_foreign:
        reader = Replayed(reader)
    renormalise = Renormalise(transform.image_mean, transform.image_std, teacher.mean, teacher.std)
    renormalise.to(device)

    def cut(images: Tensor, boxes: Tensor, image_index: Tensor) -> list[Tensor]:
        return [renormalise(teacher.crop(images, boxes, image_index))]

    return Source(transform, margins, cut, lambda crops: reader(crops[0])["logits"].float())


def of_encoder(
    encoder: Encoder, transform: GeneralizedRCNNTransform, margins: Sequence[float], device: torch.device
) -> Source:
    """Embeddings, as ``Regions`` reads them."""
    encoder.to(device)
    renormalise = Renormalise(transform.image_mean, transform.image_std, encoder.mean, encoder.std)
    renormalise.to(device)

    def cut(images: Tensor, boxes: Tensor, image_index: Tensor) -> list[Tensor]:
        return encoder.crops(images, boxes, image_index, renormalise)

    return Source(transform, margins, cut, lambda crops: encoder.encode(crops))


def groups(pictures: Sequence[Picture], size: int) -> Iterator[list[Picture]]:
    """``size`` pictures at a time, or fewer where these have many boxes: what is resized and cropped together."""
    group: list[Picture] = []
    for picture in pictures:
        boxes = sum(len(other.boxes) for other in group) + len(picture.boxes)
        if group and (len(group) == size or boxes > MOST_BOXES):
            yield group
            group = []
        group.append(picture)
    if group:
        yield group
