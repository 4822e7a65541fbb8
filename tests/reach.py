"""The record of docs/trainers/trained.md: which detectors of which trainers were trained with the terms, and on whose matches.

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
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import box_convert

sys.path.append(str(Path(__file__).parent.parent / "docs" / "examples"))

import pictures as data

from cls2det.distill import BoxDistiller, ClassifierSettings, Positives, PositiveTap, teacher_from
from cls2det.models.students import build_student

TERMS = ("kd_cls", "kd_loc", "loc")
SETTINGS = ClassifierSettings(kd_loc_weight=2.0, loc_weight=2.0, feature_pools=(4,))


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


def agreement(
    own_loss: Tensor, logits: Sequence[Tensor], regression: Sequence[Tensor], positives: Positives, channel: int = -1
) -> tuple[float, float]:
    """Shares of positives whose logits, and boxes, the detector's own loss pulls to their matches.

    ``logits`` and ``regression`` are outputs of the head, one or several, with their classes, or their code, in ``channel``.
    """

    def rows(loss: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        return torch.cat([gradient(loss, output).movedim(channel, -1).flatten(0, -2) for output in outputs])

    columns = positives.target_labels[positives.matched_idxs].long() - int(positives.background != "first")
    is_label = rows(positives.logits.gather(1, columns[:, None]).sum(), logits) > 0
    raised = rows(own_loss, logits)[is_label] < 0
    towards = rows((positives.boxes - positives.target_boxes[positives.matched_idxs]).square().sum(), regression)
    pulled = (rows(own_loss, regression) * towards).sum(1)[towards.abs().sum(1) > 0] > 0
    return float(raised.float().mean()), float(pulled.float().mean())


def facts_of(
    positives: Positives, terms: dict[str, Tensor], accuracy: Tensor | None, agreed: tuple[float, float]
) -> dict[str, Any]:
    assert accuracy is not None
    return {
        "head": positives.head,
        "background": positives.background,
        "logit_gradient": float(gradient(terms["kd_cls"], positives.logits).norm()),
        "box_gradient": float(gradient(terms["kd_loc"] + terms["loc"], positives.boxes).norm()),
        "labels_agree": agreed[0],
        "boxes_agree": agreed[1],
        "accuracy": float(accuracy),
    }


def train(
    framework: str,
    name: str,
    model: nn.Module,
    loss_of: Callable[[], Tensor],
    tap: PositiveTap,
    distiller: BoxDistiller,
    steps: int,
    rate: float,
) -> Trained:
    # An R-CNN's proposals stay as they are, and with them its positives: with others, terms rise and fall.
    trained = model.roi_heads if hasattr(model, "roi_heads") else model
    optimizer = torch.optim.AdamW(trained.parameters(), rate)
    history: list[dict[str, float]] = []
    facts: dict[str, Any] = {}
    for step in range(steps):
        torch.manual_seed(3)  # of sampled proposals
        with tap:
            own_loss = loss_of()
        terms = distiller(tap.positives)
        if not step:
            logits, regression = tap.outputs
            facts = facts_of(
                tap.positives, terms, distiller.accuracy, agreement(own_loss, [logits], [regression], tap.positives)
            )
        optimizer.zero_grad()
        (0.05 * own_loss + 10 * sum(terms.values())).backward()  # so that the own loss's new matches matter less
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        history.append({term: float(value.detach()) for term, value in terms.items()})
    return Trained(framework, name, history, **facts)


def of_torchvision(builder: str, steps: int = 12) -> Trained:
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
    rate = 1e-4 if "rcnn" in builder or "resnet50" in builder else 5e-4  # few have batch norms that work yet
    tap = PositiveTap(model)
    is_sigmoid = builder.startswith(("retinanet", "fcos"))
    distiller = make_distiller(classes, is_sigmoid, **tap.normalisation)
    return train("torchvision", builder, model, lambda: sum(model(images, targets).values()), tap, distiller, steps, rate)


def of_transformers(family: str, steps: int = 80) -> Trained:
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
        5e-4 if family == "D-FINE" else 4e-3,
    )


class Recorder:
    """In the place of an example's distiller: keeps the facts of its first call."""

    def __init__(self, distiller: BoxDistiller, agreed: Callable[[Positives], tuple[float, float]]):
        self.distiller, self.agreed, self.facts = distiller, agreed, {}

    def to(self, device: torch.device) -> Recorder:
        self.distiller.to(device)
        return self

    def __call__(self, positives: Positives) -> dict[str, Tensor]:
        terms = self.distiller(positives)
        self.facts = self.facts or facts_of(positives, terms, self.distiller.accuracy, self.agreed(positives))
        return terms


def of_yolo(
    module: Any, name: str, method: str, agreed: Callable[..., tuple[float, float]], *arguments: str
) -> tuple[Any, Any]:
    """Run an example whose loss is a subclass of a library's: what the library's own ``method`` took and gave is compared."""
    library, kept, made = module.DistillingLoss.__mro__[1], [], []
    plain, make = getattr(library, method), module.BoxDistiller

    def keep(*inputs: Any, **options: Any) -> Any:
        kept[:] = [inputs, plain(*inputs, **options)]
        return kept[1]

    def record(*inputs: Any, **options: Any) -> Recorder:
        made.append(Recorder(make(*inputs, **options), lambda positives: agreed(*kept, positives)))
        return made[0]

    setattr(library, method, keep)
    module.BoxDistiller = record
    try:
        history = module.main(*arguments)
    finally:
        setattr(library, method, plain)
        module.BoxDistiller = make
    return [{term: step[term] for term in TERMS} for step in history], made[0].facts


def of_ultralytics(name: str) -> Trained:
    import ultralytics_yolo

    def agreed(inputs: Any, result: Any, positives: Positives) -> tuple[float, float]:
        predictions = inputs[1]
        return agreement(result[1].sum(), [predictions["scores"]], [predictions["boxes"]], positives, channel=1)

    history, facts = of_yolo(ultralytics_yolo, name, "get_assigned_targets_and_loss", agreed, name)
    return Trained("Ultralytics", name, history, **facts)


def of_libreyolo() -> Trained:
    import libreyolo_yolo9

    def agreed(inputs: Any, result: Any, positives: Positives) -> tuple[float, float]:
        return agreement(result["total_loss"], inputs[1], inputs[1], positives, channel=1)

    history, facts = of_yolo(libreyolo_yolo9, "YOLO9 t", "__call__", agreed)
    return Trained("LibreYOLO", "YOLO9 t", history, **facts)


def builders() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models.detection)


def families() -> list[str]:
    from small_transformers import DETECTORS

    return list(DETECTORS)


def where_rows() -> list[str]:
    """Of docs/trainers.md, "Where the positives are": the rows of what taps know, as the taps say."""
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    from small_transformers import DETECTORS

    of_torchvision = {
        "SSD300": ("ssd_compact", "ssd300_vgg16"),
        "SSDLite": ("ssd_compact", "ssdlite320_mobilenet_v3_large"),
        "RetinaNet": ("retinanet_compact", "retinanet_resnet50_fpn"),
        "FCOS": ("fcos_compact", "fcos_resnet50_fpn"),
        "Faster, Mask and Keypoint R-CNN": ("fasterrcnn_compact", "fasterrcnn_mobilenet_v3_large_320_fpn"),
    }
    # Their checkpoints come with the image processor of another model.
    borrowed = {"DAB-DETR": "ConditionalDetr", "RT-DETRv2": "RTDetr", "D-FINE": "RTDetr"}
    result = []
    for name, (student, builder) in of_torchvision.items():
        tap = PositiveTap(build_student(student, 3, 96).train())
        with tap:
            tap.model([torch.rand(3, 96, 96)], [{"boxes": torch.tensor([[10.0, 12, 60, 70]]), "labels": torch.tensor([1])}])
        with torch.device("meta"):  # no weight is drawn
            published = torchvision.models.get_model(builder, weights=None, weights_backbone=None)
        scale = PositiveTap(published).normalisation
        result.append(where_row("torchvision", name, tap.positives.head, tap.positives.background, **scale))
    for name, (build, head, background) in DETECTORS.items():  # test_taps_transformers.py holds the taps to these two
        kinds = IMAGE_PROCESSOR_MAPPING_NAMES.get(build().config.model_type)
        processor = getattr(transformers, f"{borrowed[name]}ImageProcessor" if name in borrowed else kinds["torchvision"])()
        scale = {"image_mean": processor.image_mean, "image_std": processor.image_std} if processor.do_normalize else {}
        result.append(where_row("transformers", name, head, background, **scale))
    return result


def where_row(
    framework: str,
    name: str,
    head: str,
    background: str,
    image_mean: Sequence[float] = (0,),
    image_std: Sequence[float] = (1,),
) -> str:
    ends = (
        f"{pick((end - mean) / std for mean, std in zip(image_mean, image_std, strict=True)):.3g}"
        for end, pick in ((0, min), (1, max))
    )
    return f"| {framework} | {name} | {head} | {background} | {' … '.join(ends)} |"


def everything() -> Iterator[Trained]:
    yield from (of_torchvision(builder) for builder in builders())
    yield from (of_transformers(family) for family in families())
    if importlib.util.find_spec("ultralytics"):
        yield from (of_ultralytics(name) for name in ("yolov8n", "yolo11n", "yolo12n", "yolo26n"))
    if importlib.util.find_spec("libreyolo"):
        yield of_libreyolo()


if __name__ == "__main__":
    rows = []
    for trained in everything():
        print(trained, file=sys.stderr)
        rows.append(trained.row())
    print(HEADER, *rows, sep="\n")
