"""The settings of every distiller, and a limit of images: data alone, without torch, so that a help text comes at once.

The terms that they weight are in ``cls2det.distill``, formulas in ``cls2det_ops.losses``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any, ClassVar, Literal


def check_numbers(record: Any, group: str, positive: Collection[str] = (), shares: Collection[str] = ()) -> None:
    """Raise ValueError unless every number of a record of settings is finite and at least 0.

    Args:
        record: a dataclass; None, texts and booleans are passed over, of a tuple every entry is looked at
        group: the options' group, for the message
        positive: fields that must be above 0
        shares: fields that must be at most 1
    """
    for field in dataclasses.fields(record):
        value, name = getattr(record, field.name), f"{group}.{field.name}"
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            if not math.isfinite(number):
                raise ValueError(f"{name} must be a finite number, got {number}")
            if number < 0 or (number == 0 and field.name in positive):
                remedy = " (None is the default, or all)" if field.default is None or "None" in str(field.type) else ""
                least = "above 0" if field.name in positive else "at least 0"
                raise ValueError(f"{name} must be {least}, got {number}{remedy}")
            if number > 1 and field.name in shares:
                raise ValueError(f"{name} must be at most 1, got {number}")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of a distiller: every number is finite and not negative.

    Attributes:
        positive: fields that must be above 0
        shares: fields that must be at most 1
    """

    positive: ClassVar[tuple[str, ...]] = ()
    shares: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        groups = {**DISTILLERS, "balance": BalanceSettings}
        group = next((name for name, kind in groups.items() if isinstance(self, kind)), type(self).__name__)
        check_numbers(self, group, self.positive, self.shares)


MAX_PIXELS = 178_956_970  # of an image that is read, where an option does not say another number; Pillow alone stops there


@dataclasses.dataclass(frozen=True)
class ClassifierSettings(Settings):
    """The image classifier's terms (Guo et al., NeurIPS 2021); fit every student. A weight of 0 leaves one out.

    Args:
        kd_cls_weight: weight of KD-cls
        kd_loc_weight: weight of KD-loc, on the teacher's features; off by default, as it raised mAP in no study of ours
        loc_weight: weight of loc, on pixels; off by default too
        input_std: unit of the pixel differences that loc_weight is for, in levels of 0 to 255, whatever the student's own
            normalisation: 1 fits the paper's weight of 0.15, 58 fits weights chosen on ImageNet-normalised images
        warmup_steps: steps over which the weights rise from 0
        temperature: of KD-cls
        kd_cls_variants: of KD-cls, which can be put together; none is the paper's form. "foreground" leaves the background out of a
            softmax, "overlap" weights each positive by the IoU of its box and its ground truth, "decoupled" takes the ground
            truth's class and the others apart (DKD), "standardised" compares logits less their mean and over their deviation,
            "quality" multiplies the teacher's probabilities by that IoU and gives the rest to the background
        decoupled_weight: of the other classes where the variant is decoupled
        pixel_size: side of the square on which the pixels of a box are sampled; null is the teacher's crop size, or 112
            without a teacher
        pixel_pool: side of the square that these samples are pooled to before they are compared
        feature_layers: layers of the teacher that KD-loc compares; the term is their mean. maxpool and layer1 are the paper's
            l0 and l1
        feature_pools: side of the square that each layer is pooled to before it is compared
        feature_mode: "crop" runs the layers on the crop of every box, as the paper does. "map" runs them once on whole images
            and pools the boxes there, which costs next to nothing but sees small objects at the images' resolution
        teacher_precision: "bf16" runs the teacher in bfloat16, except for a ResNet's stem, which KD-loc compares
        chunk: crops that go through the teacher at a time, which bounds the memory of thousands of positives and changes no
            result; null is all at once
        max_positives: the terms on boxes use at most this many positives per process and step; null is all
        normalizer: the terms are divided by the number of positives of the "process", or of "all" processes, and by 1 if there
            is none. With "all" they do not depend on how a batch is split, unless max_positives applies; the detector's own
            losses are divided by process in both cases
        control: for studies. "one_hot" puts the true class in the teacher's place, "smoothed" the true class with 0.1 for all,
            "shuffled" permutes its classes. "giou" and "l1" put the true box in the place of both terms on boxes: 1 - GIoU, or the
            mean difference of the four sides in units of the true box
    """

    kd_cls_weight: float = 0.4
    kd_loc_weight: float = 0.0
    loc_weight: float = 0.0
    input_std: float = 63.75
    warmup_steps: int = 0
    temperature: float = 2.0
    kd_cls_variants: tuple[Literal["foreground", "overlap", "decoupled", "standardised", "quality"], ...] = ()
    decoupled_weight: float = 1.0
    pixel_size: int | None = None
    pixel_pool: int = 4
    feature_layers: tuple[str, ...] = ("maxpool",)
    feature_pools: tuple[int, ...] = (8,)
    feature_mode: Literal["crop", "map"] = "crop"
    teacher_precision: Literal["32", "bf16"] = "32"
    chunk: int | None = 512
    max_positives: int | None = None
    normalizer: Literal["process", "all"] = "process"
    control: Literal["none", "one_hot", "smoothed", "shuffled", "giou", "l1"] = "none"

    positive = ("input_std", "temperature", "pixel_pool", "pixel_size", "feature_pools", "chunk", "max_positives")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.feature_layers) != len(self.feature_pools):
            raise ValueError(f"one pool per layer: feature_layers {self.feature_layers}, feature_pools {self.feature_pools}")
        known = ("foreground", "overlap", "decoupled", "standardised", "quality")
        if unknown := [name for name in self.kd_cls_variants if name not in known]:
            raise ValueError(f"no variant {', '.join(map(str, unknown))} of KD-cls; there are {', '.join(known)}")
        if "quality" in self.kd_cls_variants and (others := set(self.kd_cls_variants) - {"quality", "overlap"}):
            raise ValueError(f"kd_cls_variants quality does not go with {', '.join(sorted(others))}")
        if self.control == "one_hot" and (unfit := {"decoupled", "standardised"}.intersection(self.kd_cls_variants)):
            raise ValueError(
                f"control one_hot has no logits beside the true class for kd_cls_variants {', '.join(sorted(unfit))}"
            )


@dataclasses.dataclass(frozen=True)
class RegionsSettings(Settings):
    """A frozen image encoder's embeddings of boxes, without classes; fits every student. Ours, after ViLD (Gu et al., ICLR 2022).

    Args:
        weight: of the term; ViLD's for a Faster R-CNN with ResNet-50 is 0.5
        warmup_steps: steps over which the weight rises from 0
        form: "l1" is the sum of absolute differences of two embeddings of length 1, as in ViLD; "queue" compares what both lie
            close to among the encoder's last embeddings
        crop_size: side of the encoder's crops in pixels; null is the encoder's own
        pool_size: side of the square that the student's maps are pooled to in a box
        max_positives: at most this many positives per process and step are compared; null is all
        queue_size: embeddings in the queue
        temperature: of the queue's softmax
        encoder_precision: "bf16" runs the encoder in bfloat16
    """

    weight: float = 0.5
    warmup_steps: int = 0
    form: Literal["l1", "queue"] = "l1"
    crop_size: int | None = None
    pool_size: int = 1
    max_positives: int | None = None
    queue_size: int = 4096
    temperature: float = 0.07
    encoder_precision: Literal["32", "bf16"] = "32"

    positive = ("crop_size", "pool_size", "max_positives", "queue_size", "temperature")


@dataclasses.dataclass(frozen=True)
class ChenSettings(Settings):
    """Chen et al., NeurIPS 2017; fits Faster R-CNN with the teacher's anchors.

    The paper mixes its own loss in as mu hard + (1 - mu) soft; the detector's loss keeps its weight of 1 here, and the soft
    one has (1 - mu) / mu of it. The paper does not give mu; 0.25 is for the 0.8 of a later port.

    Args:
        weight: of all its terms
        warmup_steps: steps over which the weight rises from 0
        soft_weight: of the soft labels: of the box head at the sampled proposals, of the RPN at the sampled anchors
        background_weight: of the background in the soft labels of the box head
        temperature: of the soft labels
        bounded_weight: of the box head's regression where the teacher does better (the RPN's is left to its own loss)
        margin: by how much better, in squared units of the box code; not given in the paper
        hint_weight: of the squared difference of features, its mean
    """

    weight: float = 1.0
    warmup_steps: int = 0
    soft_weight: float = 0.25
    background_weight: float = 1.5
    temperature: float = 1.0
    bounded_weight: float = 0.5
    margin: float = 0.0
    hint_weight: float = 0.5

    positive = ("temperature",)


@dataclasses.dataclass(frozen=True)
class FGFISettings(Settings):
    """FGFI (Wang et al., CVPR 2019); fits every student with anchors whose maps have the teacher's sizes.

    Args:
        weight: of the term; 0.01 in the release, where it was chosen for a detector that is not among these students
        warmup_steps: steps over which the weight rises from 0; the release leaves the first 400 out
        factor: a place is imitated if an anchor there overlaps an object by more than this share of the object's best overlap
        assignment: where an object's best overlap is looked for: on each level, over all levels, or over all levels with only
            the level of the best one imitated; the paper, with one map, does not say
        relu: end the adapters in a ReLU, as in the release; the maps of a pyramid have signs
        per_image: divide by the places of each image and average, in place of those of the batch
    """

    weight: float = 0.01
    warmup_steps: int = 400
    factor: float = 0.5
    assignment: Literal["level", "all", "best"] = "all"
    relu: bool = False
    per_image: bool = False

    positive = ("factor",)
    shares = ("factor",)


@dataclasses.dataclass(frozen=True)
class GIDSettings(Settings):
    """GID (Dai et al., CVPR 2021); fits students with the teacher's anchors whose maps have one number of channels.

    Args:
        weight: of all its terms
        warmup_steps: steps over which the weight rises from 0
        feature_weight: of the instances' features
        feature_form: "squared" as in the release, whose weight is 5e-4; "norm" as in the paper
        relation_weight: of the distances between them
        cls_weight: of the scores at anchors on instances
        box_weight: of the box regression there
        instances: per image
        candidates: anchors per image that the selection begins with
        nms_threshold: IoU above which the lesser instance is dropped
        min_size: instances with a shorter side, in pixels, are dropped
        pool_size: features are pooled to this square
    """

    weight: float = 1.0
    warmup_steps: int = 0
    feature_weight: float = 5e-4
    feature_form: Literal["squared", "norm"] = "squared"
    relation_weight: float = 40.0
    cls_weight: float = 0.1
    box_weight: float = 1.0
    instances: int = 10
    candidates: int = 3000
    nms_threshold: float = 0.3
    min_size: float = 10.0
    pool_size: int = 10

    positive = ("instances", "candidates", "nms_threshold", "pool_size")
    shares = ("nms_threshold",)


@dataclasses.dataclass(frozen=True)
class FKDSettings(Settings):
    """FKD (Zhang & Ma, ICLR 2021); fits every student whose maps have the teacher's sizes.

    Args:
        weight: of all its terms
        warmup_steps: steps over which the weight rises from 0
        preset: weights, temperature and mask of the release, for two-stage or one-stage detectors; the paper's text seems to
            give the temperatures the other way round
        attention_weight: of the masked maps, in place of the preset's
        transfer_weight: of the attention itself, in place of the preset's
        nonlocal_weight: of the relations, in place of the preset's
        temperature: of the attention, in place of the preset's
        channel_mask: apply the channel attention to the maps as well, in place of the preset's
        per_image: distances of each image, averaged, in place of one over the batch, which grows with its root
    """

    weight: float = 1.0
    warmup_steps: int = 0
    preset: Literal["two-stage", "one-stage"] = "two-stage"
    attention_weight: float | None = None
    transfer_weight: float | None = None
    nonlocal_weight: float | None = None
    temperature: float | None = None
    channel_mask: bool | None = None
    per_image: bool = False

    positive = ("temperature",)


@dataclasses.dataclass(frozen=True)
class FGDSettings(Settings):
    """FGD (Yang et al., CVPR 2022): objects and background apart, and context; fits students whose maps have the teacher's sizes.

    Args:
        weight: of all its terms
        warmup_steps: steps over which the weight rises from 0
        foreground_weight: of features inside ground-truth boxes
        background_weight: of features outside
        attention_weight: of the attention maps
        context_weight: of the context blocks
        temperature: of the attention
    """

    weight: float = 1.0
    warmup_steps: int = 0
    foreground_weight: float = 1e-3
    background_weight: float = 5e-4
    attention_weight: float = 5e-4
    context_weight: float = 5e-6
    temperature: float = 0.5

    positive = ("temperature",)


@dataclasses.dataclass(frozen=True)
class PKDSettings(Settings):
    """PKD (Cao et al., NeurIPS 2022): maps normalised by channel; fits every student whose maps have the teacher's sizes.

    Args:
        weight: of the term, the mean square summed over maps; 6 for two-stage and 10 for one-stage detectors in a known port
        warmup_steps: steps over which the weight rises from 0
        per_image: normalise each image by itself, in place of the batch
    """

    weight: float = 6.0
    warmup_steps: int = 0
    per_image: bool = False


@dataclasses.dataclass(frozen=True)
class CWDSettings(Settings):
    """CWD (Shu et al., ICCV 2021): where each channel looks; fits every student whose maps have the teacher's sizes.

    Args:
        weight: of the term, summed over maps
        warmup_steps: steps over which the weight rises from 0
        temperature: of the softmax over places
    """

    weight: float = 1.0
    warmup_steps: int = 0
    temperature: float = 1.0

    positive = ("temperature",)


@dataclasses.dataclass(frozen=True)
class BCKDSettings(Settings):
    """BCKD (Yang et al., ICCV 2023); fits RetinaNet and FCOS with the teacher's anchors.

    Args:
        weight: of all its terms
        warmup_steps: steps over which the weight rises from 0
        cls_weight: of the scores, over all anchors, divided by the number of positives
        box_weight: of 1 - GIoU with the teacher's boxes, at the positives, by the teacher's best score
        beta: power of the difference of the two probabilities, which weights each class
    """

    weight: float = 1.0
    warmup_steps: int = 0
    cls_weight: float = 1.0
    box_weight: float = 4.0
    beta: float = 1.0


@dataclasses.dataclass(frozen=True)
class HarmonySettings(Settings):
    """Ours, after an idea of TBD (Tang et al., 2022), whose equations we could not get.

    Fits RetinaNet and FCOS with the teacher's anchors.

    Args:
        weight: of all its terms
        warmup_steps: steps over which the weight rises from 0
        cls_weight: of the class scores at the positives, by the teacher's harmony score
        box_weight: of 1 - GIoU with the teacher's boxes at the positives, by the same score
        feature_weight: of the features, over all levels
        balance: share of the classification's places in that term; the rest is the regression's
    """

    weight: float = 1.0
    warmup_steps: int = 0
    cls_weight: float = 1.0
    box_weight: float = 2.0
    feature_weight: float = 1.0
    balance: float = 0.5

    shares = ("balance",)


@dataclasses.dataclass(frozen=True)
class BalanceSettings(Settings):
    """Automatic weights: every term's gradient at the detector's head is held to a share of the detection loss's.

    Args:
        share: of the detection loss's gradient; with several terms, each has it
        every: batches between measurements
        smoothing: below 1, weight of the former ratio in each measurement, on a logarithmic scale
        bound: from 1; the weights of the settings are multiplied by at least 1 / bound and at most bound
    """

    share: float = 0.3
    every: int = 10
    smoothing: float = 0.9
    bound: float = 100.0

    positive = ("share", "every", "bound")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.smoothing >= 1 or self.bound < 1:
            raise ValueError(f"balance needs smoothing below 1 and a bound from 1, got {self.smoothing} and {self.bound}")


DISTILLERS = {  # by name, in the order in which reports and help texts list them
    "classifier": ClassifierSettings,
    "regions": RegionsSettings,
    "chen": ChenSettings,
    "fgfi": FGFISettings,
    "gid": GIDSettings,
    "fkd": FKDSettings,
    "fgd": FGDSettings,
    "pkd": PKDSettings,
    "cwd": CWDSettings,
    "bckd": BCKDSettings,
    "harmony": HarmonySettings,
}
TERMS = ("kd_cls_weight", "kd_loc_weight", "loc_weight")  # of the classifier; a weight above 0 is what makes a run distil
NO_TERMS = ClassifierSettings(kd_cls_weight=0.0, kd_loc_weight=0.0, loc_weight=0.0)
