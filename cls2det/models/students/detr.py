"""DETR: its published size, and a small one. Bodies are torchvision's ResNet-50 and the compact one, in place of transformers'.

So they have the weights, the frozen batch norm and the ``load_backbone`` of the other students.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torchvision.models import ResNet50_Weights
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.models.backbones import IMAGE_MEAN, IMAGE_STD, CompactResNet
from cls2det.models.students.faster_rcnn import image_sides
from cls2det.models.students.hungarian import Body, HungarianDetector, import_transformers
from cls2det.models.students.pyramids import resnet50_last_map

if TYPE_CHECKING:
    from torchvision.models.resnet import BasicBlock

COMPACT = {
    "d_model": 64,
    "num_queries": 25,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256,
    "dropout": 0.0,  # so small a network has nothing to spare
}


def detr_resnet50(classes: int, size: int, weights: ResNet50_Weights | None) -> HungarianDetector:
    """DETR as published: six encoder and decoder layers of 256 channels, 100 queries, ResNet-50 at stride 32."""
    transform = GeneralizedRCNNTransform(
        **image_sides(size), image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    return _detr(resnet50_last_map(weights), 2048, classes, transform)


def detr_compact(classes: int, size: int, _weights: None = None) -> HungarianDetector:
    """Three encoder and decoder layers of 64 channels and 25 queries on the compact body at stride 16.

    Its last stage does not halve the map (DETR's own "DC5", without the dilation): three by three cells, all that stride 32
    leaves of 96 pixels, would be too few. The weights are those of the other compact students all the same.

    DETR learns slowly: after 4000 steps of 16 images its losses have fallen and its AP is still 0, where the other compact
    students have theirs after 600. It is there to try the machinery on.
    """
    body = CompactResNet()
    last: BasicBlock = body.stages[-1]
    last.conv1.stride = last.downsample[0].stride = (1, 1)
    transform = GeneralizedRCNNTransform(**image_sides(size), image_mean=IMAGE_MEAN, image_std=IMAGE_STD)
    return _detr(body, body.out_channels[-1], classes, transform, **COMPACT)


def _detr(
    body: nn.Module, channels: int, classes: int, transform: GeneralizedRCNNTransform, **settings: Any
) -> HungarianDetector:
    """transformers' DETR on a body whose last map, of ``channels``, is used."""
    transformers = import_transformers()
    # A backbone of one layer, replaced below, of the channels for which DETR makes its projection.
    replaced = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[channels], depths=[1], out_features=["stage1"])
    config = transformers.DetrConfig(
        backbone_config=replaced, use_timm_backbone=False, num_labels=classes, auxiliary_loss=True, **settings
    )
    network = transformers.DetrForObjectDetection(config)
    draw_weights(network)
    network.model.backbone = Body(body)
    return HungarianDetector(network, transform)


def draw_weights(network: Any) -> None:
    """Random weights as DETR's authors draw them.

    transformers draws all with a deviation of 0.02, for weights that are loaded over them: queries are alike, attention is
    flat, and 1500 steps of ``detr_compact`` leave the losses where they began.
    """
    for part in (network.model.encoder, network.model.decoder):
        for weight in part.parameters():
            if weight.dim() > 1:
                nn.init.xavier_uniform_(weight)
    nn.init.normal_(network.model.query_position_embeddings.weight)
    for layer in (network.model.input_projection, network.class_labels_classifier, *network.bbox_predictor.layers):
        layer.reset_parameters()
