"""Small networks of transformers and timm in local folders, as a user without a network has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

SIZE = 64  # of the images that they were made for
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 16,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
WORDS = ["<pad>", "<end>", "<unknown>", "a", "photo", "of", "the", "red", "green", "blue", "traffic", "light", "."]
PROCESSOR = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.2, 0.3], "size": {"height": SIZE, "width": SIZE}}


def hf_model(kind: str) -> nn.Module:
    """A randomly started model of transformers: "clip", "siglip", "vit", "dinov3", "resnet"."""
    import transformers as hf

    texts = {**TEXT, "vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    builders: dict[str, Any] = {
        "clip": lambda: hf.CLIPModel(hf.CLIPConfig(vision_config=VISION, text_config=texts, projection_dim=24)),
        "siglip": lambda: hf.SiglipModel(hf.SiglipConfig(vision_config=VISION, text_config=texts)),
        "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**VISION, num_labels=9)),
        "dinov3": lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**VISION)),
        "resnet": lambda: hf.ResNetForImageClassification(
            hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic")
        ),
    }
    torch.manual_seed(0)
    model: nn.Module = builders[kind]()
    return model


def hf_folder(folder: Path, kind: str) -> Path:
    """What ``save_pretrained`` writes of a model, of its image processor, and of a tokenizer that knows ``WORDS``."""
    folder.mkdir(parents=True, exist_ok=True)
    hf_model(kind).save_pretrained(folder)  # type: ignore[operator]
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    if kind in ("clip", "siglip"):
        _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "<unknown>"))
    ending = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    for part, value in (("pre_tokenizer", pre_tokenizers.BertPreTokenizer()), ("post_processor", ending)):
        setattr(tokenizer, part, value)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>")


def timm_file(file: Path, name: str, classes: int = 9) -> Path:
    """Random weights of a timm network, as safetensors."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model(name, num_classes=classes).state_dict(), file)
    return file
