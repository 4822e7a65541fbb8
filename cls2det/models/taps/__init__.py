"""The positives of a detector, taken out of its own training code.

    tap = PositiveTap(model)
    with tap:
        losses = model(images, targets)      # the model's forward and loss, untouched
    positives = tap.positives                # what that loss just used
    logits, regression = tap.outputs         # what the head gave, with graph
    tap.student_outputs                      # these and all else that a distiller may read: maps, anchors, proposals

No code of the detector is copied and nothing stays on the model: inside the ``with`` block the method that receives the
matches is wrapped, after it the model is as before. torchvision's SSD, RetinaNet, FCOS and Faster R-CNN are known, and so are
transformers' detectors that match by the Hungarian method, alone or as students. What is used of them was read in torchvision
0.29 and transformers 5.24, and ``PositiveTap(model)`` checks that it is there, by name and arguments. Under DDP, tap the
detector inside.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD

from cls2det.errors import LibraryChanged
from cls2det.models.positives import Positives
from cls2det.models.students.hungarian import HungarianDetector, named_maps
from cls2det.models.taps import dense, hungarian, roi_heads
from cls2det.models.taps.family import Family

FAMILIES = {
    SSD: dense.SSD_FAMILY,
    RetinaNet: dense.RETINANET_FAMILY,
    FCOS: dense.FCOS_FAMILY,
    FasterRCNN: roi_heads.FAMILY,
    HungarianDetector: hungarian.STUDENT_FAMILY,
}


@dataclasses.dataclass(frozen=True)
class Grid:
    """Predictions at every anchor: of a dense detector's head, or of a Faster R-CNN's RPN.

    Attributes:
        anchors: (A, 4) xyxy in pixels of the padded images, all levels in one list, place after place
        level_sizes: anchors of each level
        logits: (B, A, columns), as the head gives them; 1 column of objectness in an RPN
        regression: (B, A, 4), in the code of the model's own coder
        find_labels: what ``labels`` calls when it is first read: a step that reads the positives alone does not pay for it
        decode: (regression (N, 4), anchors (N, 4)) to boxes (N, 4)
        head: "softmax" (column 0 is the background) or "sigmoid" of each column
    """

    anchors: Tensor
    level_sizes: tuple[int, ...]
    logits: Tensor
    regression: Tensor
    find_labels: Callable[[], Tensor]
    decode: Callable[[Tensor, Tensor], Tensor]
    head: str

    @functools.cached_property
    def labels(self) -> Tensor:
        """(B, A), of the model's own matching: above 0 a positive, 0 background, below 0 one that its loss does not look at."""
        return self.find_labels()


@dataclasses.dataclass(frozen=True)
class Regions:
    """The R sampled proposals of a Faster R-CNN, image after image, and its box head's outputs for them.

    Attributes:
        proposals: (n, 4) xyxy of each image
        logits: (R, C + 1), column 0 is the background
        regression: (R, 4 (C + 1)), a code for every column
        labels: (R,), 0 is background
        targets: (R, 4), the code of the matched ground truth
    """

    proposals: list[Tensor]
    logits: Tensor
    regression: Tensor
    labels: Tensor
    targets: Tensor


@dataclasses.dataclass(frozen=True)
class StudentOutputs:
    """What one training forward of a student made, with graph. ``grid`` and ``regions`` are None where it has none.

    Attributes:
        positives: of the detector's loss
        image_sizes: (height, width) of each image, without its padding
        features: the backbone's maps (B, C, h, w), by name, in order of level
        places: anchors per place of each level; empty where there are no anchors
    """

    positives: Positives
    image_sizes: list[tuple[int, int]]
    features: dict[str, Tensor]
    places: tuple[int, ...]
    grid: Grid | None
    regions: Regions | None

    @property
    def images(self) -> Tensor:
        return self.positives.images


class PositiveTap:
    """Collects the positives of each training forward that runs inside ``with tap:``.

    Raises:
        TypeError: a model that it does not know
        LibraryChanged: one that is not as it was in the version of torchvision or transformers that this was written for
    """

    def __init__(self, model: nn.Module):
        self._family = family_of(model)
        common = {"transform.forward": ("images", "targets")} if self._family.reads_transform else {}
        _check(model, common | self._family.methods, self._family.library)
        self._family.check(model)
        self.model: Any = model  # its parts are torchvision's and transformers', which mypy does not know
        self._features: dict[str, Tensor] = {}
        self._anchors: Tensor | None = None
        self._grid: dict[str, Any] = {}
        self._regions: Regions | None = None
        self._undo: list[Callable[[], Any]] = []
        self._parts: dict[str, Any] = {}  # arguments of Positives
        self._outputs: tuple[Tensor, ...] = ()
        self._first = torch.empty(0)  # each image's first ground truth in the list of all
        self.image_sizes: list[tuple[int, int]] = []  # of the images of this forward, without their padding

    def __enter__(self) -> PositiveTap:
        if self._undo:
            raise RuntimeError("this tap is open already; close it, or make another")
        self.forget()
        if self._family.reads_transform:
            self.undo(self.model.transform.register_forward_hook(self._keep_transformed).remove)
            if (network := body(self.model)) is not None:
                self.hook(network, self._keep_features)
        if (generator := anchor_generator(self.model)) is not None:
            self.hook(generator, self._keep_anchors)
        self._family.install(self)
        return self

    def __exit__(self, *_: object) -> None:
        while self._undo:
            self._undo.pop()()

    @property
    def has_positives(self) -> bool:
        return "logits" in self._parts

    @property
    def positives(self) -> Positives:
        """The positives of the last forward. Raises RuntimeError if it delivered none, which no training should ignore."""
        if not self.has_positives:
            raise RuntimeError("no positives: run the model in training mode, with targets, inside `with tap:`")
        return Positives(**self._parts)

    @property
    def student_outputs(self) -> StudentOutputs:
        """All that the last forward made. Raises RuntimeError as ``positives``."""
        positives, grid = self.positives, None
        places: tuple[int, ...] = ()
        if (generator := anchor_generator(self.model)) is not None:
            places = tuple(generator.num_anchors_per_location())
        if self._grid:
            shapes = [feature.shape[-2:].numel() for feature in self._features.values()]
            sizes = tuple(count * size for count, size in zip(places, shapes, strict=True))
            assert self._anchors is not None  # a loss over anchors has them
            grid = Grid(self._anchors, sizes, **self._grid)
        return StudentOutputs(
            positives=positives,
            image_sizes=self.image_sizes,
            features=self._features,
            places=places,
            grid=grid,
            regions=self._regions,
        )

    @property
    def seen(self) -> StudentOutputs:
        """The name of ``student_outputs`` in version 0.1."""
        warnings.warn("tap.seen is called tap.student_outputs now", FutureWarning, stacklevel=2)
        return self.student_outputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Class logits and box regression of the last forward's head, for positives and negatives, with graph."""
        if not self._outputs:
            raise RuntimeError("no outputs: run the model in training mode, with targets, inside `with tap:`")
        return self._outputs

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """The backbone's maps of the last forward, in order of level, with graph."""
        return tuple(self._features.values())

    @property
    def normalisation(self) -> dict[str, list[float]]:
        """``image_mean`` and ``image_std`` of the pictures that the detector sees, for ``BoxDistiller(…, **tap.normalisation)``.

        Raises TypeError for a detector that does not normalise by itself: transformers' image processors do.
        """
        transform: Any = getattr(self.model, "transform", None)
        if not hasattr(transform, "image_mean"):
            raise TypeError(
                f"{type(self.model).__name__} does not normalise its pictures; give BoxDistiller the image_mean and image_std of "
                "its image processor, (0, 0, 0) and (1, 1, 1) where that has do_normalize=False"
            )
        return {"image_mean": list(transform.image_mean), "image_std": list(transform.image_std)}

    def forget(self) -> None:
        """A forward begins: what the one before left is no longer wanted."""
        self._parts, self._outputs, self._grid, self._regions = {}, (), {}, None

    def keep_inputs(self, images: Tensor, boxes: list[Tensor], labels: list[Tensor], origins: list[Any] | None = None) -> None:
        """For the families: images (B, 3, H, W), and of each image the ground truths' boxes (n, 4) and labels (n,) from 1; of
        targets that have them, their ``origins`` (n,)."""
        counts = [len(rows) for rows in boxes]
        self._first = torch.tensor([sum(counts[:number]) for number in range(len(counts))], device=images.device)
        self._parts = {
            "images": images,
            "target_boxes": torch.cat(boxes),
            "target_labels": torch.cat(labels),
            "target_image_index": torch.tensor(
                [image for image, count in enumerate(counts) for _ in range(count)], dtype=torch.int64, device=images.device
            ),
            "origins": np.concatenate(origins) if origins else None,
        }

    def _keep_transformed(
        self, _module: nn.Module, _arguments: tuple[Any, ...], outputs: tuple[ImageList, list[dict[str, Tensor]] | None]
    ) -> None:
        images, targets = outputs
        self.forget()
        self.image_sizes = images.image_sizes
        if targets is not None:
            boxes, labels = ([target[name] for target in targets] for name in ("boxes", "labels"))
            origins = [target["origins"] for target in targets] if targets and "origins" in targets[0] else None
            self.keep_inputs(images.tensors, boxes, labels, origins)

    def _keep_features(self, output: Any) -> None:
        self._features = named_maps(output)

    def _keep_anchors(self, anchors: list[Tensor]) -> None:
        self._anchors = anchors[0]  # images of a batch are padded to one size, and have the same

    def keep_grid(self, **parts: Any) -> None:
        """For the families: the predictions at every anchor, see ``Grid``; anchors and levels are added later."""
        self._grid = parts

    def keep_regions(self, **parts: Any) -> None:
        """For the families: the sampled proposals, see ``Regions``."""
        self._regions = Regions(**parts)

    def keep_positives(self, *, image_index: Tensor, matched: Tensor, outputs: tuple[Tensor, ...], **parts: Any) -> None:
        """For the families: the positives, see ``Positives``, with ``matched`` counted within each image; the head's outputs."""
        self._outputs = outputs
        self._parts |= {"image_index": image_index, "matched_idxs": matched + self._first[image_index], **parts}

    def wrap(
        self,
        owner: nn.Module,
        name: str,
        before: Callable[..., None] | None = None,
        after: Callable[[Any], None] | None = None,
    ) -> None:
        """Call ``before(*arguments)`` or ``after(result)`` at each call of ``owner.name``, until the tap closes."""
        method = getattr(owner, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            if before:
                before(*arguments, **keywords)
            result = method(*arguments, **keywords)
            if after:
                after(result)
            return result

        attribute = owner.__dict__.get(name)  # of this object; a method is its class's
        owner.__dict__[name] = call
        self.undo(lambda: owner.__dict__.update({name: attribute}) if attribute is not None else owner.__dict__.pop(name))

    def hook(self, module: nn.Module, after: Callable[[Any], None]) -> None:
        """Call ``after(result)`` at each forward of ``module``, until the tap closes."""
        self.undo(module.register_forward_hook(lambda _module, _arguments, result: after(result)).remove)

    def undo(self, call: Callable[[], Any]) -> None:
        """For the families: what is called when the tap closes."""
        self._undo.append(call)


def family_of(model: nn.Module) -> Family:
    """The family whose way of taking positives fits the model, or TypeError."""
    for kind, family in FAMILIES.items():
        if isinstance(model, kind):
            return family
    if hungarian.is_transformers_detector(model):
        return hungarian.FAMILY
    names = ", ".join(kind.__name__ for kind in FAMILIES)
    raise TypeError(
        f"PositiveTap knows {names} and transformers' …ForObjectDetection, not {type(model).__name__}; of a wrapped model, give "
        "the one inside. For any other, make cls2det.models.positives.Positives yourself"
    )


def body(model: nn.Module) -> nn.Module | None:
    """The module that gives a detector's maps (B, C, h, w), see ``named_maps``; with its pyramid, where it has one.

    None for a detector that has no such part, as YOLOS.
    """
    if not isinstance(model, HungarianDetector):
        return model.get_submodule("backbone")
    backbone = getattr(model, "backbone", None)
    return getattr(backbone, "body", backbone)


def anchor_generator(model: nn.Module) -> AnchorGenerator | DefaultBoxGenerator | None:
    """The module that gives a torchvision detector its anchors; None for a DETR."""
    return getattr(getattr(model, "rpn", model), "anchor_generator", None)


def _check(model: nn.Module, methods: dict[str, tuple[str, ...] | None], library: str) -> None:
    """Each method is there and takes these arguments (None: any)."""
    for path, arguments in methods.items():
        method: Any = model
        for name in path.split("."):
            if not hasattr(method, name):
                raise LibraryChanged(library, f"{type(model).__name__} has no {path}, from which its positives are taken")
            method = getattr(method, name)
        if not arguments:
            continue
        parameters = tuple(inspect.signature(method).parameters)
        if parameters != arguments:
            raise LibraryChanged(
                library,
                f"{type(model).__name__}.{path} takes ({', '.join(parameters)}), "
                f"where its positives are taken from ({', '.join(arguments)})",
            )
