"""Detection data: the demo's scenes, COCO itself, or anyone's own.

    root/annotations/instances_<split>.json
    root/<split>/<file_name>

is COCO's layout, so ``DetectionData("coco", "train2017")`` reads COCO as it unpacks, and ``DetectionData("runs/demo/scenes",
"train")`` reads the demo. The layouts of Pascal VOC (``voc.py``) and YOLO (``yolo.py``) are read too.

An item is (image uint8 (3, H, W), target), a target holds ``boxes`` (n, 4) float32 xyxy in pixels, ``labels`` (n,) int64 from 1
(0 is background) and ``image_id``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import resize

from cls2det.data.augment import Augment
from cls2det.data.checks import log_once
from cls2det.data.classes import SAME_CLASSES, class_order, warn_of_twins
from cls2det.data.columns import Files
from cls2det.data.faults import tell_all, warn_of
from cls2det.data.images import SIDES_SWAPPED, read_with_orientation, turn
from cls2det.data.layouts import read_split
from cls2det.data.origins import begin
from cls2det.data.pictures import Listed, find_missing, hint, other_size, read_headers, with_slashes
from cls2det.data.targets import CLASSES_FROM, Targets
from cls2det.data.truth import as_coco
from cls2det.errors import LISTED, some
from cls2det.settings import MAX_PIXELS

if TYPE_CHECKING:
    from pycocotools.coco import COCO

BAD_IN_A_ROW = 20  # images that are passed over before the fault is taken to be the disk's and not the images'


class DetectionData(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """One split of data in COCO's, Pascal VOC's or YOLO's layout.

    Category ids may have gaps (COCO's do): labels are contiguous, in order of category id or of ``classes``; ``category_ids``
    leads back.
    ``data[index, seed]`` is a training item, augmented with that seed; ``data[index]`` is the image as it is.

    What is done about faults, always with the file, the annotation's or image's id, and the reason:

    =================================================  ================================================================
    crowds, boxes with no area inside of the image     not trained on; evaluated as pycocotools does
    boxes that reach over the border                   clipped
    bbox missing, of other length, NaN, negative size  left out of training and evaluation, with a warning
    annotations of an image that is not listed         left out, with a warning
    annotations without ``area`` or ``iscrowd``        width · height, and 0
    an ``area`` that no object in the box can have     width · height, with a warning
    an ``iscrowd`` that is neither 0 nor 1             error; true, false and these as text are understood
    many boxes in another convention or scale          a warning; so are many boxes that stand twice
    annotation ids missing, not integers, twice, or 0  numbered anew, as pycocotools misjudges them; a warning but for 0
    a category name twice                              the second is renamed "name (id)", with a warning
    a name that differs by case or blanks alone        another class, with a warning
    images without objects                             kept, unless ``labelled_only``
    a category that is not listed; image or category   error
    ids twice or not integers; no width or height
    image files that are not there                     error, before anything is trained
    broken links, folders, empty files, Git LFS        error, before anything is trained; see ``on_bad_image``
    an image that cannot be read, or is of another     error when it is met, or before, as the headers of some images are
    size than the annotations say                      read; see ``on_bad_image``
    a backslash in a file name                         read as a slash where that file is there, with a warning
    =================================================  ================================================================

    VOC and YOLO have some faults of their own: see ``read_voc`` and ``read_yolo``.

    Grey, CMYK, palette and 16-bit images become 8-bit RGB (see ``read_image``). COCO's boxes refer to the pixels as stored,
    so pictures are not turned by their EXIF orientation. Where a picture has the size of its annotations only after a turn by
    90 degrees, they mean the turned picture, and it is turned, with a warning. Where the size fits both (a turn by 180
    degrees, a mirror, a square picture) it stays as stored, with a warning.

    What the split holds is logged in one line, once per process.

    Args:
        root: folder of the data; for COCO, it holds ``annotations/`` and the split's images
        split: name of the split, as in ``annotations/instances_<split>.json``, ``ImageSets/Main/<split>.txt`` or data.yaml
        augment: how training pictures are varied, or None
        keep: positions of the images to use, or None for all
        labelled_only: leave out images with no box (for training)
        cache: keep decoded images in memory (for small data)
        on_bad_image: "stop", or "skip": in training items the next good image takes the place of one that cannot be used,
            with a warning per file, and only many in a row are an error. ``data[index]`` stops in any case: an evaluation
            that leaves out images is not one.
        max_pixels: an image of more is not read; None is no limit
        max_image_side: an image whose longer side is larger is reduced to it as it is read, and its boxes with it; None reduces
            none. For training: ``coco``, which evaluations read, is in pixels of the file. See ``resizing.Transform``
        classes: names in order of label, of another split or of weights; None is the file's own, in order of category id.
            ValueError for a name that only one side has
        classes_of: what ``classes`` are those of, for the message
        origins: targets also hold ``annotation_ids`` (n,), and those of training items ``origins`` in their place: see
            ``data.origins``

    Attributes:
        classes, category_ids: name and COCO id of label 1, 2, ...
        targets: of each image, see ``Targets``
        columns: all annotations as arrays
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        augment: Augment | None = None,
        keep: Tensor | Sequence[int] | None = None,
        labelled_only: bool = False,
        cache: bool = False,
        on_bad_image: Literal["stop", "skip"] = "stop",
        max_pixels: int | None = MAX_PIXELS,
        max_image_side: int | None = None,
        classes: Sequence[str] | None = None,
        classes_of: str = "the list of classes",
        origins: bool = False,
    ):
        if on_bad_image not in ("stop", "skip"):
            raise ValueError(f"on_bad_image must be 'stop' or 'skip', got {on_bad_image!r}")
        if max_image_side is not None and max_image_side < 1:
            raise ValueError(f"max_image_side: expected a side of at least 1 pixel, or null, found {max_image_side}")
        columns, self.annotation_file, self.folder, unreadable = read_split(root, split)
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"no image folder {self.folder}; expected <root>/<split>/<file_name> beside "
                "<root>/annotations/instances_<split>.json"
            )
        self.columns = columns
        self._coco: COCO | None = None
        self.classes, self.category_ids = list(columns.heading.classes), list(columns.heading.category_ids)
        warn_of_twins(self.classes, self.annotation_file)
        tell_all(self.annotation_file, columns.heading.notes["split"] + columns.heading.notes["ids"])
        log_once(f"{self.annotation_file}: {columns.heading.summary}")
        self.origins = origins
        self.targets = Targets(columns, range(len(columns)), with_ids=origins, max_image_side=max_image_side)
        if classes is not None:
            self._take_order(classes, classes_of)
        self.files = Files(columns)
        if labelled_only:
            self.targets = self.targets.chosen(np.flatnonzero(self.targets.counts()))
        if keep is not None:
            positions = torch.as_tensor(keep)
            if positions.dtype != torch.int64 or positions.dim() != 1:
                raise TypeError(
                    f"keep must be positions of images, int64 (n,); found {positions.dtype}, {tuple(positions.shape)}"
                )
            if len(positions) and not 0 <= positions.min() <= positions.max() < len(self.targets):
                raise IndexError(f"keep must be positions from 0 to {len(self.targets) - 1}, found {positions.aminmax()}")
            self.targets = self.targets.chosen(positions.numpy())
        if not len(self.targets):
            raise ValueError(
                f"{self.annotation_file} leaves no image to use: {len(columns)} images are listed, and "
                f"{int((~columns.crowds).sum())} boxes that are no crowds"
            )
        self.augment, self.on_bad_image, self.max_pixels = augment, on_bad_image, max_pixels
        self.told_of_turns = False
        self._check_files()
        self._check_headers(unreadable)
        self.bad: dict[int, str] = {}  # what was wrong with an image, by index
        self.cache: dict[int, Tensor] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        if not isinstance(key, tuple):
            return self._image(key), self.targets[key]
        index, seed = key
        image, target = self._next_good(index) if self.on_bad_image == "skip" else (self._image(index), self.targets[index])
        target = begin(target, seed) if self.origins else target
        return self.augment(image, target, seed) if self.augment else (image, target)

    def class_counts(self) -> dict[str, int]:
        """Boxes of each class in ``targets``; 0 for a class that has none."""
        labels = self.targets.labels() - CLASSES_FROM
        return dict(zip(self.classes, labels.bincount(minlength=len(self.classes)).tolist(), strict=True))

    def size_of(self, index: int) -> tuple[float, float]:
        """Width and height of ``self[index]`` in pixels: as the annotations have them, or reduced."""
        return self.targets.size(index)

    @property
    def coco(self) -> COCO:
        """``pycocotools.coco.COCO`` of the whole split's boxes, for evaluation: see ``as_coco``."""
        if self.targets.max_image_side is not None:
            raise ValueError(
                f"{self.annotation_file}: expected images as they are for an evaluation, found max_image_side "
                f"{self.targets.max_image_side}: boxes in reduced images are not those of the file"
            )
        if self._coco is None:
            self._coco = as_coco(self.columns)
        return self._coco

    def _listed(self, index: int) -> Listed:
        return self.files.at(int(self.targets.places[index]))

    def _take_order(self, classes: Sequence[str], classes_of: str) -> None:
        """Label k is ``classes[k - 1]`` from here on."""
        order = class_order(classes, self.classes, classes_of, str(self.annotation_file), SAME_CLASSES)
        if order == sorted(order):
            return
        label_of = np.concatenate([[0], np.argsort(order) + CLASSES_FROM])
        self.classes, self.category_ids = list(classes), [self.category_ids[place] for place in order]
        self.targets = self.targets.relabelled(label_of)

    def _check_files(self) -> None:
        names = [self.columns.name(place) for place in np.asarray(self.targets.places).tolist()]
        missing, unusable = find_missing(self.folder, names)
        if slashed := with_slashes(self.folder, missing):
            warn_of(self.annotation_file, list(slashed), "with backslashes, which are read as slashes", "file name")
            self.files = Files(self.columns, slashed)
            _, more = find_missing(self.folder, list(slashed.values()))
            missing, unusable = [name for name in missing if name not in slashed], unusable + more
        if missing:
            examples = [(f"{self.folder / name}", hint(self.folder, name)) for name in missing[:LISTED]]
            causes = [f"{path} ({text})" if text else path for path, text in examples]
            raise FileNotFoundError(
                f"{self.annotation_file} names {len(missing)} of {len(self)} images that are not there: "
                f"{some(causes + missing[LISTED:])}"
            )
        self._stop_or_warn(unusable, f"names {len(unusable)} of {len(self)} images that cannot be read")

    def _check_headers(self, unreadable: Mapping[int, str]) -> None:
        """``unreadable``: what is known already, by image id."""
        headers = read_headers(self.folder, self._listed, len(self), self.max_pixels)
        ids = self.columns.image_ids[self.targets.places].tolist() if unreadable else []
        known = [f"image {image_id}: {unreadable[image_id]}" for image_id in ids if image_id in unreadable]
        faults = list(dict.fromkeys(headers.faults + known))
        if self.on_bad_image == "stop" and faults:
            kinds = "image that cannot be used" if len(faults) == 1 else "images that cannot be used"
            examined = len(self) if known else headers.examined
            raise ValueError(f"{self.annotation_file}: {len(faults)} {kinds}, of {examined} looked at: {some(faults)}")
        if headers.turned:
            self._tell_of_turns(f"{len(headers.turned)} of {headers.examined} pictures looked at", headers.turned)
        if headers.undecided:
            warnings.warn(
                f"{self.annotation_file}: {len(headers.undecided)} of {headers.examined} pictures looked at have an EXIF "
                f"orientation, and their size does not show whether the boxes mean the picture as stored or turned: "
                f"{some(headers.undecided)}. They are taken as stored, as COCO's are. If the boxes were drawn on turned pictures, "
                "store the pictures turned (ImageMagick: mogrify -auto-orient)",
                stacklevel=3,
            )

    def _stop_or_warn(self, faults: list[str], text: str) -> None:
        message = f"{self.annotation_file} {text}: {some(faults)}"
        if faults and (self.on_bad_image == "stop" or len(faults) == len(self)):
            raise ValueError(message)
        if faults:
            warnings.warn(f"{message}; other images take their place", stacklevel=4)

    def _tell_of_turns(self, which: str, names: list[str]) -> None:
        warnings.warn(
            f"{self.annotation_file}: {which} are turned by their EXIF orientation, as their boxes mean the turned pictures (the "
            f"size in the annotations says so, or they are YOLO's): {some(names)}",
            stacklevel=4,
        )
        self.told_of_turns = True

    def _image(self, index: int) -> Tensor:
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        listed = self._listed(index)
        try:
            image, orientation = read_with_orientation(self.folder / listed.name, self.max_pixels)
        except ValueError as error:
            raise ValueError(f"{self.annotation_file}: image {listed.image_id}: {error}") from None
        height, width = image.shape[1:]
        if (width, height) != (listed.width, listed.height):
            if orientation not in SIDES_SWAPPED or (height, width) != (listed.width, listed.height):
                raise ValueError(f"{self.annotation_file}: {other_size(listed, self.folder, width, height)}")
            image = turn(image, orientation)
            if not self.told_of_turns:  # the headers of large splits are not all read
                self._tell_of_turns("some pictures", [listed.name])
        width, height = map(int, self.size_of(index))
        if image.shape[1:] != (height, width):
            image = resize(image, [height, width], antialias=True)
        if self.cache is not None:
            self.cache[index] = image
        return image

    def _next_good(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The first item from ``index`` on, around the end, whose image can be used."""
        for place in (number % len(self) for number in range(index, index + min(BAD_IN_A_ROW, len(self)))):
            if place not in self.bad:
                try:
                    return self._image(place), self.targets[place]
                except ValueError as error:
                    self.bad[place] = str(error)
                    warnings.warn(f"{error}; skipped, the next image takes its place", stacklevel=2)
        raise ValueError(f"no image in a row of {BAD_IN_A_ROW} can be used; the last: {self.bad[place]}")

    def __deepcopy__(self, memo: dict[int, Any]) -> DetectionData:
        """A whole copy, but for the annotations, which nothing changes."""
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(
            (name, value if name == "_coco" else copy.deepcopy(value, memo)) for name, value in self.__dict__.items()
        )
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """For loader workers that do not begin as a fork; ``coco`` is large, and made again where it is asked for."""
        return {**self.__dict__, "_coco": None, "cache": None if self.cache is None else {}}
