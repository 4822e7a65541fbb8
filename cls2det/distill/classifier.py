"""The distillation terms of a classification teacher (Guo, Alvarez, Salzmann, NeurIPS 2021), on a detector's positives.

L = L_det + kd_cls_weight · KD-cls + kd_loc_weight · KD-loc + loc_weight · loc        (eq. 12)

KD-cls (eq. 1-7): the student's class distribution at a positive follows the teacher's on the crop of its ground truth.
A teacher that knows the background too (its last column) gives a softmax student a whole distribution to follow.
KD-loc (eq. 10): the crop of the predicted box looks, to the teacher's frozen low layers, like the crop of the ground truth.
loc (eq. 11): so do its pixels; no teacher takes part. The gradient flows through the crop to the box and to nothing else.

Two choices differ from the paper, which clamps boxes to the image and pads with zeros: here, and in the teacher's training, boxes
are not clamped and crops repeat the border, so that a box that leaves the image still feels a pull back.
"""

from __future__ import annotations

import functools
import operator
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.distill.banked import check_columns, cut_boxes, origins_of, whole_boxes
from cls2det.distill.controls import BOXES, LABELS
from cls2det.distill.first_step import warn_of_mistakes
from cls2det.distill.kd_cls import kd_cls_term
from cls2det.models.positives import Positives
from cls2det.settings import ClassifierSettings
from cls2det.teachers.bank import AnyBank
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.teachers.crops import PADDING
from cls2det.teachers.frozen import Replayed
from cls2det.teachers.network import BoxTeacher
from cls2det.teachers.normalisation import Renormalise
from cls2det_ops import matched_feature_loss, roi_feature_loss


class BoxDistiller:
    """``distiller(positives)`` gives the weighted terms by name: kd_cls, kd_loc, loc. For any detector in any trainer.

        distiller = BoxDistiller(teacher, settings, image_mean=mean, image_std=std).to(device)
        terms = distiller(positives)            # add their sum to the detector's loss

    It is not an ``nn.Module``, so that a training module that has it as an attribute does not take the frozen teacher for a
    part of itself: the teacher is not among its parameters, in its checkpoint, in DDP's buckets or in averaged weights.

    Args:
        teacher: a ``BoxTeacher`` of the student's classes in any order (``CropClassifier``, ``teacher_from``), or None if the
            settings ask for no more than the pixel term and, with a bank, KD-cls
        settings: of the terms
        classes: names of the student's classes, in order of label; None is the teacher's order
        image_mean: of each channel, as ``positives.images`` are normalised, of images in [0, 1]; pictures of 0 to 1 have
            (0, 0, 0), of 0 to 255 too
        image_std: of each channel; pictures of 0 to 1 have (1, 1, 1), of 0 to 255 (1/255, 1/255, 1/255). A teacher with another
            normalisation gets crops in its own
        capture: on a GPU, replay the teacher's pass as captured graphs; None does so for a ``CropClassifier`` of torchvision
        explain: warn of the likely mistakes of the first batch that has positives, see ``cls2det_ops.explain``. It reads values,
            so this one step waits for a GPU
        bank: a ``Bank`` or ``BankAverage``: KD-cls reads its logits in place of the teacher's, by ``positives.origins``; the teacher,
            if there is one, serves KD-loc and the boxes that are cut
        bank_visible: boxes of which augmentation left a smaller share are not compared with the bank: they go to the teacher
            or, without one, are left out of KD-cls, whose divisor still counts their positives

    Raises:
        ValueError: settings that need a teacher, and none; classes that only one side has; a layer that the teacher lacks; a
            bank without logits, or with a column for the background that the teacher does not have
    """

    def __init__(
        self,
        teacher: BoxTeacher | None,
        settings: ClassifierSettings = ClassifierSettings(),  # noqa: B008 (frozen)
        *,
        classes: Sequence[str] | None = None,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        capture: bool | None = None,
        explain: bool = True,
        bank: AnyBank | None = None,
        bank_visible: float = 0.5,
    ):
        if classes is None:
            classes = next((source.classes for source in (teacher, bank) if source is not None), ())
        self.settings, self.classes = settings, len(classes)
        self.on_targets: nn.Module | None = None
        self.on_predictions: nn.Module | None = None
        self.on_cut: nn.Module | None = None  # gives the logits of boxes that the bank does not serve
        self.true_box = BOXES.get(settings.control)  # in place of the terms on boxes
        check_sources(settings, has_teacher=teacher is not None, has_bank=bank is not None)
        layers, logits = _parts_of_teacher(settings)
        self.bank = bank.for_classes(classes) if bank is not None and logits else None
        self.bank_visible = bank_visible
        for option, needs_two in (
            ("control shuffled", settings.control == "shuffled"),
            ("kd_cls_variants decoupled", "decoupled" in settings.kd_cls_variants),
        ):
            if needs_two and len(classes) == 1:
                raise ValueError(f"{option} needs two classes or more; the data has {classes[0]!r} alone")
        if teacher is not None:
            teacher = teacher.for_classes(classes)
            if isinstance(teacher, nn.Module):
                teacher.eval().requires_grad_(False)
            capture = isinstance(teacher, CropClassifier) and not teacher.is_foreign if capture is None else capture
            # One pass per ground truth serves both losses; predicted crops, or whole images, run the low layers alone.
            on_crops = layers if settings.feature_mode == "crop" else ()
            dtype = {"32": torch.float32, "bf16": torch.bfloat16}[settings.teacher_precision]
            if on_crops or (logits and self.bank is None):
                reader = teacher.reader(on_crops, logits and self.bank is None, dtype)
                self.on_targets = Replayed(reader) if capture else reader
            if self.bank is not None:
                reader = teacher.reader((), True, dtype)
                check_columns(reader, teacher, self.bank)
                self.on_cut = Replayed(reader) if capture else reader
            if layers:
                self.on_predictions = teacher.reader(layers, False, dtype)
        self.teacher = teacher
        self.pixel_size = settings.pixel_size or (teacher.crop_size if teacher else 112)
        self.pixel_unit = settings.input_std / (255 * statistics.fmean(image_std))  # in the pictures' own units
        self.normalisation, self.is_explained = (image_mean, image_std), not explain
        to_mean, to_std = (image_mean, image_std) if teacher is None else (teacher.mean, teacher.std)
        self.for_teacher = Renormalise(image_mean, image_std, to_mean, to_std)
        self.accuracy: Tensor | None = None  # of the teacher on the last step's ground truths, in [0, 1]

    def __deepcopy__(self, _memo: dict[int, Any]) -> BoxDistiller:
        """A copy of the training module (an average of its weights, say) shares the frozen teacher."""
        return self

    def to(self, device: torch.device | str) -> BoxDistiller:
        """Move the teacher, which no training module knows of; returns itself."""
        for module in (self.teacher, self.on_targets, self.on_predictions, self.on_cut):
            if isinstance(module, nn.Module):
                module.to(device)
        self.for_teacher.to(device)
        return self

    def __call__(self, positives: Positives) -> dict[str, Tensor]:
        settings = self.settings
        terms: dict[str, Tensor] = {}
        on_boxes = positives if settings.max_positives is None else positives.thinned(settings.max_positives)
        divisor, box_divisor = self._normalizers(positives, on_boxes)
        with torch.no_grad():
            targets = self._targets(positives)
        if not self.is_explained and len(positives):
            self.is_explained = True
            compared = settings.kd_cls_weight > 0 and settings.control not in (*LABELS, "shuffled")
            logits = targets["logits"][:, : self.classes] if compared else None
            trains_boxes = settings.kd_loc_weight + settings.loc_weight > 0
            warn_of_mistakes(positives, logits, *self.normalisation, trains_boxes)
        if settings.kd_cls_weight:
            terms["kd_cls"] = settings.kd_cls_weight * kd_cls_term(
                positives, targets["logits"], self.classes, settings, divisor, targets.get("whole")
            )
        if settings.kd_loc_weight:
            distance = (
                self.true_box(on_boxes) / box_divisor if self.true_box else self._features(on_boxes, targets, box_divisor)
            )
            terms["kd_loc"] = settings.kd_loc_weight * distance
        if settings.loc_weight:
            distance = self.true_box(on_boxes) / box_divisor if self.true_box else self._pixels(on_boxes, box_divisor)
            terms["loc"] = settings.loc_weight * distance
        return terms

    def _targets(self, positives: Positives) -> dict[str, Tensor]:
        """The teacher's outputs on the crops of the ground truths: "logits" (G, C), with its column for the background, if it has
        one, (G, C + 1), and layers by name; "whole" (G,) where some boxes are left out of KD-cls."""
        truth = positives.target_labels - 1
        of_labels = {}
        if self.settings.control in LABELS:
            of_labels["logits"] = LABELS[self.settings.control](truth, self.classes, positives.head, self.settings.temperature)
        if (self.on_targets is None and self.bank is None) or not len(truth):
            return {"logits": positives.images.new_zeros(len(truth), self.classes), **of_labels}
        outputs: dict[str, Tensor] = {}
        if self.on_targets is not None:
            outputs = self._read(self.on_targets, positives, positives.target_boxes, positives.target_image_index)
        if self.bank is not None:
            outputs |= self._of_bank(positives)
        if "logits" in outputs:
            outputs["logits"] = outputs["logits"].float()
            self.accuracy = (outputs["logits"].argmax(1) == truth).float().mean()
            if self.settings.control == "shuffled":  # the background stays where it is
                outputs["logits"][:, : self.classes] = outputs["logits"][:, : self.classes].roll(1, dims=1)
        return {**outputs, **of_labels}

    def _read(self, reader: nn.Module, positives: Positives, boxes: Tensor, image_index: Tensor) -> dict[str, Tensor]:
        """What a reader of the teacher gives for the crops of ``boxes``."""
        teacher = self.teacher
        assert teacher is not None  # which the reader reads
        parts = [
            reader(self.for_teacher(teacher.crop(positives.images, boxes[chunk], image_index[chunk])))
            for chunk in self._chunks(boxes)
        ]
        return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _of_bank(self, positives: Positives) -> dict[str, Tensor]:
        """The bank's "logits", in which the teacher's stand for boxes that are cut; without a teacher, "whole" says which are not.

        Which boxes are cut is known on the host: nothing waits for a GPU.
        """
        bank, device = self.bank, positives.images.device
        assert bank is not None
        logits = bank.logits_of(origins_of(positives)).to(device, non_blocking=True)
        cut = cut_boxes(positives, self.bank_visible)
        if not len(cut):
            return {"logits": logits}
        if self.on_cut is None:
            return {"logits": logits, "whole": whole_boxes(len(logits), cut, device)}
        rows = cut.to(device, non_blocking=True)
        boxes, image_index = positives.target_boxes[rows], positives.target_image_index[rows]
        live = self._read(self.on_cut, positives, boxes, image_index)["logits"]
        return {"logits": logits.index_copy_(0, rows, live.float())}

    def _features(self, positives: Positives, targets: dict[str, Tensor], divisor: float | Tensor) -> Tensor:
        if not len(positives):
            return 0.0 * positives.boxes.sum()
        compare = self._on_maps if self.settings.feature_mode == "map" else self._on_crops
        return compare(positives, targets, divisor) / len(self.settings.feature_layers)

    def _on_crops(self, positives: Positives, targets: dict[str, Tensor], divisor: float | Tensor) -> Tensor:
        """Sum over the layers, from the crops of predictions and of ground truths.

        Where there are several chunks, each is differentiated as soon as it is computed, and the next one takes its memory.
        """

        teacher, layers = self.teacher, self.on_predictions
        assert teacher is not None and layers is not None  # with a weight of KD-loc

        def compare(boxes: Tensor, chunk: slice) -> Tensor:
            outputs = layers(self.for_teacher(teacher.crop(positives.images, boxes, positives.image_index[chunk])))
            terms = (
                matched_feature_loss(outputs[layer], targets[layer], positives.matched_idxs[chunk], pool, normalizer=divisor)
                for layer, pool in zip(self.settings.feature_layers, self.settings.feature_pools, strict=True)
            )
            return functools.reduce(operator.add, terms)

        chunks = self._chunks(positives.boxes)
        if len(chunks) == 1:
            return compare(positives.boxes, chunks[0])
        loss: Tensor = _ByChunks.apply(positives.boxes, compare, chunks)
        return loss

    def _chunks(self, boxes: Tensor) -> list[slice]:
        size = self.settings.chunk or len(boxes)  # where there are no boxes, there are no chunks
        return [slice(begin, begin + size) for begin in range(0, len(boxes), size)]

    def _on_maps(self, positives: Positives, _targets: dict[str, Tensor], divisor: float | Tensor) -> Tensor:
        """Sum over the layers, from maps of whole images; a box has as many samples on a map as its crop would have places."""
        teacher, layers = self.teacher, self.on_predictions
        assert teacher is not None and layers is not None  # with a weight of KD-loc
        with torch.no_grad():
            maps = layers(self.for_teacher(positives.images))
        terms = []
        for layer, pool in zip(self.settings.feature_layers, self.settings.feature_pools, strict=True):
            stride = round(positives.images.shape[-1] / maps[layer].shape[-1])
            terms.append(
                roi_feature_loss(
                    maps[layer],
                    boxes=teacher.with_margin(positives.boxes),
                    image_index=positives.image_index,
                    target_boxes=teacher.with_margin(positives.target_boxes),
                    target_image_index=positives.target_image_index,
                    matched_idxs=positives.matched_idxs,
                    output_size=pool,
                    sampling_size=max(teacher.crop_size // stride, pool),
                    spatial_scale=1 / stride,
                    padding_mode=PADDING,
                    clip=False,
                    normalizer=divisor,
                )
            )
        return functools.reduce(operator.add, terms)

    def _pixels(self, positives: Positives, divisor: float | Tensor) -> Tensor:
        return roi_feature_loss(
            positives.images,
            boxes=positives.boxes,
            image_index=positives.image_index,
            target_boxes=positives.target_boxes,
            target_image_index=positives.target_image_index,
            matched_idxs=positives.matched_idxs,
            output_size=self.settings.pixel_pool,
            sampling_size=self.pixel_size,
            std=self.pixel_unit,
            padding_mode=PADDING,
            clip=False,
            normalizer=divisor,
        )

    def _normalizers(self, *groups: Positives) -> Sequence[float | Tensor]:
        """Number of positives of each group; for "all", such that DDP's mean over processes divides by that of all."""
        counts, distributed = [float(len(group)) for group in groups], torch.distributed
        if self.settings.normalizer == "all" and distributed.is_available() and distributed.is_initialized():
            totals = torch.tensor(counts, device=groups[0].boxes.device)
            distributed.all_reduce(totals)
            return (totals.clamp(min=1) / distributed.get_world_size()).unbind()
        return [max(count, 1.0) for count in counts]  # on the host: no kernel is launched for them


class ClassifierDistiller(BoxDistiller):
    """Of a student of this package, whose normalisation the teacher was trained with.

    Args:
        teacher: see ``BoxDistiller``
        settings: of the terms
        classes: names of the student's classes, in order of label
        transform: of the student
        bank: see ``BoxDistiller``
        bank_visible: see ``BoxDistiller``

    Raises:
        ValueError: as ``BoxDistiller``; a teacher of another normalisation
    """

    def __init__(
        self,
        teacher: BoxTeacher | None,
        settings: ClassifierSettings,
        classes: Sequence[str],
        transform: GeneralizedRCNNTransform,
        *,
        bank: AnyBank | None = None,
        bank_visible: float = 0.5,
    ):
        if isinstance(teacher, CropClassifier) and not teacher.is_foreign:  # others want their own, whoever the student is
            check_same_normalisation(teacher, transform)
        normalisation = {"image_mean": transform.image_mean, "image_std": transform.image_std}
        super().__init__(teacher, settings, classes=classes, **normalisation, bank=bank, bank_visible=bank_visible)


class _ByChunks(torch.autograd.Function):
    """Sum of ``compare(boxes[chunk], chunk)`` over slices, which gives gradient to nothing but the boxes."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, compare: Callable[[Tensor, slice], Tensor], chunks: Sequence[slice]) -> Tensor:
        needs_grad, terms = ctx.needs_input_grad[0], []
        gradients: list[Tensor] = []
        for chunk in chunks:
            with torch.set_grad_enabled(needs_grad):
                part = boxes[chunk].detach().requires_grad_(needs_grad)
                term = compare(part, chunk)
            if needs_grad:
                gradients += torch.autograd.grad(term, part)
            terms.append(term.detach())
        ctx.save_for_backward(*([torch.cat(gradients)] if needs_grad else []))
        return torch.stack(terms).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.saved_tensors[0], None, None


def check_same_normalisation(teacher: CropClassifier, transform: GeneralizedRCNNTransform) -> None:
    """The teacher's inputs are scaled like the student's, or a ValueError."""
    for name in ("image_mean", "image_std"):
        students, teachers = list(getattr(transform, name)), list(getattr(teacher.transform, name))
        if students != teachers:
            raise ValueError(
                f"{name} is {students} in the student and {teachers} in the teacher; crops must look alike: "
                "train the teacher with --student"
            )


def check_sources(settings: ClassifierSettings, *, has_teacher: bool, has_bank: bool) -> None:
    """ValueError if a term with a weight above 0 needs a teacher, or a bank in its place, that is not there."""
    layers, logits = _parts_of_teacher(settings)
    if has_teacher:
        return
    if layers and has_bank:
        raise ValueError(
            "KD-loc compares layers of a teacher, which a bank does not have: give the teacher beside it (--teacher), or a "
            "kd_loc_weight of 0 (--classifier.kd-loc-weight 0)"
        )
    if layers or (logits and not has_bank):
        raise ValueError("KD-cls and KD-loc need a teacher; without one, only loc_weight may be above 0")


def _parts_of_teacher(settings: ClassifierSettings) -> tuple[tuple[str, ...], bool]:
    """The layers of a teacher that KD-loc compares, and whether KD-cls reads logits. The controls replace either."""
    layers = settings.feature_layers if settings.kd_loc_weight and settings.control not in BOXES else ()
    return layers, settings.kd_cls_weight > 0 and settings.control not in LABELS
