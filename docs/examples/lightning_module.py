"""Distil a classifier into a detector of torchvision inside a LightningModule.

The lines that end in "# distil" are all that is added. Needs: pip install lightning. Run: python lightning_module.py
"""

from __future__ import annotations

import lightning
import torch
from pictures import CLASSES, CROP, MEAN, STD, make_pictures, show, train_classifier
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from cls2det.distill import BoxDistiller, PositiveTap, teacher_from  # distil


class Detection(lightning.LightningModule):
    def __init__(self, model, teacher):
        super().__init__()
        self.model, self.history = model, []
        self.tap = PositiveTap(model)  # distil
        self.distiller = BoxDistiller(teacher, **self.tap.normalisation)  # distil

    def on_fit_start(self):
        self.distiller.to(self.device)  # distil: Lightning does not know of it, and so leaves it out of checkpoints

    def training_step(self, batch, batch_idx):
        with self.tap:  # distil
            losses = self.model(*batch)
        losses |= self.distiller(self.tap.positives)  # distil
        self.log_dict(losses)
        self.history.append(show(batch_idx, losses))
        return sum(losses.values())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)


def main(steps: int = 16, **options: object) -> list[dict[str, float]]:
    torch.manual_seed(0)
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=len(CLASSES) + 1)
    pictures = make_pictures(2)
    batch = [picture for picture, _, _ in pictures], [{"boxes": boxes, "labels": labels} for _, boxes, labels in pictures]
    teacher = teacher_from(train_classifier(), CLASSES, CROP, mean=MEAN, std=STD)  # distil
    module = Detection(model, teacher)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(**{"accelerator": "cpu", "max_epochs": 1, **quiet, **options})
    trainer.fit(module, torch.utils.data.DataLoader([batch] * steps, batch_size=None))
    return module.history


if __name__ == "__main__":
    main()
