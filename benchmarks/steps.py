"""Training steps: a detector's plain one, and the same with distillation in several implementations.

A step is forward and backward of the training loss; there is no optimizer, which would take the same time in all. Weights are
random, no layer is frozen, and one detector serves all contenders. Positives are those of the detector's own matcher, on random
images with seeded ground truths of log-uniform sizes; two changes stand in for a training: SSD's box codes
are made small, and Faster R-CNN gets proposals near the ground truths, which an untrained RPN does not find.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.ssd import SSD

from cls2det.distill.classifier import ClassifierDistiller
from cls2det.models.students import build_student
from cls2det.models.taps import PositiveTap
from cls2det.settings import ClassifierSettings
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det_ops import use_backend
from harness import TOLERANCE, check_close, exact_convolutions, generator, scene
from parts import CROPS, LOSSES, ON_PREDICTIONS, ON_TARGETS, STUDENT, Watch
from released import Released
from shapes import TERMS

CLASSES = [str(number) for number in range(80)]
# The paper's, at its temperature and its sizes; its weights are for pixels with std 1. All positives count in every contender.
SETTINGS: dict[str, Any] = {
    "kd_cls_weight": 0.4, "temperature": 2.0, "kd_loc_weight": 0.15, "loc_weight": 0.15, "input_std": 1.0, "pixel_pool": 4,
    "feature_layers": ("maxpool",), "feature_pools": (8,), "max_positives": None,
}  # fmt: skip
SMALL_CODES = 0.1  # SSD's box codes: by random weights their spread is 4, a trained detector's are below 1 at most positives
# The teacher's logits: by random weights their spread is 100 to 200, and where two of them lie close together, bfloat16's 1 % of
# that decides which class has all the probability: gradients differ by anything up to 7 %. At a spread of 2 to 4, by 1 % at most.
SMALL_LOGITS = 0.02
PROPOSALS = 8  # added to an untrained RPN's for each ground truth, within 15 % of a side around it


PLAIN, EAGER, MAP_MODE = "plain", "eager", "ours, map mode"


@dataclasses.dataclass(frozen=True)
class Implementation:
    """How the distillation terms are computed.

    Attributes:
        backend: of cls2det_ops
        settings: beside ``SETTINGS``
        build: (teacher, settings, classes, the student's transform) to what gives the terms of positives
        tolerance: by how much its results may differ from the others'; None: it computes something else
    """

    backend: str = "native"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    build: Callable = ClassifierDistiller
    tolerance: float | None = TOLERANCE


IMPLEMENTATIONS = {
    "as released": Implementation("reference", build=Released),
    EAGER: Implementation("reference"),
    "ours": Implementation(),
    "ours, bf16 teacher": Implementation(settings={"teacher_precision": "bf16"}, tolerance=0.02),
    MAP_MODE: Implementation(settings={"feature_mode": "map"}, tolerance=None),
}


class Step:
    """One contender: the detector's step with ``terms`` by one implementation, or without."""

    def __init__(self, workload: StepWorkload, implementation: str = PLAIN, terms: str = "") -> None:
        self.workload, self.implementation, self.terms = workload, implementation, terms
        self.distiller: Any = None
        self.backend = "reference"
        if implementation != PLAIN:
            recipe = IMPLEMENTATIONS[implementation]
            self.backend = recipe.backend
            settings = ClassifierSettings(**SETTINGS | recipe.settings | TERMS[terms])
            self.distiller = recipe.build(workload.teacher, settings, CLASSES, workload.detector.transform)
            self.distiller.to(torch.device(workload.device))
            watch(workload.watch, self.distiller)

    def forward(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The terms of the detector, and those of distillation."""
        work = self.workload
        torch.manual_seed(0)  # every contender draws the same samples
        if self.distiller is None:
            return work.detector(*work.batch), {}
        with work.tap:
            detector_terms = work.detector(*work.batch)
        positives = work.tap.positives
        logits, boxes = (work.watch.at_gradient(output, STUDENT) for output in (positives.logits, positives.boxes))
        work.watch.enter(LOSSES)
        terms = self.distiller(dataclasses.replace(positives, logits=logits, boxes=boxes))
        work.watch.leave()
        return detector_terms, terms

    def run(self) -> None:
        self.workload.clear()
        with use_backend(self.backend):
            detector_terms, terms = self.forward()
            loss = cast(Tensor, sum((detector_terms | terms).values()))
            if terms:
                self.workload.watch.switch(LOSSES)  # until the gradient reaches what the student gave
            loss.backward()

    def timed(self) -> tuple[dict[str, float], dict[str, float]]:
        """Milliseconds of each part, by the clock and of the processor.

        On a GPU a step begins when the GPU is idle and ends with its last kernel: what the host takes counts where the GPU waits
        for it, as it does in a training whose limit is the host.
        """
        self.workload.clear()
        self.workload.watch.start()
        self.run()
        return self.workload.watch.stop()


class StepWorkload:
    """Detector, teacher and batch of one benchmark.

    Args:
        student: name in ``cls2det.models.students``
        images: in a batch
        size: of the images, (height, width), which is the network's input size
        device: "cpu" or "cuda"
        shorter: the student's image size; None is its own
        crop: side of the teacher's crops
    """

    def __init__(
        self, student: str, images: int, size: tuple[int, int], device: str, shorter: int | None = None, crop: int = 112
    ) -> None:
        torch.manual_seed(0)
        self.device, self.watch = device, Watch(device)
        self.detector = build_student(student, len(CLASSES), shorter).train().to(device)
        if isinstance(self.detector, SSD):
            with torch.no_grad():
                for parameter in self.detector.head.regression_head.parameters():
                    parameter.mul_(SMALL_CODES)
        if isinstance(self.detector, FasterRCNN):
            self.detector.roi_heads.register_forward_pre_hook(add_proposals)
        self.teacher = CropClassifier(CLASSES, architecture="resnet50", width=64, crop_size=crop).to(device)
        with torch.no_grad():
            for parameter in cast(nn.Linear, self.teacher.network.fc).parameters():
                parameter.mul_(SMALL_LOGITS)
        self.teacher.transform = self.detector.transform
        self.teacher.crop = self.watch.function(self.teacher.crop, CROPS)  # type: ignore[method-assign]
        self.tap = PositiveTap(self.detector)
        self.batch = batch(images, size, device)
        self.steps: dict[str, Step] = {}

    def contenders(self, choice: Iterable[str] = TERMS) -> dict[str, Step]:
        named = {
            (implementation, terms): Step(self, implementation, terms)
            for terms in choice
            for implementation in IMPLEMENTATIONS
            if (implementation, terms) != (MAP_MODE, "KD-cls")  # KD-cls reads no map
        }
        self.steps = {PLAIN: Step(self)} | {name(*key): step for key, step in named.items()}
        return self.steps

    def runs(self) -> dict[str, Callable[[], None]]:
        """For memory.py: of the contenders that were built last, or of all."""
        return {name: step.run for name, step in (self.steps or self.contenders()).items()}

    def clear(self) -> None:
        for module in (self.detector, self.teacher):
            module.zero_grad(set_to_none=True)

    def warmed_and_checked(self, contenders: dict[str, Step]) -> int:
        """Compare every contender's terms, and their gradients at the head's outputs, with eager's. Returns the positives' number."""
        with self.tap:
            torch.manual_seed(0)
            self.detector(*self.batch)
        positives = self.tap.positives
        assert len(positives), "no positives: nothing would be compared"
        steps = {implementation: contenders[name(implementation, "both")] for implementation in (EAGER, *IMPLEMENTATIONS)}
        expected: list[Tensor] = []
        for implementation, step in steps.items():
            with use_backend(step.backend), exact_convolutions():
                terms = step.distiller(positives)
                gradients = torch.autograd.grad(sum(terms.values()), self.tap.outputs, retain_graph=True)
            assert set(terms) == {"kd_cls", "kd_loc", "loc"}, f"{implementation} gives {', '.join(terms)}"
            values = [*(terms[term].detach() for term in sorted(terms)), *gradients]
            if not expected:
                expected = values
            elif tolerance := IMPLEMENTATIONS[implementation].tolerance:
                labels = [*sorted(terms), *(f"gradient of output {i}" for i in range(len(gradients)))]
                for label, value, exact in zip(labels, values, expected, strict=True):
                    check_close(f"{implementation}, {label},", [value], [exact], tolerance)
        return len(positives)


def name(implementation: str, terms: str) -> str:
    return f"{implementation}, {terms}"


def watch(clock: Watch, distiller: Any) -> None:
    """Count a distiller's passes of the teacher, and its crops where the teacher does not make them. All else is losses."""
    for attribute, part in (("on_targets", ON_TARGETS), ("on_predictions", ON_PREDICTIONS)):
        if isinstance(module := getattr(distiller, attribute, None), nn.Module):
            clock.module(module, part)
    if hasattr(distiller, "crop"):
        distiller.crop = clock.function(distiller.crop, CROPS)


def batch(images: int, size: tuple[int, int], device: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Random images, and 7.5 ground truths for each, about as many as on COCO.

    The images are smooth: where a sample falls on a pixel centre, its derivative is that of the left or the right side, by
    rounding, and in white noise these two have nothing in common.
    """
    random = generator("cpu")
    boxes = scene({"image": size, "images": images, "g": round(7.5 * images), "k": 1}, "cpu")
    index = boxes["target_image_index"]
    labels = torch.randint(1, len(CLASSES) + 1, index.shape, generator=random)
    coarse = torch.rand(images, 3, *(side // 16 for side in size), generator=random)
    smooth = nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    pixels = list(smooth.to(device))
    targets = [
        {"boxes": boxes["target_boxes"][index == image].to(device), "labels": labels[index == image].to(device)}
        for image in range(images)
    ]
    return pixels, targets


def add_proposals(_module: nn.Module, arguments: tuple) -> tuple:
    """A forward pre-hook of Faster R-CNN's box head: proposals near the ground truths, where a trained RPN has most of its own."""
    features, proposals, sizes, targets = arguments
    random, added = generator("cpu"), []
    for boxes, target in zip(proposals, targets, strict=True):
        near = target["boxes"].repeat(PROPOSALS, 1)
        sides = (near[:, 2:] - near[:, :2]).repeat(1, 2)
        move = (torch.rand(near.shape, generator=random).to(near.device) - 0.5) * 0.3
        added.append(torch.cat([boxes, near + move * sides]))
    return features, added, sizes, targets
