"""Backbones with a feature pyramid, shared by Faster R-CNN, RetinaNet and FCOS.

Batch norm: with ImageNet weights it is frozen and so is everything up to stride 4, as torchvision does: detectors train with
few images per GPU, too few for statistics as good as those that came with the weights. Random weights have no statistics worth
keeping, and a ResNet with the identity in place of normalisation does not train, so there it is live and nothing is frozen.
Either state dict loads into the other.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, ResNet50_Weights, mobilenet_v2, resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from cls2det.models.backbones import CompactResNet


class CompactPyramid(nn.Module):
    """The compact body under a feature pyramid: maps of 64 channels (4 times the body's width) at strides 8, 16 and 32."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.body = CompactResNet(width)
        self.out_channels = 4 * width  # the least that the heads' group norm of 32 groups divides well
        self.fpn = FeaturePyramidNetwork(self.body.out_channels, self.out_channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.fpn(self.body(images))
        return maps


class SmallMobileNetV2Pyramid(nn.Module):
    """MobileNetV2's maps at strides 8, 16 and 32 under a pyramid of 64 channels, for two CPU cores."""

    out_channels = 64

    def __init__(self, weights: MobileNet_V2_Weights | None):
        super().__init__()
        self.body = IntermediateLayerGetter(_mobilenet_v2(weights), {"6": "0", "13": "1", "18": "2"})
        self.fpn = FeaturePyramidNetwork([32, 96, 1280], self.out_channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.fpn(self.body(images))
        return maps


def resnet50_last_map(weights: ResNet50_Weights | None) -> IntermediateLayerGetter:
    """ResNet-50 up to its last map (2048 channels, stride 32)."""
    network = resnet50(weights=weights, norm_layer=FrozenBatchNorm2d if weights else nn.BatchNorm2d)
    if weights:
        for part in (network.conv1, network.layer1):
            part.requires_grad_(False)
    return IntermediateLayerGetter(network, {"layer4": "0"})


def mobilenet_v2_pyramid(weights: MobileNet_V2_Weights | None) -> BackboneWithFPN:
    """MobileNetV2's maps at strides 4, 8, 16 and 32 (24, 32, 96 and 1280 channels) under a pyramid of 256 channels."""
    levels = {"3": "0", "6": "1", "13": "2", "18": "3"}  # the last block of each stride
    return BackboneWithFPN(_mobilenet_v2(weights), levels, [24, 32, 96, 1280], 256, extra_blocks=LastLevelMaxPool())


def _mobilenet_v2(weights: MobileNet_V2_Weights | None) -> nn.Sequential:
    features: nn.Sequential = mobilenet_v2(
        weights=weights, norm_layer=FrozenBatchNorm2d if weights else nn.BatchNorm2d
    ).features
    if weights:
        features[:4].requires_grad_(False)
    return features
