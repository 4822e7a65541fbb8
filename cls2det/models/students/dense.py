"""RetinaNet and FCOS: a sigmoid per class (column = label, column 0 unused) at every place of a feature pyramid."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torchvision.models import MobileNet_V2_Weights, ResNet50_Weights, detection
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead

from cls2det.models.backbones import IMAGE_MEAN, IMAGE_STD
from cls2det.models.students.faster_rcnn import image_sides
from cls2det.models.students.pyramids import CompactPyramid, SmallMobileNetV2Pyramid

SCALE = {"image_mean": IMAGE_MEAN, "image_std": IMAGE_STD}


def without_class_0(model: RetinaNet | FCOS) -> RetinaNet | FCOS:
    """Column 0 starts at a probability of 5e-5 where the others start at 0.01: an early detector reports no label 0.

    Its target is always 0, so it stays there; torchvision leaves this to training.
    """
    logits = model.head.classification_head.cls_logits
    with torch.no_grad():
        logits.bias.view(-1, model.head.classification_head.num_classes)[:, 0] = -10.0
    return model


def retinanet_resnet50_fpn(classes: int, size: int, weights: ResNet50_Weights | None) -> RetinaNet:
    model = detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=weights, num_classes=classes + 1, **image_sides(size)
    )
    return without_class_0(model)


def fcos_resnet50_fpn(classes: int, size: int, weights: ResNet50_Weights | None) -> FCOS:
    model = detection.fcos_resnet50_fpn(weights=None, weights_backbone=weights, num_classes=classes + 1, **image_sides(size))
    return without_class_0(model)


def retinanet_compact(classes: int, size: int, _weights: None = None, width: int = 16) -> RetinaNet:
    """Anchors from 12 to 76 pixels, for objects of 14 to 48 in images of 96: 1.5 strides, where RetinaNet on COCO takes 4."""
    return _small_retinanet(CompactPyramid(width), classes, size, ((12, 15, 19), (24, 30, 38), (48, 60, 76)), **SCALE)


def retinanet_mobilenet_v2_small(classes: int, size: int, weights: MobileNet_V2_Weights | None) -> RetinaNet:
    """Anchors from 24 to 152 pixels, for objects of 30 to 150 in images of 224: three strides."""
    sizes = ((24, 30, 38), (48, 60, 76), (96, 121, 152))
    return _small_retinanet(SmallMobileNetV2Pyramid(weights), classes, size, sizes)


def _small_retinanet(
    backbone: CompactPyramid | SmallMobileNetV2Pyramid,
    classes: int,
    size: int,
    sizes: tuple[tuple[int, ...], ...],
    **scale: list[float],
) -> RetinaNet:
    """Of three maps. The head has group norm (as in torchvision's retinanet_resnet50_fpn_v2): its weights start at random."""
    head = RetinaNetHead(backbone.out_channels, 9, classes + 1, norm_layer=partial(nn.GroupNorm, 32))
    model = RetinaNet(
        backbone,
        classes + 1,
        **image_sides(size),
        **scale,
        anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3),
        head=head,
        score_thresh=0.01,
        detections_per_img=100,
        topk_candidates=200,
    )
    return without_class_0(model)


def fcos_compact(classes: int, size: int, _weights: None = None, width: int = 16) -> FCOS:
    """Strides 8, 16 and 32; a place answers for objects whose far side is up to 64, 128 and more pixels away."""
    backbone = CompactPyramid(width)
    model = FCOS(
        backbone,
        classes + 1,
        **image_sides(size),
        **SCALE,
        anchor_generator=AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3),
        head=FCOSHead(backbone.out_channels, 1, classes + 1, num_convs=2),
        score_thresh=0.01,
        topk_candidates=200,
    )
    return without_class_0(model)
