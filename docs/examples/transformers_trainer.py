"""Distil a classifier into RT-DETRv2 (or DETR, D-FINE, RF-DETR …) in Hugging Face's Trainer.

The lines that end in "# distil" are all that is added. Needs: pip install transformers accelerate scipy
Run: python transformers_trainer.py
"""

from __future__ import annotations

import tempfile

import torch
from pictures import CLASSES, CROP, MEAN, STD, make_pictures, show, train_classifier
from torchvision.ops import box_convert
from transformers import RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection, Trainer, TrainingArguments

from cls2det.distill import BoxDistiller, PositiveTap, teacher_from  # distil

SIZE = 96


class DistillingTrainer(Trainer):  # distil
    def compute_loss(self, model, inputs, return_outputs=False, **options):  # distil
        with self.tap:  # distil
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)  # distil
        if model.training:  # distil
            terms = self.distiller(self.tap.positives)  # distil
            self.history.append(show(len(self.history), {"loss": loss, **terms}))
            loss = loss + sum(terms.values())  # distil
        return (loss, outputs) if return_outputs else loss  # distil


def small_model() -> RTDetrV2ForObjectDetection:
    widths = [8, 8, 16, 16]
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=widths, depths=[1] * 4, layer_type="basic", out_features=["stage2", "stage3", "stage4"]
    )
    small = {"encoder_hidden_dim": 32, "encoder_ffn_dim": 32, "encoder_attention_heads": 2, "encoder_in_channels": [8, 16, 16]}
    small |= {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 32, "decoder_attention_heads": 2, "num_queries": 12}
    small |= {"decoder_in_channels": [32] * 3, "num_denoising": 10, "num_labels": len(CLASSES)}
    return RTDetrV2ForObjectDetection(RTDetrV2Config(backbone_config=backbone, **small))


def make_data() -> list[dict[str, torch.Tensor]]:
    """As RT-DETR's image processor gives them: pictures of 0 to 1, boxes as centre and sides in shares, labels from 0."""
    return [
        {"pixel_values": picture, "class_labels": labels - 1, "boxes": box_convert(boxes, "xyxy", "cxcywh") / SIZE}
        for picture, boxes, labels in make_pictures(4, SIZE)
    ]


def collate(batch: list[dict[str, torch.Tensor]]) -> dict[str, object]:
    labels = [{name: item[name] for name in ("class_labels", "boxes")} for item in batch]
    return {"pixel_values": torch.stack([item["pixel_values"] for item in batch]), "labels": labels}


def main(steps: int = 56, **changes: object) -> Trainer:
    torch.manual_seed(0)
    settings = {"per_device_train_batch_size": 4, "max_steps": steps, "learning_rate": 4e-3, "lr_scheduler_type": "constant"}
    settings |= {"use_cpu": True, "save_strategy": "no", "report_to": [], "disable_tqdm": True, "remove_unused_columns": False}
    model, network = small_model(), train_classifier(sigmoid=True)  # as RT-DETR's head

    teacher = teacher_from(network, CLASSES, CROP, mean=MEAN, std=STD)  # distil
    distiller = BoxDistiller(teacher, image_mean=(0, 0, 0), image_std=(1, 1, 1))  # distil: as the image processor has it
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, **settings | changes)
        trainer = DistillingTrainer(model, arguments, data_collator=collate, train_dataset=make_data())  # distil
        trainer.tap, trainer.distiller, trainer.history = PositiveTap(model), distiller.to(arguments.device), []  # distil
        trainer.train()
    return trainer


if __name__ == "__main__":
    main()
