"""Training of a student: the detector's own losses plus the distillation terms, on Lightning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cls2det.distill import Distillers
from cls2det.evaluation.coco import as_results, coco_table
from cls2det.models.students import build_student
from cls2det.models.taps import PositiveTap
from cls2det.training.fit import SavedModule, to_float

Distil = Callable[[list[str], torch.nn.Module], Distillers]  # (classes, student)


class DetectorTraining(SavedModule):
    """L = cls_weight · L_cls + box_weight · L_box (the detector's own) + the distillers' terms, each of them logged.

    Args:
        classes: names of the classes, in order of label
        student: name of the detector, see ``cls2det.models.students``
        image_size: side that images are brought to; 0: the student's own
        cls_weight: weight of the detector's own classification losses
        box_weight: weight of the detector's own box losses
        optim: ``Optim`` as a dictionary
        backbone_weights: see ``students.build_student``; what was saved loads with "none"
        distil: makes what gives the distillation terms, or None. Adapters that it trains are in the training checkpoints and
            not in what ``save`` writes; its teachers are in neither
        ratio_every: steps between measurements of the terms' gradients; 0: none
        pictures: validation images drawn for TensorBoard
    """

    def __init__(
        self,
        classes: list[str],
        student: str = "ssd_compact",
        image_size: int = 0,
        cls_weight: float = 1.0,
        box_weight: float = 1.0,
        optim: dict | None = None,
        backbone_weights: str = "none",
        distil: Distil | None = None,
        ratio_every: int = 0,
        pictures: int = 0,
    ):
        super().__init__()
        if min(cls_weight, box_weight) < 0:
            raise ValueError(f"cls_weight and box_weight must be at least 0, got {cls_weight} and {box_weight}")
        self.save_hyperparameters(ignore=["backbone_weights", "distil", "ratio_every", "pictures"])
        self.detector = build_student(student, len(classes), image_size, backbone_weights)
        self.distillers = distil(classes, self.detector) if distil else None
        self.tap = PositiveTap(self.detector) if distil else None
        self.ratio_every, self.pictures = ratio_every, pictures

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections of uint8 images: boxes (n, 4) xyxy in pixels of each image, labels (n,), scores (n,)."""
        return self.detector(to_float(images))

    def on_fit_start(self) -> None:
        if self.distillers is not None:
            self.distillers.to_device(self.device)

    def saved_weights(self) -> dict[str, Tensor]:
        """The student alone."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("distillers.")}

    def training_step(self, batch: tuple[list, list], _index: int) -> Tensor:
        own, distilled = self.losses(*batch)
        loss = sum((own | distilled).values())
        count = len(batch[0])
        self.log("loss", loss.detach(), prog_bar=True, batch_size=count)
        self.log_dict({name: term.detach() for name, term in (own | distilled).items()}, batch_size=count)
        classifier = self.distillers and self.distillers.classifier
        if classifier and classifier.accuracy is not None:
            self.log("teacher_accuracy", 100 * classifier.accuracy, batch_size=count)
        if distilled and self.ratio_every and (self.global_step + 1) % self.ratio_every == 0:
            ratios = gradient_ratios(sum(own.values()), distilled, self.tap.outputs, self.tap.maps)
            self.log_dict({f"gradient_ratio/{name}": ratio for name, ratio in ratios.items()}, batch_size=count)
        return loss

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The detector's own terms and the distillation terms, weighted."""
        if self.distillers is None:
            return self._weighted(self.detector(to_float(images), targets)), {}
        with self.tap:
            own = self._weighted(self.detector(to_float(images), targets))
        return own, self.distillers(self.tap.seen, self.global_step)

    def _weighted(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        def weight(name: str) -> float:
            return self.hparams["box_weight" if "box" in name or "giou" in name else "cls_weight"]

        return {name: term * weight(name) for name, term in terms.items()}

    def on_validation_epoch_start(self) -> None:
        self.found: list[dict] = []  # in COCO's result format

    def validation_step(self, batch: tuple[list, list], index: int) -> None:
        images, targets = batch
        detections = self(images)
        ids = self.trainer.val_dataloaders.dataset.category_ids
        for target, detection in zip(targets, detections, strict=True):
            self.found += as_results(int(target["image_id"]), detection, ids)
        if index == 0 and self.pictures and self.trainer.is_global_zero:
            self._draw(images[: self.pictures], targets[: self.pictures], detections[: self.pictures])

    def on_validation_epoch_end(self) -> None:
        if self.trainer.world_size > 1:  # shares may differ in size, so objects and not tensors are gathered
            shares: list = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(shares, self.found)
            self.found = [detection for share in shares for detection in share]
        table = coco_table(self.trainer.val_dataloaders.dataset, self.found)
        self.log_dict({f"val/{name}": table[name] for name in ("mAP", "AP50", "AP75") if table[name] is not None})

    def _draw(self, images: list[Tensor], targets: list[dict], detections: list[dict]) -> None:
        """To TensorBoard: predicted and ground-truth boxes, and the crops that the teacher sees."""
        from cls2det.evaluation.drawing import contact_sheet, crops_sheet, draw_boxes

        board, classes = self.trainer.loggers[-1].experiment, self.hparams["classes"]
        sure = [{name: value[found["scores"] >= 0.3] for name, value in found.items()} for found in detections]
        rows = [
            [
                draw_boxes(image, target["boxes"], target["labels"], classes)
                for image, target in zip(images, targets, strict=True)
            ],
            [
                draw_boxes(image, found["boxes"], found["labels"], classes, scores=found["scores"])
                for image, found in zip(images, sure, strict=True)
            ],
        ]
        board.add_image("val/ground truth above predictions", contact_sheet(rows), self.global_step)
        classifier = self.distillers and self.distillers.classifier
        if classifier and classifier.teacher is not None:
            teacher = classifier.teacher
            crops, labels = teacher.crops_of_batch((images, targets))
            if len(crops):
                captions = [classes[label] for label in labels.tolist()]
                mean, std = teacher.transform.image_mean, teacher.transform.image_std
                board.add_image("val/crops of the teacher", crops_sheet(crops, mean, std, captions), self.global_step)


def gradient_ratios(detection: Tensor, terms: dict[str, Tensor], *places: Sequence[Tensor]) -> dict[str, Tensor]:
    """Norm of each term's gradient over that of the detection loss, at the first of ``places`` that the term reaches.

    Places are the head's outputs, then the backbone's maps, behind which a term on features has no gradient. Graphs are kept.
    The weights of terms are best set by what they do to the student: a ratio above 1 takes over, a small one may still teach.
    """

    def norm(loss: Tensor, place: Sequence[Tensor]) -> Tensor:
        if not loss.requires_grad:
            return torch.zeros((), device=loss.device)
        gradients = torch.autograd.grad(loss, place, retain_graph=True, allow_unused=True)
        parts = [gradient.float().norm() for gradient in gradients if gradient is not None]
        return torch.stack(parts).norm() if parts else torch.zeros((), device=loss.device)

    whole = [norm(detection, place) for place in places]
    ratios = {}
    for name, term in terms.items():
        reached = ((norm(term, place), other) for place, other in zip(places, whole, strict=True))
        ratios[name] = next((own / other for own, other in reached if own > 0), torch.zeros((), device=detection.device))
    return ratios
