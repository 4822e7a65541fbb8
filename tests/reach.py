"""The record of docs/trainers/trained.md: which detectors of which trainers were trained with which terms, and whose matches they had.

    python tests/reach.py            prints the table; needs transformers and scipy, and takes YOLOs where they are installed

Every detector of torchvision and every family of transformers is trained a few steps on generated pictures, with all three terms.
Of each row it is checked that

- the terms fall, and are finite in every step,
- kd_cls has a gradient at the logits of the positives, kd_loc and loc at their boxes,
- the detector's own loss agrees with the matches: it raises the logit of each positive's label, and moves its box towards its
  ground truth (a wrong match would agree in half of the coordinates),
- a classifier that never errs on these pictures names the label of every ground truth: boxes, labels, images and normalisation.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import box_convert

sys.path.append(str(Path(__file__).parent.parent / "docs" / "examples"))

import pictures as data

from cls2det.distill import BoxDistiller, ClassifierSettings, Positives, PositiveTap, teacher_from

TERMS = ("kd_cls", "kd_loc", "loc")
SETTINGS = ClassifierSettings(feature_pools=(4,))


@dataclasses.dataclass(frozen=True)
class Trained:
    """A row.

    Attributes:
        terms: of each step, by name
        head, background: of the positives
        logit_gradient: norm of kd_cls's gradient at the logits of the positives
        box_gradient: norm of the gradient of kd_loc and loc at their boxes
        labels_agree: share of positives whose label's logit the detector's own loss raises
        boxes_agree: share of positives that its own loss moves towards their ground truth
        accuracy: of the classifier on the ground truths
    """

    framework: str
    model: str
    terms: list[dict[str, float]]
    head: str
    background: str
    logit_gradient: float
    box_gradient: float
    labels_agree: float
    boxes_agree: float
    accuracy: float

    def falls(self, term: str) -> bool:
        values = [step[term] for step in self.terms]
        return all(0 <= value < 1e4 for value in values) and min(values[-3:]) < 0.9 * values[0]

    def row(self) -> str:
        terms = " | ".join(f"{self.terms[0][term]:.3g} → {min(step[term] for step in self.terms[-3:]):.3g}" for term in TERMS)
        return (
            f"| {self.framework} | {self.model} | {self.head}, {self.background} | {terms} | {self.logit_gradient:.2g} | "
            f"{self.box_gradient:.2g} | {100 * self.labels_agree:.0f} % | {100 * self.boxes_agree:.0f} % |"
        )


HEADER = """\
| framework | detector | head, background | KD-cls | KD-loc | loc | gradient at logits | at boxes | labels agree | boxes agree |
|---|---|---|---:|---:|---:|---:|---:|---:|---:|"""


class Padded(nn.Module):
    """The classifier of the pictures, with more classes, which it never names."""

    def __init__(self, classifier: nn.Module, classes: int):
        super().__init__()
        self.classifier, self.more = classifier, classes - len(data.CLASSES)

    def forward(self, crops: Tensor) -> Tensor:
        return nn.functional.pad(self.classifier(crops), (0, self.more), value=-10.0)


def make_distiller(classes: int, sigmoid: bool, **scale: object) -> BoxDistiller:
    names = [*data.CLASSES, *(f"class {number}" for number in range(classes))][:classes]
    network = Padded(data.train_classifier(sigmoid=sigmoid), classes)
    teacher = teacher_from(network, names, data.CROP, mean=data.MEAN, std=data.STD)
    settings = dataclasses.replace(SETTINGS, feature_layers=("classifier.maxpool",))
    return BoxDistiller(teacher, settings, **scale)  # type: ignore[arg-type]


def gradient(loss: Tensor, outputs: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss, outputs, retain_graph=True, allow_unused=True)
    return torch.zeros_like(outputs) if result is None else result


def agreement(own_loss: Tensor, outputs: tuple[Tensor, ...], positives: Positives) -> tuple[float, float]:
    """Shares of positives whose logits, and boxes, the detector's own loss pulls to their matches."""
    logits, regression = outputs[:2]
    columns = positives.target_labels[positives.matched_idxs] - int(positives.background != "first")
    is_label = gradient(positives.logits.gather(1, columns[:, None]).sum(), logits) > 0
    raised = gradient(own_loss, logits)[is_label] < 0
    distance = (positives.boxes - positives.target_boxes[positives.matched_idxs]).square().sum()
    towards = gradient(distance, regression).flatten(0, -2)
    pulled = (gradient(own_loss, regression).flatten(0, -2) * towards).sum(1)[towards.abs().sum(1) > 0] > 0
    return float(raised.float().mean()), float(pulled.float().mean())


def train(
    framework: str,
    name: str,
    model: nn.Module,
    loss_of: Callable[[], Tensor],
    tap: PositiveTap,
    distiller: BoxDistiller,
    steps: int,
) -> Trained:
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3 if framework == "transformers" else 1e-3)
    history: list[dict[str, float]] = []
    facts: dict[str, object] = {}
    for step in range(steps):
        torch.manual_seed(3)  # of sampled proposals
        with tap:
            own_loss = loss_of()
        positives = tap.positives
        terms = distiller(positives)
        if not step:
            assert distiller.accuracy is not None
            labels, boxes = agreement(own_loss, tap.outputs, positives)
            facts = {
                "head": positives.head,
                "background": positives.background,
                "logit_gradient": float(gradient(terms["kd_cls"], positives.logits).norm()),
                "box_gradient": float(gradient(terms["kd_loc"] + terms["loc"], positives.boxes).norm()),
                "labels_agree": labels,
                "boxes_agree": boxes,
                "accuracy": float(distiller.accuracy),
            }
        optimizer.zero_grad()
        (own_loss + 5 * sum(terms.values())).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        history.append({term: float(value.detach()) for term, value in terms.items()})
    return Trained(framework, name, history, **facts)  # type: ignore[arg-type]


def of_torchvision(builder: str, steps: int = 10) -> Trained:
    torch.manual_seed(0)
    size: dict[str, int] = {} if builder.startswith("ssd") else {"min_size": 96, "max_size": 96}
    if "rcnn" in builder:
        size["box_batch_size_per_image"] = 32
    classes = len(data.CLASSES)
    model = torchvision.models.get_model(builder, weights=None, weights_backbone=None, num_classes=classes + 1, **size).train()
    images, targets = [], []
    for picture, boxes, labels in data.make_pictures(2):
        more = {"masks": torch.ones(2, 96, 96, dtype=torch.uint8), "keypoints": torch.ones(2, 17, 3) * 30}
        images.append(picture)
        targets.append({"boxes": boxes, "labels": labels, **more})
    tap = PositiveTap(model)
    is_sigmoid = builder.startswith(("retinanet", "fcos"))
    distiller = make_distiller(classes, is_sigmoid, **tap.normalisation)
    return train("torchvision", builder, model, lambda: sum(model(images, targets).values()), tap, distiller, steps)


def of_transformers(family: str, steps: int = 30) -> Trained:
    from small_transformers import CLASSES, DETECTORS

    torch.manual_seed(0)
    build, head, _ = DETECTORS[family]
    model, size = build().train(), 64
    items = data.make_pictures(4, size)
    labels = [{"class_labels": labels - 1, "boxes": box_convert(boxes, "xyxy", "cxcywh") / size} for _, boxes, labels in items]
    images = torch.stack([picture for picture, _, _ in items])
    distiller = make_distiller(CLASSES, head == "sigmoid", image_mean=(0, 0, 0), image_std=(1, 1, 1))
    return train(
        "transformers",
        family,
        model,
        lambda: model(pixel_values=images, labels=labels).loss,
        PositiveTap(model),
        distiller,
        steps,
    )


def builders() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models.detection)


def families() -> list[str]:
    from small_transformers import DETECTORS

    return list(DETECTORS)


def everything() -> Iterator[Trained]:
    yield from (of_torchvision(builder) for builder in builders())
    yield from (of_transformers(family) for family in families())


if __name__ == "__main__":
    print(HEADER)
    for trained in everything():
        print(
            trained.row(),
            "" if all(map(trained.falls, TERMS)) and trained.accuracy == 1 else f"  ! {trained.accuracy}",
            flush=True,
        )
