"""Distil a classifier into a YOLO (v8, 11, 12 or 26) in Ultralytics' own trainer.

Ultralytics is licensed under the AGPL-3.0: a program that imports it, as this file does, falls under that licence, or under one
that you buy from Ultralytics. cls2det does not import it and does not need it.

The lines that end in "# distil" are all that is added. Needs: pip install ultralytics. Run: python ultralytics_yolo.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from pictures import CLASSES, CROP, MEAN, STD, show, train_classifier, write_yolo
from ultralytics import YOLO
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss

from cls2det.distill import BoxDistiller, Positives, teacher_from  # distil


class DistillingLoss(v8DetectionLoss):  # distil
    def get_assigned_targets_and_loss(self, preds, batch, **options):  # distil
        assigned, loss, items = super().get_assigned_targets_and_loss(preds, batch, **options)  # distil
        positive, target, matched_boxes, centres, strides = assigned  # distil
        boxes = self.bbox_decode(centres, preds["boxes"].float().mT) * strides  # distil: float32, also under AMP
        image = torch.where(positive)[0]  # distil
        labels = batch["cls"].view(-1)[torch.searchsorted(batch["batch_idx"], image.float()) + target[positive]] + 1  # distil
        rows = preds["scores"].mT[positive], boxes[positive], image, matched_boxes[positive], labels  # distil
        terms = self.distiller(Positives.from_matched(batch["img"], *rows, head="sigmoid", background="none"))  # distil
        return assigned, loss + sum(terms.values()) / len(loss), items | terms  # distil: the trainer sums and detaches


def main(name: str = "yolo11n", epochs: int = 20, **changes: object) -> list[dict[str, float]]:
    model, history = YOLO(f"{name}.yaml"), []
    network = train_classifier(sigmoid=True)  # as YOLO's head

    teacher = teacher_from(network, CLASSES, CROP, mean=MEAN, std=STD)  # distil
    distiller = BoxDistiller(teacher, image_mean=(0, 0, 0), image_std=(1, 1, 1))  # distil: pictures of 0 to 1

    def on_train_start(trainer):  # distil: in each process
        yolo = getattr(trainer.model, "module", trainer.model)  # distil
        DistillingLoss.distiller = distiller.to(trainer.device)  # distil
        yolo.criterion = E2ELoss(yolo, DistillingLoss) if name.startswith("yolo26") else DistillingLoss(yolo)  # distil

    model.add_callback("on_train_start", on_train_start)  # distil
    model.add_callback("on_train_batch_end", lambda trainer: history.append(show(len(history), trainer.loss_items)))
    settings = {"imgsz": 96, "batch": 4, "nbs": 4, "workers": 0, "device": "cpu", "optimizer": "AdamW", "lr0": 2e-3}
    settings |= {"warmup_epochs": 0, "amp": False, "plots": False, "val": False, "verbose": False, "exist_ok": True}
    settings |= {"mosaic": 0, "hsv_h": 0, "hsv_s": 0, "hsv_v": 0, "translate": 0, "scale": 0, "fliplr": 0}  # for an even curve
    with tempfile.TemporaryDirectory() as folder:
        data = write_yolo(Path(folder) / "data")
        model.train(data=str(data), epochs=epochs, **{"project": folder} | settings | changes)
    return history


if __name__ == "__main__":
    main(*sys.argv[1:])
