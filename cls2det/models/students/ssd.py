"""SSD: 300 and 512 pixels on VGG-16, SSDLite on MobileNetV3 and V2, and a small one for two CPU cores."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torchvision.models import (
    MobileNet_V2_Weights,
    MobileNet_V3_Large_Weights,
    VGG16_Weights,
    detection,
    mobilenet_v2,
    mobilenet_v3_large,
    vgg16,
)
from torchvision.models.detection import _utils
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDHead, _vgg_extractor
from torchvision.models.detection.ssdlite import SSDLiteHead, _extra_block, _mobilenet_extractor
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d

from cls2det.models.backbones import IMAGE_MEAN, IMAGE_STD, CompactResNet

if TYPE_CHECKING:
    from torchvision.models.detection.ssd import SSDFeatureExtractorVGG


def ssd_compact(classes: int, size: int, _weights: None = None, width: int = 16) -> SSD:
    """SSD with default boxes of 0.15, 0.25 and 0.40 of the image at strides 8, 16 and 32: 0.43 M parameters for 10 classes."""
    anchors = DefaultBoxGenerator([[2], [2], [2]], scales=[0.15, 0.25, 0.40, 0.60])
    return SSD(
        CompactResNet(width),
        anchors,
        (size, size),
        classes + 1,
        image_mean=IMAGE_MEAN,
        image_std=IMAGE_STD,
        detections_per_img=100,
    )


def ssd300_vgg16(classes: int, _size: int, weights: VGG16_Weights | None) -> SSD:
    """torchvision's SSD300, inputs of VGG's scale (mean subtracted, not divided: about -124 to 151)."""
    return detection.ssd300_vgg16(weights=None, weights_backbone=weights, num_classes=classes + 1)


def ssd512_vgg16(classes: int, _size: int, weights: VGG16_Weights | None) -> SSD:
    """SSD512 of the paper: seven maps of 64, 32, 16, 8, 4, 2 and 1 cells, and its default boxes for COCO (4 to 90 %)."""
    backbone = _vgg_extractor(vgg16(weights=weights), highres=True, trainable_layers=4 if weights else 5)
    _halve_the_last_maps(backbone)
    anchors = DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2]],
        scales=[0.04, 0.10, 0.26, 0.42, 0.58, 0.74, 0.90, 1.06],
        steps=[8, 16, 32, 64, 128, 256, 512],
    )
    scale = {"image_mean": [0.48235, 0.45882, 0.40784], "image_std": [1 / 255, 1 / 255, 1 / 255]}
    return SSD(backbone, anchors, (512, 512), classes + 1, **scale)


def _halve_the_last_maps(backbone: SSDFeatureExtractorVGG) -> None:
    """torchvision shrinks 8 cells to 6, 4 and 1 by leaving out the padding; SSD512 halves them to 4, 2 and 1."""
    for conv, stride in zip((block[2] for block in backbone.extra[3:6]), (2, 2, 1), strict=True):
        conv.stride, conv.padding = (stride, stride), (1, 1)


def ssdlite320_mobilenet_v3_large(classes: int, _size: int, weights: MobileNet_V3_Large_Weights | None) -> SSD:
    """torchvision's SSDLite, always with MobileNetV3's full tail.

    torchvision's function halves the last blocks when it has no ImageNet weights; then a network's shape, and with it what a
    saved one can be loaded into, would hang on whether a download worked.
    """
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    backbone = _mobilenet_extractor(mobilenet_v3_large(weights=weights, norm_layer=norm), 6, norm)
    anchors = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95)
    channels = _utils.retrieve_out_channels(backbone, (320, 320))
    return SSD(
        backbone,
        anchors,
        (320, 320),
        classes + 1,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        head=SSDLiteHead(channels, anchors.num_anchors_per_location(), classes + 1, norm),
        score_thresh=0.001,
        nms_thresh=0.55,
        detections_per_img=300,
        topk_candidates=300,
    )


class MobileNetV2Maps(nn.Module):
    """MobileNetV2's maps at strides 16 and 32 (96 and 1280 channels), and one of 256 channels at stride 64.

    With ImageNet weights, everything up to stride 4 is frozen, its batch norm too: a third of a step's time.
    """

    out_channels = (96, 1280, 256)

    def __init__(self, weights: MobileNet_V2_Weights | None):
        super().__init__()
        self.body = mobilenet_v2(weights=weights).features
        if weights:
            frozen = mobilenet_v2(norm_layer=FrozenBatchNorm2d).features[:4].requires_grad_(False)
            frozen.load_state_dict(self.body[:4].state_dict())
            for place, block in enumerate(frozen):
                self.body[place] = block
        self.extra = _extra_block(1280, 256, partial(nn.BatchNorm2d, eps=0.001, momentum=0.03))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        middle = self.body[:14](images)
        last = self.body[14:](middle)
        return OrderedDict([("0", middle), ("1", last), ("2", self.extra(last))])


def ssdlite_mobilenet_v2(classes: int, size: int, weights: MobileNet_V2_Weights | None) -> SSD:
    """SSDLite of three maps, after MobileNetV2 (Sandler et al., CVPR 2018, sec. 6.2): for a few large objects per picture.

    Default boxes of 0.2, 0.33 and 0.5 of the side. With 224 pixels it trains at some 10 images per second on one CPU core.
    """
    backbone, norm = MobileNetV2Maps(weights), partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    anchors = DefaultBoxGenerator([[2, 3] for _ in range(3)], scales=[0.2, 0.33, 0.5, 0.75])
    head = SSDLiteHead(list(backbone.out_channels), anchors.num_anchors_per_location(), classes + 1, norm)
    return SSD(backbone, anchors, (size, size), classes + 1, head=head, detections_per_img=100)


class MobileNetV2Pyramid(nn.Module):
    """``MobileNetV2Maps`` under a feature pyramid of 256 channels."""

    def __init__(self, weights: MobileNet_V2_Weights | None):
        super().__init__()
        self.body = MobileNetV2Maps(weights)
        self.fpn = FeaturePyramidNetwork(list(self.body.out_channels), 256)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.fpn(self.body(images))
        return maps


def ssd_mobilenet_v2_fpn(classes: int, size: int, weights: MobileNet_V2_Weights | None) -> SSD:
    """To teach ``ssdlite_mobilenet_v2``: its maps, default boxes and body, with a pyramid and heads of full convolutions."""
    anchors = DefaultBoxGenerator([[2, 3] for _ in range(3)], scales=[0.2, 0.33, 0.5, 0.75])
    head = SSDHead([256] * 3, anchors.num_anchors_per_location(), classes + 1)
    return SSD(MobileNetV2Pyramid(weights), anchors, (size, size), classes + 1, head=head, detections_per_img=100)
