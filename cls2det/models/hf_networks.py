"""transformers' networks of images; see ``models.networks``. transformers is imported when one is loaded, not before."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cls2det.errors import first_lines, some
from cls2det.models.backbones import RANDOM
from cls2det.models.hf_modules import ImageEncoder, Probed, resample, takes
from cls2det.models.networks import IMAGENET_MEAN, IMAGENET_STD, ImageNetwork, not_fetched, read_safetensors


def load_hf(name: str, classes: int | None, weights: str | Path, size: int | None) -> ImageNetwork:
    """See ``networks.load_network``. Position embeddings are resampled where the model can, for images of another ``size``."""
    return read_model(name, classes, weights).network(classes, size)


@dataclasses.dataclass(frozen=True)
class HFModel:
    """A model of transformers with weights.

    Attributes:
        body: the model, with its last layer and its text half, where it has these
        config: of transformers
        source: a name of the hub, or a folder
        started_from: which weights it has, in words
        reads_pooler: see ``ImageEncoder``
    """

    body: Any
    config: Any
    source: str
    started_from: str
    reads_pooler: bool

    def network(self, classes: int | None, size: int | None) -> ImageNetwork:
        """The network of images, without a text half. ``classes`` as the model was read for."""
        plain = {**json.loads(self.config.to_json_string(use_diff=False)), "_name_or_path": ""}
        settings: dict[str, Any] = {"reads_pooler": self.reads_pooler, "resamples": False, "config": plain}
        module = _completed(self.body, self.config, classes, self.reads_pooler)
        own_size, mean, std = _wants(self.source, self.config, self.started_from != RANDOM)
        if size not in (None, own_size) and not takes(module, size):
            settings["resamples"] = True
            resample(module)
        patch = getattr(getattr(self.config, "vision_config", self.config), "patch_size", None)
        if size is not None and isinstance(patch, int) and size % patch:
            warnings.warn(
                f"hf:{self.source} sees patches of {patch} pixels: of images of {size} the last {size % patch} are not seen; take a "
                f"multiple of {patch}",
                stacklevel=5,
            )
        return ImageNetwork(module, mean, std, own_size, self.started_from, settings)


def read_model(name: str, classes: int | None, weights: str | Path) -> HFModel:
    """See ``networks.load_network``, for the name after "hf:"."""
    source = str(Path(name).expanduser()) if name.startswith("~") else name
    if isinstance(weights, Path) and (weights / "config.json").is_file() and not Path(source).is_dir():
        source = str(weights)
    config = _read_config(source)
    files = Path(source).is_dir() and any(Path(source).glob("*.safetensors"))
    if weights == "none" or (weights == "auto" and Path(source).is_dir() and not files):
        if files:
            warnings.warn(
                f"hf:{name} starts from random weights, though the folder holds some; weights pretrained reads them "
                "(--backbone-weights pretrained)",
                stacklevel=5,
            )
        elif weights == "auto":
            warnings.warn(f"hf:{name} starts from random weights: the folder holds no safetensors", stacklevel=5)
        return HFModel(_of_config(config, classes), config, source, RANDOM, True)
    body, missing = _with_weights(config, classes, str(weights) if isinstance(weights, Path) else source)
    started_from = f"hf:{name}" if isinstance(weights, str) else str(weights)
    return HFModel(body, config, source, started_from, not any("pooler" in key for key in missing))


def rebuild_hf(classes: int | None, settings: dict[str, Any]) -> nn.Module:
    """The same network with random weights."""
    config = transformers_library().AutoConfig.for_model(**settings["config"])
    module = _completed(_of_config(config, classes), config, classes, settings["reads_pooler"])
    if settings["resamples"]:
        resample(module)
    return module


def _read_config(source: str) -> Any:
    hf, folder = transformers_library(), Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json; expected a folder that transformers' save_pretrained wrote")
    with quiet():
        try:
            return hf.AutoConfig.from_pretrained(source)
        except OSError as error:
            raise not_fetched(f"hf:{source}", error) from None
        except ValueError as error:
            raise ValueError(f"hf:{source} is no model of transformers {hf.__version__}: {first_lines(error, 1)}") from None


def _has_classifier(config: Any) -> bool:
    return type(config) in transformers_library().MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING


def _model_class(config: Any, classes: int | None) -> Any:
    hf = transformers_library()
    if classes is not None:
        config.num_labels = classes
    return hf.AutoModelForImageClassification if classes is not None and _has_classifier(config) else hf.AutoModel


def _of_config(config: Any, classes: int | None) -> Any:
    """With random weights."""
    with quiet():
        return _model_class(config, classes).from_config(config, dtype=torch.float32)


def _with_weights(config: Any, classes: int | None, source: str) -> tuple[Any, list[str]]:
    """The model, and the names of its weights that the file lacks: of a last layer, or of a pooling."""
    kind = _model_class(config, classes)
    options: dict[str, Any] = {"config": config, "ignore_mismatched_sizes": True, "output_loading_info": True}
    options["dtype"] = torch.float32  # a checkpoint in half precision would be trained in it
    if Path(source).is_file():
        options["state_dict"] = read_safetensors(Path(source))
    with quiet():
        try:
            if "state_dict" in options:
                model_class = type(kind.from_config(config))
                model, report = model_class.from_pretrained(None, **options)
            else:
                model, report = kind.from_pretrained(source, use_safetensors=True, **options)
        except OSError as error:
            if Path(source).exists():
                raise FileNotFoundError(f"{source} holds no safetensors: {first_lines(error, 1)}") from None
            raise not_fetched(f"hf:{source}", error) from None
        except RuntimeError as error:
            raise ValueError(f"{source} does not hold the weights of its config: {first_lines(error)}") from None
    missing = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    body = max(model.named_children(), key=lambda child: sum(value.numel() for value in child[1].parameters()))[0]
    is_classifier = hasattr(model, "num_labels") and classes is not None and _has_classifier(config)
    wrong = [key for key in missing if "pooler" not in key and (key.startswith(f"{body}.") or not is_classifier)]
    if wrong:
        raise ValueError(f"{source} lacks weights of {type(model).__name__}, or has others: {some(sorted(wrong))}")
    return model, missing


def _completed(model: Any, config: Any, classes: int | None, reads_pooler: bool) -> nn.Module:
    """The module: a classifier as it is, an encoder, or an encoder with a linear layer."""
    if classes is not None and _has_classifier(config):
        return model  # type: ignore[no-any-return]
    encoder = ImageEncoder(model, reads_pooler)
    if classes is None:
        return encoder
    size = _config_size(config)
    with torch.no_grad():
        width = encoder.eval()(torch.zeros(1, 3, size, size)).shape[1]
    return Probed(encoder.train(), width, classes)


def _config_size(config: Any) -> int:
    size = getattr(getattr(config, "vision_config", config), "image_size", None) or 224
    return int(size if isinstance(size, int) else max(size))


def _wants(source: str, config: Any, trained: bool) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Side, mean and std that the model's image processor has. Where there is no processor, a CLIP's and SigLIP's are known by
    their kind, others get ImageNet's."""
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    try:
        with quiet():
            wants = ImageProcessingMixin.get_image_processor_dict(source)[0]
    except OSError:
        kinds: Any = IMAGE_PROCESSOR_MAPPING.get(type(config), None) if hasattr(config, "vision_config") else None
        kind = next(iter((kinds or {}).values()), None)
        wants = {name: getattr(kind, name, None) for name in ("image_mean", "image_std")}
        if trained:
            text = f"mean {wants['image_mean'] or IMAGENET_MEAN} and std {wants['image_std'] or IMAGENET_STD}"
            warnings.warn(
                f"hf:{source} has no preprocessor_config.json: it is believed to want images of {text}", stacklevel=5
            )
    if wants.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    else:
        mean, std = tuple(wants.get("image_mean") or IMAGENET_MEAN), tuple(wants.get("image_std") or IMAGENET_STD)
    size = wants.get("crop_size") or wants.get("size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return int(size or _config_size(config)), mean, std


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers tells of every new last layer, which is what was asked for."""
    logging = transformers_library().logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def transformers_library() -> Any:
    """Raises ImportError with the command that installs it."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"a network hf:NAME needs transformers ({error}): pip install 'cls2det[teachers]'") from error
    return transformers
