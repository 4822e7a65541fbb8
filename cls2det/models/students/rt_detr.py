"""RT-DETRv2 and D-FINE of transformers, from configurations: no weights and no network are needed.

Both bring an image to a square, leave its pixels in [0, 1], and give one detection per query without non-maximum suppression.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.models.backbones import IMAGE_MEAN, IMAGE_STD, CompactResNet
from cls2det.models.students.hungarian import Body, HungarianDetector, import_transformers

AS_PUBLISHED = {
    "num_queries": 300,
    "decoder_layers": 3,
    "freeze_backbone_batch_norms": False,
    "initializer_bias_prior_prob": 0.01,
}
RTDETR_V2_R18 = {"encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5}
RESNET18_VD = {
    "hidden_sizes": [64, 128, 256, 512],
    "depths": [2, 2, 2, 2],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
DFINE_N = {
    "encoder_in_channels": [512, 1024],
    "feat_strides": [16, 32],
    "encode_proj_layers": [1],
    "encoder_hidden_dim": 128,
    "encoder_ffn_dim": 512,
    "hidden_expansion": 0.34,
    "depth_mult": 0.5,
    "d_model": 128,
    "decoder_in_channels": [128, 128],
    "decoder_ffn_dim": 512,
    "num_feature_levels": 2,
    "decoder_n_points": [6, 6],
}
HGNETV2_B0 = {
    "stem_channels": [3, 16, 16],
    "stage_in_channels": [16, 64, 256, 512],
    "stage_mid_channels": [16, 32, 64, 128],
    "stage_out_channels": [64, 256, 512, 1024],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, True, True],
    "stage_kernel_size": [3, 3, 5, 5],
    "stage_numb_of_layers": [3, 3, 3, 3],
    "use_learnable_affine_block": True,
    "embedding_size": 16,
    "hidden_sizes": [64, 256, 512, 1024],
    "depths": [1, 1, 2, 1],
    "out_features": ["stage3", "stage4"],
}
COMPACT = {
    "encoder_in_channels": [32, 64, 128],
    "hidden_expansion": 0.5,
    "encoder_hidden_dim": 64,
    "encoder_ffn_dim": 128,
    "encoder_attention_heads": 4,
    "d_model": 64,
    "decoder_in_channels": [64, 64, 64],
    "decoder_layers": 2,
    "decoder_ffn_dim": 128,
    "decoder_attention_heads": 4,
    "num_queries": 50,
    "num_denoising": 20,
    "initializer_bias_prior_prob": 0.01,
}


def rtdetr_v2_r18(classes: int, size: int, _weights: None = None) -> HungarianDetector:
    """RT-DETRv2-S as published: ResNet-18-vd, three decoder layers of 256 channels, 300 queries, 640 pixels; 20 M weights."""
    transformers = import_transformers()
    backbone = transformers.RTDetrResNetConfig(**RESNET18_VD)
    config = transformers.RTDetrV2Config(backbone_config=backbone, num_labels=classes, **AS_PUBLISHED | RTDETR_V2_R18)
    return _detector(transformers.RTDetrV2ForObjectDetection, config, square(size))


def dfine_n(classes: int, size: int, _weights: None = None) -> HungarianDetector:
    """D-FINE-N as published: HGNetv2-B0 at strides 16 and 32, three decoder layers of 128 channels, 640 pixels; 4 M weights."""
    transformers = import_transformers()
    backbone = transformers.HGNetV2Config(**HGNETV2_B0)
    config = transformers.DFineConfig(backbone_config=backbone, num_labels=classes, **AS_PUBLISHED | DFINE_N)
    return _detector(transformers.DFineForObjectDetection, config, square(size))


def rtdetr_v2_compact(classes: int, size: int, _weights: None = None) -> HungarianDetector:
    """RT-DETRv2 of 64 channels with two decoder layers and 50 queries, on the compact body at strides 8, 16 and 32.

    On 400 of the demo's scenes, 600 steps of 8 images bring its loss from 20 to 12, and its AP to 2.5: as DETR it learns slowly.
    """
    transformers = import_transformers()
    channels: list[int] = COMPACT["encoder_in_channels"]  # type: ignore[assignment]
    # A backbone that is replaced below, of the channels for which the projections are made.
    replaced = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=channels, depths=[1, 1, 1], out_features=["stage1", "stage2", "stage3"]
    )
    config = transformers.RTDetrV2Config(backbone_config=replaced, num_labels=classes, **COMPACT)
    detector = _detector(transformers.RTDetrV2ForObjectDetection, config, square(size, IMAGE_MEAN, IMAGE_STD))
    detector.network.model.backbone = Body(CompactResNet())
    return detector


def square(size: int, mean: list[float] | None = None, std: list[float] | None = None) -> GeneralizedRCNNTransform:
    """Every image to ``size`` by ``size`` pixels; without a mean and a deviation they stay in [0, 1]."""
    return GeneralizedRCNNTransform(
        size, size, fixed_size=(size, size), image_mean=mean or [0.0, 0.0, 0.0], image_std=std or [1.0, 1.0, 1.0]
    )


def _detector(build: type, config: Any, transform: GeneralizedRCNNTransform) -> HungarianDetector:
    hold_queries(config, transform)
    network = build(config)
    draw_weights(network)
    return HungarianDetector(network, transform)


def hold_queries(config: Any, transform: GeneralizedRCNNTransform) -> None:
    """No more queries than the maps have places, among which RT-DETR and D-FINE choose them: a small image has too few."""
    if not hasattr(config, "feat_strides") or config.learn_initial_query or transform.fixed_size is None:
        return
    multiple = transform.size_divisible
    sides = [-(-side // multiple) * multiple for side in transform.fixed_size]
    places = sum((sides[0] // stride) * (sides[1] // stride) for stride in config.feat_strides)
    config.num_queries = min(config.num_queries, places)


def draw_weights(network: Any) -> None:
    """Random weights as the authors of RT-DETR and D-FINE draw them: torch's own, and those of heads and attention.

    transformers draws linear and convolutional layers, and the scales of RT-DETR's batch norms, with a deviation of 0.01, for
    weights that are loaded over them.
    """
    own = (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm)
    for module in network.modules():
        if isinstance(module, own):
            module.reset_parameters()
    for module in network.modules():
        if not isinstance(module, own):
            network._init_weights(module)
    last = network.model.enc_bbox_head.layers[-1]
    for weight in (last.weight, last.bias):
        nn.init.zeros_(weight)
