"""Training of the teacher: a crop classifier on the ground-truth crops of detection batches."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, cast

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from cls2det.models.last_layer import output_layers
from cls2det.teachers.accuracy import NO_TEACHER
from cls2det.teachers.background import background_boxes
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.teachers.crops import sides
from cls2det.training.optimizer import configure_optimizer
from cls2det.training.settings import Optim

BARREN = 50  # batches without enough crops, and none with, after which a training is given up


class ClassifierTraining(lightning.LightningModule):
    """Trains ``classifier`` on crops around the ground truths, moved a little, with the loss that it was made for.

    One with a background also sees, of each image, about as many crops that miss the objects.

    Args:
        classifier: it is trained in place; its own ``save`` writes weights.pt
        optim: how its weights are optimised
        min_size: boxes with a shorter side, in input pixels, are left out
        jitter: boxes are moved by up to this share of their size
        label_smoothing: of the softmax cross-entropy
        freeze_body: train what gives the outputs alone, a linear probe; the body stays in eval mode, its batch norms too
    """

    def __init__(
        self,
        classifier: CropClassifier,
        *,
        optim: Optim = Optim(),  # noqa: B008 (frozen)
        min_size: float = 0.0,
        jitter: float = 0.05,
        label_smoothing: float = 0.05,
        freeze_body: bool = False,
    ):
        super().__init__()
        if not 0 <= label_smoothing < 1 or min(min_size, jitter) < 0:
            raise ValueError(
                "a teacher's training needs label_smoothing in [0, 1), and min_size and jitter from 0; "
                f"got {label_smoothing}, {min_size} and {jitter}"
            )
        self.save_hyperparameters(
            {
                "classes": classifier.classes,
                "architecture": classifier.architecture,
                "width": classifier.width,
                "student": classifier.student,
                "image_size": classifier.image_size,
                "crop_size": classifier.crop_size,
                "loss": classifier.loss,
                "margin": classifier.margin,
                "background": classifier.background,
                "min_size": min_size,
                "jitter": jitter,
                "label_smoothing": label_smoothing,
                "optim": dataclasses.asdict(optim),
            }
        )
        self.classifier, self.optim = classifier, optim
        self.min_size, self.jitter, self.label_smoothing = min_size, jitter, label_smoothing
        self.frozen: list[nn.Module] = []  # in a list, so that it is no second part of this module
        if freeze_body:
            classifier.network.requires_grad_(False)
            self.frozen = [classifier.network]
            for layer in output_layers(classifier.network):
                layer.requires_grad_(True)
            self.train()  # Lightning leaves the modes of a module's parts as they are
        self.barren = self.fruitful = self.missed = 0  # batches of this process; ``missed`` had crops of the background

    def train(self, mode: bool = True) -> ClassifierTraining:
        super().train(mode)
        for body in self.frozen:
            body.eval()
            for layer in output_layers(body):
                layer.train(mode)
        return self

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return configure_optimizer(self.optim, self)

    def training_step(self, batch: tuple[list, list], _index: int) -> Tensor:
        crops, classes = self.training_crops(batch)
        if len(classes) < 2:  # batch norm needs two; a constant keeps every process of a distributed run in step
            if not self.barren:
                least = f"{self.min_size:g} pixels (min_size)"
                warnings.warn(f"nothing is learnt from a batch with {len(classes)} crops of at least {least}", stacklevel=2)
            self.barren += 1
            return cast(Tensor, sum(parameter.sum() for parameter in self.parameters())) * 0.0
        self.fruitful += 1
        self.missed += int((classes == len(self.classifier.classes)).any())
        loss = self.loss(self.classifier(crops), classes)
        self.log("loss", loss, prog_bar=True, batch_size=len(classes))
        return loss

    def on_train_epoch_end(self) -> None:
        """ValueError, before a checkpoint is written, where no batch had enough crops, or none had one of the background."""
        is_last = self.trainer.current_epoch + 1 == self.trainer.max_epochs
        learnt = self.trainer.strategy.reduce_boolean_decision(self.fruitful > 0, all=False)
        if not learnt and (is_last or self.barren >= BARREN):
            raise ValueError(
                f"the teacher learns nothing: none of {self.barren} batches held two crops of at least {self.min_size:g} pixels. "
                "Lower --min-size, or raise --optim.batch-size"
            )
        has_missed = self.trainer.strategy.reduce_boolean_decision(self.missed > 0, all=False)
        if self.classifier.background and not has_missed and (is_last or self.fruitful >= BARREN):
            raise ValueError(
                f"the teacher does not learn the background: the objects leave no room for it in any of {self.fruitful} batches. "
                f"{NO_TEACHER}, or add images with free space"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches"] = [self.barren, self.fruitful, self.missed]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.barren, self.fruitful, self.missed = checkpoint.get(
            "batches", [0, 1, 1]
        )  # an older run is believed to have learnt

    def training_crops(self, batch: tuple[list, list]) -> tuple[Tensor, Tensor]:
        """Crops (N, 3, S, S) and classes (N,) from 0, C for the background: of boxes that are not too small, moved a little."""
        images, boxes, classes, image_index, sizes = self.classifier.ground_truths(batch)
        large = sides(boxes).amin(1) >= self.min_size
        moved = boxes[large]
        moved = moved + sides(moved) * self.jitter * (2 * torch.rand_like(moved) - 1)
        crops_index, classes = image_index[large], classes[large]
        if self.classifier.background:
            spaces, space_index = background_boxes(boxes, image_index, sizes)
            large = sides(spaces).amin(1) >= self.min_size
            moved, crops_index = torch.cat([moved, spaces[large]]), torch.cat([crops_index, space_index[large]])
            classes = torch.cat([classes, classes.new_full((len(moved) - len(classes),), len(self.classifier.classes))])
        return self.classifier.own_crops(images, moved, crops_index), classes

    def loss(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Softmax cross-entropy, binary cross-entropy summed over the classes, or their sum; mean over crops.

        The background, class C, is a column of the softmax, and to the sigmoids the absence of every class.
        """
        terms, count = [], len(self.classifier.classes)
        if self.classifier.loss in ("ce", "joint"):
            terms.append(F.cross_entropy(logits, classes, label_smoothing=self.label_smoothing))
        if self.classifier.loss in ("bce", "joint"):
            truth = F.one_hot(classes, count + 1)[:, :count].to(logits.dtype)
            terms.append(F.binary_cross_entropy_with_logits(logits[:, :count], truth, reduction="sum") / len(logits))
        return cast(Tensor, sum(terms))
