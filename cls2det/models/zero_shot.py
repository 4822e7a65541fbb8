"""Classifiers that are not trained: the texts of a CLIP or SigLIP of transformers are the last layer.

    network, head = load_zero_shot("openai/clip-vit-base-patch32", ["cat", "traffic light"])

A class has the mean of the unit embeddings of its prompts, at unit length (Radford et al., ICML 2021, §3.1.4). A logit is its
cosine with the image's embedding, times the model's own scale, and for a SigLIP plus its own bias. Texts are encoded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cls2det.errors import first_lines
from cls2det.models.hf_networks import quiet, read_model, transformers_library
from cls2det.models.networks import ImageNetwork, not_fetched

PROMPTS = ("a photo of a {}.",)
PREFIX = "zero-shot:"


class ZeroShotClassifier(nn.Module):
    """Logits (N, C) of images: ``scale * cosine + bias``.

    Args:
        encoder: from images to embeddings (N, D)
        texts: (C, D), of unit length
        scale: of the cosines
        bias: of every logit
    """

    texts: Tensor

    def __init__(self, encoder: nn.Module, texts: Tensor, scale: float, bias: float):
        super().__init__()
        self.encoder, self.scale, self.bias = encoder, scale, bias
        self.register_buffer("texts", texts)

    def forward(self, images: Tensor) -> Tensor:
        embeddings = self.encoder(images)
        with torch.autocast(embeddings.device.type, enabled=False):  # the scale is about 100: bfloat16 errs by 0.2
            cosines = F.normalize(embeddings.float(), dim=1) @ self.texts.T.float()
            return self.scale * cosines + self.bias


def load_zero_shot(
    name: str,
    classes: Sequence[str],
    prompts: Sequence[str] | None = None,
    *,
    size: int | None = None,
    weights: str = "pretrained",
) -> tuple[ImageNetwork, str]:
    """A zero-shot classifier, and the loss whose logits it gives: "ce" (a CLIP) or "joint" (a SigLIP, which has a bias).

    A SigLIP's sigmoids are probabilities, and a softmax of its logits is too: the bias falls out. A CLIP's logits have no
    zero, so no sigmoid of them means anything.

    Args:
        name: of the hub, or a folder, with a tokenizer; "zero-shot:" before it is left out
        classes: names of the classes, as texts; an underscore is read as a blank
        prompts: texts with {} for a name; None is "a photo of a {}."
        size: side of the images that it will get; None is its own
        weights: "pretrained", or "none" for random ones

    Raises:
        ValueError: a model without texts, a prompt without {}
        FileNotFoundError, ConnectionError, ImportError: as ``networks.load_network``
    """
    name, prompts = name.removeprefix(PREFIX), tuple(prompts or PROMPTS)
    if wrong := [prompt for prompt in prompts if "{}" not in prompt]:
        raise ValueError(f"a prompt has {{}} in the place of a class's name, found {wrong[0]!r}")
    loaded = read_model(name, None, weights)
    model = loaded.body
    if not hasattr(model, "get_text_features") or not hasattr(model, "logit_scale"):
        raise ValueError(f"zero-shot:{name} is a {type(model).__name__}, which knows no texts; expected a CLIP or SigLIP")
    tokenizer, known = _tokenizer(name), model.config.text_config.vocab_size
    if len(tokenizer) < known / 2:  # transformers makes an empty one where its files are missing
        raise ValueError(f"the tokenizer of {name} knows {len(tokenizer)} words, and the model {known}: its files are missing")
    texts = encode_texts(model.eval(), tokenizer, classes, prompts)
    scale = float(model.logit_scale.detach().exp())
    bias = float(model.logit_bias.detach()) if hasattr(model, "logit_bias") else None
    encoder = loaded.network(None, size)
    module = ZeroShotClassifier(encoder.module, texts, scale, bias or 0.0).eval().requires_grad_(False)
    network = ImageNetwork(module, encoder.mean, encoder.std, encoder.size, encoder.started_from, {})
    return network, "ce" if bias is None else "joint"


@torch.no_grad()
def encode_texts(model: Any, tokenizer: Any, classes: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """(C, D), of unit length: the mean of the unit embeddings of each class's prompts."""
    length = model.config.text_config.max_position_embeddings
    is_siglip = hasattr(model, "logit_bias")  # trained on texts that are padded to their full length, without a mask
    names = ("input_ids",) if is_siglip else ("input_ids", "attention_mask")
    rows, padding = [], "max_length" if is_siglip else True
    names_of: dict[Any, str] = {}
    for name in classes:
        texts = [prompt.replace("{}", name.replace("_", " ")) for prompt in prompts]
        tokens = tokenizer(texts, return_tensors="pt", truncation=True, max_length=length, padding=padding)
        twin = names_of.setdefault(tuple(tokens["input_ids"].flatten().tolist()), name)
        if twin != name:
            raise ValueError(f"the tokenizer makes the same of {twin!r} and {name!r}: it knows neither; give them other names")
        result = model.get_text_features(**{key: tokens[key] for key in names})
        embeddings = result if isinstance(result, Tensor) else result.pooler_output
        rows.append(F.normalize(F.normalize(embeddings.float(), dim=1).mean(0), dim=0))
    return torch.stack(rows)


def _tokenizer(name: str) -> Any:
    with quiet():
        try:
            return transformers_library().AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, ImportError) as error:
            if Path(name).is_dir():
                raise FileNotFoundError(f"{name} has no tokenizer that can be read: {first_lines(error, 1)}") from None
            raise not_fetched(f"the tokenizer of hf:{name}", error) from None
