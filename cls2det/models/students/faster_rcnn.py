"""Faster R-CNN with a feature pyramid, on ResNet-50, quartered ResNet-50, MobileNetV2, and small for two CPU cores."""

from __future__ import annotations

from torchvision.models import MobileNet_V2_Weights, ResNet50_Weights, detection
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from cls2det.models.backbones import IMAGE_MEAN, IMAGE_STD, narrow_resnet
from cls2det.models.students.pyramids import CompactPyramid, SmallMobileNetV2Pyramid, mobilenet_v2_pyramid


def image_sides(size: int) -> dict[str, int]:
    """The shorter side is brought to ``size``, the longer one held to 5/3 of it: 800 and 1333, as on COCO."""
    return {"min_size": size, "max_size": round(size * 1333 / 800)}


def fasterrcnn_resnet50_fpn(classes: int, size: int, weights: ResNet50_Weights | None) -> FasterRCNN:
    return detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=weights, num_classes=classes + 1, **image_sides(size)
    )


def fasterrcnn_qr50_fpn(classes: int, size: int, _weights: None = None) -> FasterRCNN:
    """ResNet-50 with every width a quarter; the pyramid keeps its 256 channels and the heads their size.

    The paper narrows the backbone; with the rest as it is, the two ResNet-50 students differ in that alone. There are no
    ImageNet weights of it: train ``build_classifier("resnet50", 1000, width=16)`` and ``load_backbone``.
    """
    backbone = _resnet_fpn_extractor(narrow_resnet("resnet50", width=16, classes=1), trainable_layers=5)
    return FasterRCNN(backbone, classes + 1, **image_sides(size))


def fasterrcnn_mobilenet_v2_fpn(classes: int, size: int, weights: MobileNet_V2_Weights | None) -> FasterRCNN:
    return FasterRCNN(mobilenet_v2_pyramid(weights), classes + 1, **image_sides(size))


def fasterrcnn_compact(classes: int, size: int, _weights: None = None, width: int = 16) -> FasterRCNN:
    """For objects of 14 to 48 pixels in images of 96: anchors of 16, 32 and 48, few proposals, small heads."""
    return _small(CompactPyramid(width), classes, size, (16, 32, 48), image_mean=IMAGE_MEAN, image_std=IMAGE_STD)


def fasterrcnn_mobilenet_v2_small(classes: int, size: int, weights: MobileNet_V2_Weights | None) -> FasterRCNN:
    """For objects of 30 to 150 pixels in images of 224: anchors of 32, 64 and 128, few proposals, small heads."""
    return _small(SmallMobileNetV2Pyramid(weights), classes, size, (32, 64, 128))


def _small(
    backbone: CompactPyramid | SmallMobileNetV2Pyramid,
    classes: int,
    size: int,
    anchors: tuple[int, int, int],
    **scale: list[float],
) -> FasterRCNN:
    """Of three maps and their anchors. All regions are pooled from stride 8 (torchvision takes a coarser map from 224 pixels on)."""
    return FasterRCNN(
        backbone,
        **image_sides(size),
        **scale,
        rpn_anchor_generator=AnchorGenerator(tuple((side,) for side in anchors), ((0.5, 1.0, 2.0),) * 3),
        rpn_pre_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=100,
        rpn_batch_size_per_image=64,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], output_size=5, sampling_ratio=2),
        box_head=TwoMLPHead(backbone.out_channels * 5 * 5, 256),
        box_predictor=FastRCNNPredictor(256, classes + 1),
        box_score_thresh=0.01,
        box_batch_size_per_image=64,
    )
