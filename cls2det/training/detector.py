"""Training of a student: the detector's own losses plus the distillation terms, on Lightning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from cls2det.data.dataset import DetectionData
from cls2det.data.images import to_float
from cls2det.distill import Distillation
from cls2det.distill.balance import gradient_ratios
from cls2det.evaluation.coco import MAX_DETECTIONS, as_results, coco_table, foreground
from cls2det.evaluation.drawing import contact_sheet, crops_sheet, draw_boxes
from cls2det.models.students.limits import allow_detections
from cls2det.models.taps import PositiveTap
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.training.optimizer import configure_optimizer
from cls2det.training.settings import Optim

DRAWN_SCORE = 0.3  # detections with a lower score are not drawn


class DetectorTraining(lightning.LightningModule):
    """L = cls_weight · L_cls + box_weight · L_box (the detector's own) + the distillation's terms, each of them logged.

    Args:
        detector: called like torchvision's; it is trained in place (``models.students.save_student`` writes weights.pt)
        classes: names of the classes, in order of label
        student: name of the detector, for the log
        image_size: side that images are brought to, for the log
        optim: how the weights are optimised
        cls_weight: weight of the detector's own classification losses
        box_weight: weight of the detector's own box losses
        distillation: gives the distillation terms, or None. Adapters that it trains are in the training checkpoints; its
            teachers are not
        ratio_every: steps between measurements of the terms' gradients; None is none
        pictures: validation images drawn for TensorBoard
        max_detections: that count per image and class in validations
    """

    def __init__(
        self,
        detector: nn.Module,
        classes: Sequence[str],
        *,
        student: str = "ssd_compact",
        image_size: int | None = None,
        optim: Optim = Optim(),  # noqa: B008 (frozen)
        cls_weight: float = 1.0,
        box_weight: float = 1.0,
        distillation: Distillation | None = None,
        ratio_every: int | None = None,
        pictures: int = 0,
        max_detections: int = MAX_DETECTIONS,
    ):
        super().__init__()
        if min(cls_weight, box_weight) < 0:
            raise ValueError(f"cls_weight and box_weight must be at least 0, got {cls_weight} and {box_weight}")
        if cls_weight == box_weight == 0 and distillation is None:
            raise ValueError(
                "cls_weight and box_weight are both 0, and nothing is distilled: the detector would learn nothing"
            )
        self.save_hyperparameters(
            {
                "classes": list(classes),
                "student": student,
                "image_size": image_size,
                "cls_weight": cls_weight,
                "box_weight": box_weight,
                "optim": dataclasses.asdict(optim),
            }
        )
        self.detector, self.classes, self.optim = detector, list(classes), optim
        self.cls_weight, self.box_weight = cls_weight, box_weight
        self.distillation = distillation
        self.tap = None if distillation is None else PositiveTap(detector)
        self.ratio_every, self.pictures, self.max_detections = ratio_every, pictures, max_detections
        allow_detections(detector, max_detections)
        self.terms: dict[str, Tensor] = {}  # of the last forward, for ``guards.FiniteLosses``
        self.detections: list[dict] = []  # of a validation, in COCO's result format

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections of uint8 images: boxes (n, 4) xyxy in pixels of each image, labels (n,), scores (n,)."""
        return self.detector(to_float(images))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return configure_optimizer(self.optim, self)

    def on_fit_start(self) -> None:
        if self.distillation is not None:
            self.distillation.to_device(self.device)

    def training_step(self, batch: tuple[list, list], _index: int) -> Tensor:
        detection_terms, distillation_terms = self.losses(*batch)
        terms = detection_terms | distillation_terms
        loss = cast(Tensor, sum(terms.values()))
        self.terms = {name: term.detach() for name, term in terms.items()}
        count = len(batch[0])
        self.log("loss", loss.detach(), prog_bar=True, batch_size=count)
        self.log_dict(self.terms, batch_size=count)
        classifier = self.distillation and self.distillation.classifier
        if classifier and classifier.accuracy is not None:
            self.log("teacher_accuracy", 100 * classifier.accuracy, batch_size=count)
        if self.distillation is not None and self.distillation.factors:
            factors = {f"auto_weight/{name}": factor for name, factor in self.distillation.factors.items()}
            self.log_dict(factors, batch_size=count)
        is_measured = self.ratio_every is not None and (self.global_step + 1) % self.ratio_every == 0
        if self.tap is not None and distillation_terms and is_measured:
            detection = cast(Tensor, sum(detection_terms.values()))
            ratios = gradient_ratios(detection, distillation_terms, self.tap.outputs, self.tap.maps)
            self.log_dict({f"gradient_ratio/{name}": ratio for name, ratio in ratios.items()}, batch_size=count)
        return loss

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The detector's own terms and the distillation terms, weighted."""
        if self.distillation is None or self.tap is None:
            return self._weighted(self.detector(to_float(images), targets)), {}
        with self.tap:
            detection_terms = self._weighted(self.detector(to_float(images), targets))
        detection = cast(Tensor, sum(detection_terms.values()))
        terms = self.distillation(self.tap.student_outputs, self.global_step, detection, [self.tap.outputs, self.tap.maps])
        return detection_terms, terms

    def _weighted(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        def weight(name: str) -> float:
            return self.box_weight if "box" in name or "giou" in name else self.cls_weight

        return {name: term * weight(name) for name, term in terms.items()}

    def on_validation_epoch_start(self) -> None:
        self.detections = []

    def validation_step(self, batch: tuple[list, list], index: int) -> None:
        images, targets = batch
        detections = self(images)
        ids = self._validation_data().category_ids
        for target, detection in zip(targets, detections, strict=True):
            self.detections += as_results(int(target["image_id"]), detection, ids)
        if index == 0 and self.pictures and self.trainer.is_global_zero:
            self._draw(images[: self.pictures], targets[: self.pictures], detections[: self.pictures])

    def on_validation_epoch_end(self) -> None:
        if self.trainer.world_size > 1:  # shares may differ in size, so objects and not tensors are gathered
            shares: list = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(shares, self.detections)
            self.detections = [detection for share in shares for detection in share]
        table = coco_table(self._validation_data(), self.detections, self.max_detections)
        self.log_dict({f"val/{name}": table[name] for name in ("mAP", "AP50", "AP75") if table[name] is not None})

    def _validation_data(self) -> DetectionData:
        loader: Any = self.trainer.val_dataloaders
        return loader.dataset

    def _draw(self, images: list[Tensor], targets: list[dict], detections: list[dict]) -> None:
        """To TensorBoard: predicted and ground-truth boxes, and the teacher's crops."""
        board, classes = cast(TensorBoardLogger, self.trainer.loggers[-1]).experiment, self.classes
        drawn = [
            {name: value[detection["scores"] >= DRAWN_SCORE] for name, value in detection.items()}
            for detection in map(foreground, detections)
        ]
        rows = [
            [
                draw_boxes(image, target["boxes"], target["labels"], classes)
                for image, target in zip(images, targets, strict=True)
            ],
            [
                draw_boxes(image, detection["boxes"], detection["labels"], classes, scores=detection["scores"])
                for image, detection in zip(images, drawn, strict=True)
            ],
        ]
        board.add_image("val/ground truth above predictions", contact_sheet(rows), self.global_step)
        classifier = self.distillation and self.distillation.classifier
        teacher = classifier.teacher if classifier else None
        if isinstance(teacher, CropClassifier):
            crops, labels = teacher.crops_of_batch((images, targets))
            if len(crops):
                captions = [classes[label] for label in labels.tolist()]
                sheet = crops_sheet(crops, teacher.mean, teacher.std, captions)
                board.add_image("val/crops of the teacher", sheet, self.global_step)
