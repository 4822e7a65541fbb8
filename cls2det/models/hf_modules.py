"""What is put around a model of transformers: embeddings of images, a last layer, and position embeddings of another size.

It imports no transformers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

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


def resample(module: nn.Module) -> None:
    module.register_forward_pre_hook(_with_resampling, with_kwargs=True)


def _with_resampling(_module: nn.Module, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return arguments, {**options, "interpolate_pos_encoding": True}


@torch.no_grad()
def takes(module: nn.Module, size: int | None) -> bool:
    assert size is not None
    try:
        module.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError):
        return False
    finally:
        module.train()
    return True
