"""Training steps with teachers of other libraries, each read in three ways.

"frozen" is what ``frozen_reader`` chooses: a folded graph, a graph, or hooks where the network cannot be traced. "hooks" reads the
network by hooks, and stops behind the last layer where logits are not asked for. "plain" runs the whole network each time, as a
first version by hand would. Weights are random; detector, batch, positives and terms are those of steps.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cls2det.distill.classifier import BoxDistiller
from cls2det.settings import ClassifierSettings
from cls2det.teachers.network import NetworkTeacher, teacher_from
from cls2det.teachers.reader import Hooked, largest_difference
from steps import CLASSES, SETTINGS, SMALL_LOGITS, Step, StepWorkload, watch

FROZEN, HOOKS, PLAIN = "frozen", "hooks", "plain"
HALF = (0.5, 0.5, 0.5)  # mean and deviation


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A network, the layer that KD-loc compares, the side of its crops, and the side that the layer is pooled to.

    ``build`` makes it; ``small`` one of its kind where nothing is timed, whose crops have 64 pixels.
    """

    build: Callable[[], nn.Module]
    small: Callable[[], nn.Module]
    layer: str
    crop: int
    pool: int


def timm_network(name: str, **options: Any) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(name, num_classes=len(CLASSES), **options)
    return network


def clip(**vision: Any) -> nn.Module:
    """The vision half of a CLIP, ViT-B/32 by default, and random texts as its last layer."""
    import transformers as hf

    from cls2det.models.hf_modules import ImageEncoder
    from cls2det.models.zero_shot import ZeroShotClassifier

    text = {"num_hidden_layers": 1, "vocab_size": 8, "hidden_size": 64, "num_attention_heads": 1}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = hf.CLIPConfig(vision_config=vision, text_config={**text, **special})
    texts = nn.functional.normalize(torch.randn(len(CLASSES), 512), dim=1)
    return ZeroShotClassifier(ImageEncoder(hf.CLIPModel(config)), texts, 100.0 * SMALL_LOGITS, 0.0)


CONTESTANTS = {
    "timm resnet50": Contestant(
        lambda: timm_network("resnet50"), lambda: timm_network("resnet18"), "maxpool", 112, 8
    ),
    "timm convnext_tiny": Contestant(
        lambda: timm_network("convnext_tiny"), lambda: timm_network("convnext_atto"), "stages.0", 112, 8
    ),
    "timm vit_small_patch16": Contestant(
        lambda: timm_network("vit_small_patch16_224", img_size=112),
        lambda: timm_network("test_vit", img_size=64),
        "blocks.0", 112, 7,
    ),
    "transformers CLIP ViT-B/32": Contestant(
        lambda: clip(),
        lambda: clip(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=64),
        "encoder.network.vision_model.encoder.layers.0", 224, 7,
    ),
}  # fmt: skip


class Whole(nn.Module):
    """The network to its end, with a layer read by a hook."""

    def __init__(self, network: nn.Module, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.hooked = Hooked(network, layers, True)

    def forward(self, crops: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.hooked(crops)
        return outputs


class TeacherStep(Step):
    """The detector's step with all terms, from a teacher that is read in one way; "" is the detector's plain step."""

    def __init__(self, workload: TeacherWorkload, way: str) -> None:
        super().__init__(workload)
        if not way:
            return
        self.implementation, self.terms, self.backend = way, "both", "native"
        transform: Any = workload.detector.transform
        mean, std = transform.image_mean, transform.image_std
        self.distiller = BoxDistiller(workload.own_teacher, workload.settings, image_mean=mean, image_std=std, capture=False)
        network, layers = workload.own_teacher.network, workload.settings.feature_layers
        if way == HOOKS:
            self.distiller.on_targets = Hooked(network, layers, True)
            self.distiller.on_predictions = Hooked(network, layers, False)
        elif way == PLAIN:
            self.distiller.on_targets, self.distiller.on_predictions = Whole(network, layers), Whole(network, layers)
        self.distiller.to(torch.device(workload.device))
        watch(workload.watch, self.distiller)


class TeacherWorkload(StepWorkload):
    """Detector, teacher and batch.

    Args:
        name: in ``CONTESTANTS``
        device: "cpu" or "cuda"
        shape: of the detector's step, see ``steps.StepWorkload``
        small: with the small network of its kind
    """

    def __init__(self, name: str, device: str, shape: dict[str, Any], small: bool = False) -> None:
        super().__init__("ssd300_vgg16", device=device, **shape | {"crop": 32})
        contestant = CONTESTANTS[name]
        torch.manual_seed(0)
        network = (contestant.small if small else contestant.build)()
        layers, pools = (contestant.layer,), (contestant.pool,)
        self.settings = ClassifierSettings(**SETTINGS | {"feature_layers": layers, "feature_pools": pools})
        self.own_teacher: NetworkTeacher = teacher_from(
            network, CLASSES, 64 if small else contestant.crop, mean=HALF, std=HALF
        )
        self.own_teacher.crop = self.watch.function(self.own_teacher.crop, "crops")  # type: ignore[method-assign]
        self.ways = {way: TeacherStep(self, way) for way in ("", FROZEN, HOOKS, PLAIN)}

    @property
    def is_traced(self) -> bool:
        return not isinstance(self.ways[FROZEN].distiller.on_targets, Hooked)

    def checked(self) -> tuple[int, float]:
        """How many positives there are, and by how much the frozen reader differs from the plain network on the step's crops, in
        shares of each output's largest value."""
        with self.tap:
            torch.manual_seed(0)
            self.detector(*self.batch)
        positives = self.tap.positives
        assert len(positives), "no positives: nothing would be compared"
        with torch.no_grad():
            crops = self.own_teacher.crop(positives.images, positives.target_boxes, positives.target_image_index)
        frozen, plain = (self.ways[way].distiller.on_targets for way in (FROZEN, PLAIN))
        return len(positives), largest_difference(frozen, plain, crops)
