"""Students ``hf:FOLDER`` and ``hf:NAME``: any detector of transformers that matches by the Hungarian method, with its weights.

A folder holds ``config.json``, ``model.safetensors`` and, for how images are resized and normalised,
``preprocessor_config.json``, as ``save_pretrained`` of a model and of its image processor writes them; a name is one of
huggingface.co. Weights are read as safetensors, never as a pickle. The class head is drawn anew unless it has as many classes.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.errors import first_lines, some
from cls2det.models.backbones import POLICIES, RANDOM
from cls2det.models.hf_networks import quiet
from cls2det.models.students.detr import draw_weights as draw_detr_weights
from cls2det.models.students.hungarian import RT_DETRS, HungarianDetector, import_transformers
from cls2det.models.students.hungarian_loss import isinstance_of, matchers
from cls2det.models.students.resizing import settings_of
from cls2det.models.students.rt_detr import draw_weights, hold_queries

PREFIX = "hf:"
WEIGHTS, PROCESSOR = "model.safetensors", "preprocessor_config.json"


def is_name(student: str) -> bool:
    """Whether the name of a student is one of this module's."""
    return student.startswith(PREFIX)


def build(student: str, classes: int, image_size: int | None, weights: str) -> HungarianDetector:
    """The detector at ``student``; its ``started_from`` says what weights it has.

    Args:
        student: ``hf:`` and a folder or a name of huggingface.co
        classes: without the background
        image_size: what images are brought to, in pixels; None is as the image processor has it
        weights: "auto" (those of the folder, with a warning where it has none), "imagenet" (those of the folder, an error where
            it has none), "none" (random)

    Raises:
        FileNotFoundError: no such folder, or no configuration in it
        ConnectionError: a name, and huggingface.co has no such detector or cannot be reached
        ValueError: no object detector with a Hungarian matcher, or weights that do not fit its configuration
    """
    if weights not in POLICIES:
        raise ValueError(f"weights are {', '.join(POLICIES)}; found {weights!r}")
    config, place = _read_config(student), _place(student)
    transform = _transform(config, student, image_size)
    known, config.num_labels = config.num_labels, classes
    if hasattr(config, "auxiliary_loss") and hasattr(config, "decoder_layers"):
        config.auxiliary_loss = True  # as all of them are trained; configurations of trained ones may say otherwise
    hold_queries(config, transform)
    if weights == "none" or not _has_weights(student, must=weights == "imagenet"):
        if hasattr(config, "freeze_backbone_batch_norms"):
            config.freeze_backbone_batch_norms = False  # random weights have no statistics worth keeping
        network, started_from = _empty(config), RANDOM
        if isinstance_of(network, *RT_DETRS):
            draw_weights(network)
        elif isinstance_of(network, "DetrFor", "TableTransformer"):
            draw_detr_weights(network)
    else:
        network, started_from = _load(place, config, known), student
    _check(network, student)
    description = {"config": json.loads(config.to_json_string(use_diff=False)), "transform": settings_of(transform)}
    detector = HungarianDetector(network, transform, description)
    detector.started_from = started_from  # type: ignore[assignment]
    return detector


def rebuild(description: Mapping[str, Any]) -> HungarianDetector:
    """A detector with random weights from what ``build`` left in ``detector.description``: without the folder, without a network."""
    config = import_transformers().AutoConfig.for_model(**description["config"])
    return HungarianDetector(_empty(config), GeneralizedRCNNTransform(**description["transform"]), description)


def _read_config(student: str) -> Any:
    """transformers' configuration of the detector at ``student``. Raises as ``build``."""
    transformers, place = import_transformers(), _place(student)
    if Path(place).exists() and not Path(place, "config.json").is_file():
        raise FileNotFoundError(f"{student}: there is no config.json in {place}; expected a folder that save_pretrained wrote")
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        if Path(place).exists():
            raise ValueError(f"{student}: {place}/config.json is not read: {first_lines(error)}") from None
        raise ConnectionError(
            f"{student}: there is no folder {place}, and huggingface.co gives no detector of this name "
            f"({first_lines(error, 1)}). Give a folder with config.json and {WEIGHTS}"
        ) from None
    if type(config) not in transformers.MODEL_FOR_OBJECT_DETECTION_MAPPING:
        raise ValueError(f"{student}: a {config.model_type} is no object detector of transformers")
    return config


def describe(student: str) -> tuple[str, str]:
    """Name of the detector's class, and its head: "softmax" or "sigmoid". No weights are read. Raises as ``build``."""
    with torch.device("meta"):  # shapes and no numbers
        network = _empty(_read_config(student))
    _check(network, student)
    kind = "softmax" if isinstance_of(network, "Detr", "Yolos", "TableTransformer") else "sigmoid"
    return type(network).__name__, kind


def _check(network: Any, student: str) -> None:
    texts = "input_ids" in inspect.signature(network.forward).parameters
    if texts or not matchers(network.loss_function):
        reason = "looks for what a text says" if texts else "does not match by the Hungarian method"
        raise ValueError(f"{student} is a {type(network).__name__}, which {reason}; it cannot be a student")


def _empty(config: Any) -> Any:
    """The network of a configuration, with the random weights that transformers draws."""
    for part in (config, getattr(config, "backbone_config", None) or config):
        if hasattr(part, "use_pretrained_backbone"):
            part.use_pretrained_backbone = False  # else weights of the body are fetched
    with quiet():
        return import_transformers().AutoModelForObjectDetection.from_config(config)


def _load(place: str, config: Any, known: int) -> Any:
    """The network with the weights at ``place``, but for class heads of another number of classes than ``known``."""
    try:
        with quiet():
            network, report = import_transformers().AutoModelForObjectDetection.from_pretrained(
                place,
                config=config,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
    except ImportError:  # of timm, for bodies of its own
        raise
    except Exception as error:  # of safetensors, which has one of its own, too
        raise ValueError(f"{PREFIX}{place} has no weights that can be read: {first_lines(error)}") from None
    classes = config.num_labels
    others = [
        name
        for name, saved, wanted in report["mismatched_keys"]
        if saved[1:] != wanted[1:] or saved[0] - known != wanted[0] - classes
    ]
    if lacking := sorted([*report["missing_keys"], *others]):
        raise ValueError(
            f"{PREFIX}{place}: {len(lacking)} weights are not as its config.json says, missing or of another shape: {some(lacking)}"
        )
    return network


def _has_weights(student: str, *, must: bool) -> bool:
    """Whether there are weights in safetensors; a warning, or a ValueError, where not. A name of huggingface.co is believed."""
    folder = Path(_place(student))
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return True
    pickles = ", ".join(sorted(file.name for file in folder.glob("*.bin")))
    text = f"there is no {WEIGHTS} in {folder}" + (f" ({pickles} is a pickle, which is not read)" if pickles else "")
    if must:
        raise ValueError(f"{student}: {text}")
    warnings.warn(f"{student} starts from random weights: {text}", stacklevel=4)
    return False


def _transform(config: Any, student: str, image_size: int | None) -> GeneralizedRCNNTransform:
    """Resizing and normalisation as the image processor has them; ``image_size`` takes the place of its shorter side."""
    processor = _processor(config, student)
    mean, std = ([0.0] * 3, [1.0] * 3)
    if processor.do_normalize:
        mean, std = list(map(float, processor.image_mean)), list(map(float, processor.image_std))
    size = processor.size
    if size.height and size.width:
        height, width = (image_size, image_size) if image_size else (size.height, size.width)
        multiple = max(getattr(config, "feat_strides", [1]))  # to which RT-DETR's maps must be brought; ViTs know their sizes
        sides: dict[str, Any] = {
            "min_size": height,
            "max_size": width,
            "fixed_size": (width, height),
            "size_divisible": multiple,
        }
    elif size.shortest_edge:
        shorter = image_size or size.shortest_edge
        longer = round(shorter * (size.longest_edge or size.shortest_edge) / size.shortest_edge)
        sides = {"min_size": shorter, "max_size": longer}
    else:
        raise ValueError(
            f"{student}: images are brought to {size}; expected height and width, or the shortest and longest edge"
        )
    return GeneralizedRCNNTransform(image_mean=mean, image_std=std, **sides)


def _processor(config: Any, student: str) -> Any:
    transformers, place = import_transformers(), _place(student)
    with contextlib.suppress(OSError, ValueError), quiet():
        return transformers.AutoImageProcessor.from_pretrained(place)
    is_rt_detr = hasattr(config, "feat_strides")
    processor = transformers.RTDetrImageProcessor() if is_rt_detr else transformers.DetrImageProcessor()
    warnings.warn(
        f"{student} has no {PROCESSOR}: images are resized and normalised as by {type(processor).__name__}, which may be wrong",
        stacklevel=5,
    )
    return processor


def _place(student: str) -> str:
    return student.removeprefix(PREFIX)
