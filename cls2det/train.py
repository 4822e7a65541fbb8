"""Training of a student: the detector's own losses plus the distillation terms, on Lightning."""

from __future__ import annotations

from torch import Tensor

from cls2det.base import SavedModule, to_float
from cls2det.distill import ClassifierDistiller
from cls2det.students import build_student
from cls2det.taps import PositiveTap


class DetectorTraining(SavedModule):
    """L = L_cls + box_weight · L_box (torchvision's own) + the distiller's terms, each of them logged.

    Args:
        classes: names of the classes, in order of label
        student: name of the detector, see ``students.STUDENTS``
        image_size: side that images are brought to
        box_weight: weight of the detector's own box losses
        learning_rate: peak of the one-cycle schedule
        weight_decay: of AdamW
        total_steps: length of the schedule
        distiller: gives the distillation terms, or None; it is in no checkpoint
    """

    def __init__(
        self,
        classes: list[str],
        student: str = "ssd_compact",
        image_size: int = 96,
        box_weight: float = 2.0,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.05,
        total_steps: int = 2000,
        distiller: ClassifierDistiller | None = None,
    ):
        super().__init__()
        self.save_hyperparameters(ignore=["distiller"])
        self.detector = build_student(student, len(classes), image_size)
        self.distiller = distiller
        if distiller is not None:
            distiller.check(classes, self.detector.transform)
            self.tap = PositiveTap(self.detector)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections of uint8 images: boxes (n, 4) xyxy in pixels of each image, labels (n,), scores (n,)."""
        return self.detector(to_float(images))

    def on_fit_start(self) -> None:
        if self.distiller is not None:
            self.distiller.to(self.device)

    def training_step(self, batch: tuple[list, list], _index: int) -> Tensor:
        terms = self.losses(*batch)
        loss = sum(terms.values())
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(batch[0]))
        self.log_dict({name: term.detach() for name, term in terms.items()}, batch_size=len(batch[0]))
        return loss

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Every term of the loss, weighted."""
        if self.distiller is None:
            return self._weighted(self.detector(to_float(images), targets))
        with self.tap:
            terms = self._weighted(self.detector(to_float(images), targets))
        return terms | self.distiller(self.tap.positives)

    def _weighted(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: term * (self.hparams["box_weight"] if "box" in name else 1.0) for name, term in terms.items()}
