"""Small, randomly started object detectors of transformers, a builder per family; their pictures are 64 pixels square."""

from __future__ import annotations

from collections.abc import Callable

import transformers as hf
from torch import nn

CLASSES = 5
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
LEVELS = ["stage2", "stage3", "stage4"]
SMALL = {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 32, "num_queries": 12, "num_labels": CLASSES}
ENCODER = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_attention_heads": 2}
NO_TIMM = {"use_timm_backbone": False, "use_pretrained_backbone": False}
WIDE = {"decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 4, "group_detr": 2}
RT = {
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [8, 16, 16],
    "feat_strides": [8, 16, 32],
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_in_channels": [32, 32, 32],
    "decoder_attention_heads": 2,
    "num_denoising": 10,
}


def _detr(model: type, config: type, features: list[str], **changes: object) -> nn.Module:
    backbone = hf.ResNetConfig(**RESNET, out_features=features)
    return model(config(backbone_config=backbone, **NO_TIMM, **SMALL, **ENCODER, **changes))


def _dab() -> nn.Module:
    settings = {name: value for name, value in SMALL.items() if name != "d_model"}
    backbone = hf.ResNetConfig(**RESNET, out_features=["stage4"])
    return hf.DabDetrForObjectDetection(
        hf.DabDetrConfig(backbone_config=backbone, hidden_size=32, **NO_TIMM, **settings, **ENCODER)
    )


def _rt_detr(model: type, config: type) -> nn.Module:
    return model(config(backbone_config=hf.RTDetrResNetConfig(**RESNET, out_features=LEVELS), **SMALL, **RT))


def _d_fine() -> nn.Module:
    stages = {"stage_in_channels": [8, 16, 16, 16], "stage_mid_channels": [8] * 4, "stage_out_channels": [16] * 4}
    blocks = {"stage_num_blocks": [1] * 4, "stage_numb_of_layers": [1] * 4, "stage_kernel_size": [3] * 4}
    shape = {"stage_downsample": [False, True, True, True], "stage_light_block": [False, False, True, True]}
    widths = {"stem_channels": [3, 8, 8], "embedding_size": 8, "hidden_sizes": [16] * 4, "depths": [1] * 4}
    backbone = hf.HGNetV2Config(**stages, **blocks, **shape, **widths, out_features=LEVELS)
    return hf.DFineForObjectDetection(
        hf.DFineConfig(backbone_config=backbone, **SMALL, **RT | {"encoder_in_channels": [16] * 3}, layer_scale=1.0)
    )


def _lw_detr() -> nn.Module:
    vit = {"num_hidden_layers": 2, "num_attention_heads": 2, "window_block_indices": [0], "out_indices": [1, 2]}
    backbone = hf.LwDetrViTConfig(hidden_size=32, image_size=64, pretrain_image_size=64, patch_size=16, num_windows=4, **vit)
    return hf.LwDetrForObjectDetection(
        hf.LwDetrConfig(backbone_config=backbone, projector_scale_factors=[1.0], **SMALL, **WIDE)
    )


def _rf_detr() -> nn.Module:
    vit = {"num_hidden_layers": 2, "num_attention_heads": 2, "out_features": ["stage1", "stage2"]}
    backbone = hf.RfDetrDinov2Config(hidden_size=32, image_size=64, patch_size=16, num_windows=2, **vit)
    return hf.RfDetrForObjectDetection(hf.RfDetrConfig(backbone_config=backbone, **SMALL, **WIDE))


def _yolos() -> nn.Module:
    vit = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return hf.YolosForObjectDetection(hf.YolosConfig(**vit, image_size=[64, 64], num_detection_tokens=12, num_labels=CLASSES))


# Family: how to build it, the kind of its head, and its background column.
DETECTORS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "DETR": (
        lambda: _detr(hf.DetrForObjectDetection, hf.DetrConfig, ["stage4"], auxiliary_loss=True),
        "softmax",
        "last",
    ),
    "Conditional DETR": (
        lambda: _detr(hf.ConditionalDetrForObjectDetection, hf.ConditionalDetrConfig, ["stage4"]),
        "sigmoid",
        "none",
    ),
    "DAB-DETR": (_dab, "sigmoid", "none"),
    "Deformable DETR": (
        lambda: _detr(hf.DeformableDetrForObjectDetection, hf.DeformableDetrConfig, LEVELS, num_feature_levels=3),
        "sigmoid",
        "none",
    ),
    "RT-DETR": (lambda: _rt_detr(hf.RTDetrForObjectDetection, hf.RTDetrConfig), "sigmoid", "none"),
    "RT-DETRv2": (lambda: _rt_detr(hf.RTDetrV2ForObjectDetection, hf.RTDetrV2Config), "sigmoid", "none"),
    "D-FINE": (_d_fine, "sigmoid", "none"),
    "LW-DETR": (_lw_detr, "sigmoid", "none"),
    "RF-DETR": (_rf_detr, "sigmoid", "none"),
    "YOLOS": (_yolos, "softmax", "last"),
    "Table Transformer": (
        lambda: _detr(hf.TableTransformerForObjectDetection, hf.TableTransformerConfig, ["stage4"]),
        "softmax",
        "last",
    ),
}
