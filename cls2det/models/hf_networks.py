"""transformers' networks of images; see ``models.networks``. transformers is imported when one is loaded, not before."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cls2det.errors import first_lines, some
from cls2det.models.backbones import RANDOM
from cls2det.models.networks import IMAGENET_MEAN, IMAGENET_STD, ImageNetwork, not_fetched, read_safetensors

TEXT_PARTS = ("text_model", "text_projection")  # of a model of images and texts, which an image does not pass


class ImageEncoder(nn.Module):
    """Embeddings (N, D) of images: a CLIP's or SigLIP's image embedding, else what the model pools, else its class token or
    the mean of its places.

    Args:
        network: a model of transformers without a last layer
        reads_pooler: whether the model's own pooling has weights that were trained
    """

    def __init__(self, network: nn.Module, reads_pooler: bool = True):
        super().__init__()
        for part in TEXT_PARTS:
            if hasattr(network, "get_image_features") and hasattr(network, part):
                delattr(network, part)
        self.network: Any = network  # transformers', which mypy does not know
        self.reads_pooler = reads_pooler

    def forward(self, images: Tensor, **options: Any) -> Tensor:
        if hasattr(self.network, "get_image_features"):
            result = self.network.get_image_features(images, **options)
        else:
            result = self.network(pixel_values=images, **options)
        if isinstance(result, Tensor):
            return result
        pooled: Tensor | None = getattr(result, "pooler_output", None)
        if pooled is not None and self.reads_pooler:
            return pooled.flatten(1)
        places: Tensor = result.last_hidden_state
        if places.dim() == 4:
            return places.mean((2, 3))
        has_class_token = math.isqrt(places.shape[1]) ** 2 != places.shape[1]
        return places[:, 0] if has_class_token else places.mean(1)


class Probed(nn.Module):
    """A linear layer on an encoder, for models that transformers has no classifier of."""

    def __init__(self, encoder: nn.Module, width: int, classes: int):
        super().__init__()
        self.encoder, self.classifier = encoder, nn.Linear(width, classes)

    def forward(self, images: Tensor, **options: Any) -> Tensor:
        logits: Tensor = self.classifier(self.encoder(images, **options))
        return logits


def load_hf(name: str, classes: int | None, weights: str | Path, size: int | None) -> ImageNetwork:
    """See ``networks.load_network``. Position embeddings are resampled where the model can, for images of another ``size``."""
    source = name
    if isinstance(weights, Path) and (weights / "config.json").is_file() and not Path(name).is_dir():
        source = str(weights)
    config = _read_config(source)
    started_from = RANDOM
    files = Path(source).is_dir() and any(Path(source).glob("*.safetensors"))
    settings: dict[str, Any] = {"reads_pooler": True, "resamples": False}
    if weights == "none" or (weights == "auto" and Path(source).is_dir() and not files):
        if files:
            warnings.warn(
                f"hf:{name} starts from random weights, though the folder holds some; weights pretrained reads them "
                "(--backbone-weights pretrained)",
                stacklevel=4,
            )
        body = _of_config(config, classes)
    else:
        body, missing = _with_weights(config, classes, str(weights) if isinstance(weights, Path) else source)
        settings["reads_pooler"] = not any("pooler" in key for key in missing)
        started_from = f"hf:{name}" if isinstance(weights, str) else str(weights)
    settings["config"] = {**json.loads(config.to_json_string(use_diff=False)), "_name_or_path": ""}
    module = _completed(body, config, classes, settings["reads_pooler"])
    own_size, mean, std = _wants(source, config, started_from != RANDOM)
    if size not in (None, own_size) and not _takes(module, size):
        settings["resamples"] = True
        _resample(module)
    return ImageNetwork(module, mean, std, own_size, started_from, settings)


def rebuild_hf(classes: int | None, settings: dict[str, Any]) -> nn.Module:
    """The same network with random weights."""
    config = _transformers().AutoConfig.for_model(**settings["config"])
    module = _completed(_of_config(config, classes), config, classes, settings["reads_pooler"])
    if settings["resamples"]:
        _resample(module)
    return module


def _read_config(source: str) -> Any:
    hf, folder = _transformers(), Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json; expected a folder that transformers' save_pretrained wrote")
    with _quiet():
        try:
            return hf.AutoConfig.from_pretrained(source)
        except OSError as error:
            raise not_fetched(f"hf:{source}", error) from None
        except ValueError as error:
            raise ValueError(f"hf:{source} is no model of transformers {hf.__version__}: {first_lines(error, 1)}") from None


def _has_classifier(config: Any) -> bool:
    return type(config) in _transformers().MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING


def _model_class(config: Any, classes: int | None) -> Any:
    hf = _transformers()
    if classes is not None:
        config.num_labels = classes
    return hf.AutoModelForImageClassification if classes is not None and _has_classifier(config) else hf.AutoModel


def _of_config(config: Any, classes: int | None) -> Any:
    """With random weights."""
    with _quiet():
        return _model_class(config, classes).from_config(config)


def _with_weights(config: Any, classes: int | None, source: str) -> tuple[Any, list[str]]:
    """The model, and the names of its weights that the file lacks: of a last layer, or of a pooling."""
    kind = _model_class(config, classes)
    options: dict[str, Any] = {"config": config, "ignore_mismatched_sizes": True, "output_loading_info": True}
    if Path(source).is_file():
        options["state_dict"] = read_safetensors(Path(source))
    with _quiet():
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


def _resample(module: nn.Module) -> None:
    module.register_forward_pre_hook(_with_resampling, with_kwargs=True)


def _with_resampling(_module: nn.Module, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return arguments, {**options, "interpolate_pos_encoding": True}


@torch.no_grad()
def _takes(module: nn.Module, size: int | None) -> bool:
    assert size is not None
    try:
        module.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError):
        return False
    finally:
        module.train()
    return True


def _config_size(config: Any) -> int:
    size = getattr(getattr(config, "vision_config", config), "image_size", None) or 224
    return int(size if isinstance(size, int) else max(size))


def _wants(source: str, config: Any, trained: bool) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Side, mean and std that the model's image processor has. Where there is no processor, a CLIP's and SigLIP's are known by
    their kind, others get ImageNet's."""
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    try:
        with _quiet():
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
def _quiet() -> Iterator[None]:
    """transformers tells of every new last layer, which is what was asked for."""
    logging = _transformers().logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"a network hf:NAME needs transformers ({error}): pip install 'cls2det[detr]'") from error
    return transformers
