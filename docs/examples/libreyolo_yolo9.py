"""Distil a classifier into a YOLOv9 in LibreYOLO's own trainer.

LibreYOLO's code and its YOLOv9 weights are under the MIT licence. Other families there have weights of other licences.

The lines that end in "# distil" are all that is added. Needs: pip install libreyolo. Run: python libreyolo_yolo9.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from libreyolo import LibreYOLO9
from libreyolo.models.yolo9.loss import YOLO9Loss
from libreyolo.models.yolo9.trainer import YOLO9Trainer
from pictures import CLASSES, CROP, MEAN, STD, show, train_classifier, write_yolo

from cls2det.distill import BoxDistiller, Positives, teacher_from  # distil


class DistillingLoss(YOLO9Loss):  # distil
    def __call__(self, predictions, targets):  # distil
        losses = super().__call__(predictions, targets)  # distil
        (logits, _, boxes), (width, height) = self.vec2box(predictions), self.vec2box.image_size  # distil
        targets = targets * targets.new_tensor([1, width, height, width, height])  # distil
        assigned, positive = self.matcher(targets, (logits.detach(), boxes.detach()))  # distil
        scores, matched_boxes = assigned[positive].split((self.num_classes, 4), 1)  # distil
        rows = logits[positive], boxes[positive], torch.where(positive)[0], matched_boxes, scores.argmax(1) + 1  # distil
        terms = self.distiller(Positives.from_matched(self.images, *rows, head="sigmoid", background="none"))  # distil
        return losses | terms | {"total_loss": losses["total_loss"] + sum(terms.values())}  # distil


class DistillingTrainer(YOLO9Trainer):  # distil
    def on_forward(self, imgs, targets, polygons=None):  # distil
        head = getattr(self.model, "module", self.model).head  # distil
        if not isinstance(head._loss_fn, DistillingLoss):  # distil
            head._loss_fn = DistillingLoss(head.nc, head.reg_max, head.stride.tolist(), None, imgs.device)  # distil
        head._loss_fn.images = imgs  # distil
        return super().on_forward(imgs, targets, polygons)  # distil

    def get_loss_components(self, outputs):
        names = [name for name in ("kd_cls", "kd_loc", "loc") if name in outputs]
        return super().get_loss_components(outputs) | {name: float(outputs[name].detach()) for name in names}


class Student(LibreYOLO9):  # distil
    def _trainer_class(self):  # distil
        return DistillingTrainer  # distil


def main(epochs: int = 24, **changes: object) -> list[dict[str, float]]:
    model, history = Student(None, size="t", nb_classes=len(CLASSES), device="cpu"), []
    network = train_classifier(sigmoid=True)  # as YOLO's head

    teacher = teacher_from(network, CLASSES, CROP, mean=MEAN, std=STD)  # distil
    DistillingLoss.distiller = BoxDistiller(teacher, image_mean=(0, 0, 0), image_std=(1, 1, 1))  # distil: pictures of 0 to 1

    def on_epoch_end(event):
        history.append(show(event.epoch, {name: torch.tensor(value) for name, value in event.train_loss_items.items()}))

    settings = {"imgsz": 96, "batch": 4, "workers": 0, "device": "cpu", "optimizer": "adamw", "lr0": 3e-3, "amp": False}
    settings |= {"warmup_epochs": 0, "mosaic_prob": 0.0, "hsv_prob": 0.0, "exist_ok": True}
    with tempfile.TemporaryDirectory() as folder:
        data = write_yolo(Path(folder) / "data")
        model.train(str(data), epochs=epochs, callbacks=on_epoch_end, **{"project": folder} | settings | changes)
    return history


if __name__ == "__main__":
    main()
