"""DETR of Hugging Face transformers, called like a torchvision detector.

transformers (``pip install 'cls2det[detr]'``) is imported when a DETR is built, not before. The body is torchvision's
ResNet-50, or the compact one, in place of transformers' own: the same weights, the same frozen batch norm and the same
``load_backbone`` as for the other students.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_convert, clip_boxes_to_image

from cls2det.models.backbones import IMAGE_MEAN, IMAGE_STD, CompactResNet
from cls2det.models.students.faster_rcnn import image_sides
from cls2det.models.students.pyramids import resnet50_last_map

if TYPE_CHECKING:
    from torchvision.models.resnet import BasicBlock
    from transformers import DetrForObjectDetection

Matches = list[tuple[Tensor, Tensor]]  # per image: queries (n,), and the ground truth (n,) that each is matched to


class Detr(nn.Module):
    """transformers' DETR between torchvision's transform and torchvision's form of losses and detections.

    Args:
        body: gives maps by name, the last of them is used
        channels: of that map
        classes: foreground classes; the class logits have one column more, the last, for "no object"
        transform: normalises, resizes and pads
        settings: of ``transformers.DetrConfig``
    """

    def __init__(self, body: nn.Module, channels: int, classes: int, transform: GeneralizedRCNNTransform, **settings: Any):
        super().__init__()
        transformers = _transformers()
        # A backbone of one layer, replaced below, of the channels for which DETR makes its projection.
        replaced = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[channels], depths=[1], out_features=["stage1"])
        config = transformers.DetrConfig(
            backbone_config=replaced, use_timm_backbone=False, num_labels=classes, auxiliary_loss=True, **settings
        )
        self.network: DetrForObjectDetection = transformers.DetrForObjectDetection(config)
        _draw_weights(self.network)
        self.network.model.backbone = _Encoder(body)
        self.transform = transform

    @property
    def backbone(self) -> _Encoder:
        encoder: _Encoder = self.network.model.backbone
        return encoder

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in eval mode; see ``cls2det.models.students``."""
        torch._assert(not self.training or targets is not None, "targets should not be none when in training mode")
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        batch, targets = self.transform(images, targets)
        layers = self.predict(batch.tensors, batch.image_sizes)
        if self.training:
            labels = _labels(targets, batch.image_sizes)
            return self.compute_loss(labels, layers, [self.match(layer, labels) for layer in layers])
        detections: list[dict[str, Tensor]] = self.transform.postprocess(
            _detections(layers[-1], batch.image_sizes), batch.image_sizes, sizes
        )
        return detections

    def predict(self, images: Tensor, image_sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Of each decoder layer, "logits" (B, Q, C + 1) and "pred_boxes" (B, Q, 4): centre and sides in shares of the image.

        Args:
            images: (B, 3, H, W), normalised and padded
            image_sizes: (height, width) of each without its padding, which attention leaves out
        """
        mask = images.new_zeros((len(images), *images.shape[-2:]))
        for row, (height, width) in zip(mask, image_sizes, strict=True):
            row[:height, :width] = 1
        outputs = self.network.model(images, pixel_mask=mask)
        hidden = [*outputs.intermediate_hidden_states[:-1], outputs.last_hidden_state]
        return [
            # in float32 under mixed precision too: the matching goes through numpy, which has no bfloat16
            {
                "logits": self.network.class_labels_classifier(state).float(),
                "pred_boxes": self.network.bbox_predictor(state).float().sigmoid(),
            }
            for state in hidden
        ]

    def match(self, outputs: dict[str, Tensor], labels: list[dict[str, Tensor]]) -> Matches:
        """The one query for each ground truth that transformers' Hungarian matching chooses."""
        if not any(len(label["boxes"]) for label in labels):  # on which the matcher stumbles
            empty = torch.empty(0, dtype=torch.int64)
            return [(empty, empty) for _ in labels]
        config = self.network.config
        matcher = loss_functions().HungarianMatcher(
            class_cost=config.class_cost, bbox_cost=config.bbox_cost, giou_cost=config.giou_cost
        )
        matches: Matches = matcher(outputs, labels)
        return matches

    def compute_loss(
        self, labels: list[dict[str, Tensor]], layers: list[dict[str, Tensor]], matches: list[Matches]
    ) -> dict[str, Tensor]:
        """DETR's three losses, with DETR's weights, summed over the decoder layers."""
        config, device = self.network.config, layers[0]["logits"].device
        criterion = loss_functions().ImageLoss(None, config.num_labels, config.eos_coefficient, []).to(device)
        count = max(1, sum(len(label["boxes"]) for label in labels))
        terms = [
            criterion.loss_labels(outputs, labels, matched, count) | criterion.loss_boxes(outputs, labels, matched, count)
            for outputs, matched in zip(layers, matches, strict=True)
        ]
        return {
            "classification": torch.stack([term["loss_ce"] for term in terms]).sum(),
            "bbox_regression": config.bbox_loss_coefficient * torch.stack([term["loss_bbox"] for term in terms]).sum(),
            "bbox_giou": config.giou_loss_coefficient * torch.stack([term["loss_giou"] for term in terms]).sum(),
        }


class _Encoder(nn.Module):
    """What transformers' DETR asks of a backbone: a map, and the mask of its real pixels."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, images: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        features = list(self.body(images).values())[-1]
        return [(features, F.interpolate(mask[None].float(), size=features.shape[-2:])[0].bool())]


def _draw_weights(network: DetrForObjectDetection) -> None:
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


def pixel_boxes(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Boxes (..., 4) as centre and sides in shares of an image, to xyxy in pixels of images of (..., 2) height and width."""
    corners: Tensor = box_convert(boxes, "cxcywh", "xyxy")
    return corners * image_sizes.flip(-1).repeat(*[1] * (image_sizes.dim() - 1), 2)


def _labels(targets: list[dict[str, Tensor]], image_sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
    """torchvision's targets in transformers' form: classes from 0, boxes as centre and sides in shares of the image."""
    return [
        {
            "class_labels": target["labels"] - 1,
            "boxes": box_convert(target["boxes"], "xyxy", "cxcywh") / target["boxes"].new_tensor([width, height] * 2),
        }
        for target, (height, width) in zip(targets, image_sizes, strict=True)
    ]


def _detections(outputs: dict[str, Tensor], image_sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
    """One detection per query, its best class, best first."""
    scores, classes = outputs["logits"].softmax(-1)[..., :-1].max(-1)
    detections = []
    for score, label, boxes, size in zip(scores, classes + 1, outputs["pred_boxes"], image_sizes, strict=True):
        order = score.argsort(descending=True)
        boxes = clip_boxes_to_image(pixel_boxes(boxes, boxes.new_tensor(size)), size)
        detections.append({"boxes": boxes[order], "labels": label[order], "scores": score[order]})
    return detections


def detr_resnet50(classes: int, size: int, weights: ResNet50_Weights | None) -> Detr:
    """DETR as published: six encoder and decoder layers of 256 channels, 100 queries, ResNet-50 at stride 32."""
    body = resnet50_last_map(weights)
    transform = GeneralizedRCNNTransform(
        **image_sides(size), image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    return Detr(body, 2048, classes, transform)


def detr_compact(classes: int, size: int, _weights: None = None) -> Detr:
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
    return Detr(
        body,
        body.out_channels[-1],
        classes,
        transform,
        d_model=64,
        num_queries=25,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        dropout=0.0,  # so small a network has nothing to spare
    )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"a DETR student needs transformers ({error}): pip install 'cls2det[detr]'") from error
    return transformers


def loss_functions() -> Any:
    """transformers' module with DETR's matching and losses."""
    from transformers.loss import loss_for_object_detection

    return loss_for_object_detection
