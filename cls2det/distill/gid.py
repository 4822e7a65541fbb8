"""GID: where student and teacher disagree most, features, their relations and the responses (Dai et al., CVPR 2021)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.ops import MultiScaleRoIAlign, box_iou, clip_boxes_to_image, nms

from cls2det.models.taps import Grid, StudentOutputs
from cls2det.settings import GIDSettings
from cls2det.teachers.detector import DetectorTeacher, TeacherOutputs, check_same_grid
from cls2det_ops.losses import gid_feature_loss, gid_relation_loss, gid_response_loss


class GID(nn.Module):
    """The four terms. Of a Faster R-CNN, instances and responses are those of the RPN, as in the release."""

    def __init__(self, settings: GIDSettings, student: nn.Module, teacher: DetectorTeacher):
        super().__init__()
        channels = check_same_grid("gid", student, teacher.detector)
        if len(set(channels)) > 1:
            raise ValueError(
                f"gid pools instances from maps of one number of channels; student's and teacher's are {channels}"
            )
        self.settings, self.radius = settings, student.center_sampling_radius if isinstance(student, FCOS) else None
        self.columns = None if isinstance(student, FasterRCNN) else teacher.columns("gid")
        self.adapter = nn.Conv2d(*channels[0], 3, padding=1)  # linear, one for all maps
        names = [str(level) for level in range(len(channels))]
        self.pool = MultiScaleRoIAlign(names, settings.pool_size, sampling_ratio=2)

    def forward(self, student_outputs: StudentOutputs, teacher_outputs: TeacherOutputs) -> dict[str, Tensor]:
        settings, grid = self.settings, student_outputs.grid
        assert grid is not None  # check_same_grid
        logits, regression = teacher_outputs.grid
        if self.columns:
            logits = logits[..., self.columns]
        with torch.no_grad():
            instances = self._instances(grid, student_outputs.image_sizes, logits, regression)
            on_instances = torch.stack([self._positive_anchors(grid, boxes) for boxes in instances]).flatten()
        student_features = self._pooled(
            [self.adapter(feature) for feature in student_outputs.features.values()], instances, student_outputs
        )
        teacher_features = self._pooled(list(teacher_outputs.features.values()), instances, student_outputs)
        response = gid_response_loss(
            grid.logits.flatten(0, 1),
            logits.flatten(0, 1),
            grid.regression.flatten(0, 1),
            regression.flatten(0, 1),
            mask=on_instances,
            head=grid.head,
            cls_weight=settings.cls_weight,
            box_weight=settings.box_weight,
        )
        return {
            "gid_feature": settings.feature_weight
            * gid_feature_loss(student_features, teacher_features, settings.feature_form),
            "gid_relation": settings.relation_weight
            * gid_relation_loss(student_features.flatten(1), teacher_features.flatten(1)),
            "gid_response": response,
        }

    def _instances(self, grid: Grid, image_sizes: list[tuple[int, int]], logits: Tensor, regression: Tensor) -> list[Tensor]:
        settings = self.settings
        logit_pair = torch.stack([grid.logits.detach(), logits]).float()
        foreground = 0 if grid.logits.shape[-1] == 1 else 1
        scores = (logit_pair.softmax(-1) if grid.head == "softmax" else logit_pair.sigmoid())[..., foreground:]
        codes, instances = torch.stack([grid.regression.detach(), regression]).float(), []
        for image, size in enumerate(image_sizes):
            student_boxes, teacher_boxes = (grid.decode(code, grid.anchors) for code in codes[:, image])
            student_scores, teacher_scores = scores[:, image]
            instances.append(
                select_instances(
                    student_scores=student_scores,
                    teacher_scores=teacher_scores,
                    student_boxes=student_boxes,
                    teacher_boxes=teacher_boxes,
                    image_size=size,
                    instances=settings.instances,
                    candidates=settings.candidates,
                    nms_threshold=settings.nms_threshold,
                    min_size=settings.min_size,
                )
            )
        return instances

    def _positive_anchors(self, grid: Grid, boxes: Tensor) -> Tensor:
        """Which anchors (A,) would be positive if the instances were objects: by overlap, or for FCOS by place."""
        if not len(boxes):
            return torch.zeros(len(grid.anchors), dtype=torch.bool, device=boxes.device)
        if self.radius is not None:
            return fcos_places(grid.anchors, grid.level_sizes, boxes, self.radius)
        overlap: Tensor = box_iou(grid.anchors, boxes)
        best = (overlap == overlap.amax(0)) & (overlap > 0)
        return ((overlap >= 0.5) | best).any(1)

    def _pooled(self, maps: list[Tensor], instances: list[Tensor], student_outputs: StudentOutputs) -> Tensor:
        named = OrderedDict((str(level), feature.float()) for level, feature in enumerate(maps))
        padded = [tuple(student_outputs.images.shape[-2:])] * len(instances)
        pooled: Tensor = self.pool(named, instances, padded)
        return pooled


def fcos_places(anchors: Tensor, level_sizes: Sequence[int], boxes: Tensor, radius: float) -> Tensor:
    """Which places (A,) FCOS assigns to one of the boxes (n, 4): inside it and near its centre, on the level of its size.

    A place's anchor is a square with the stride as its side. Its farthest edge of a box is 4 to 8 strides away, on the first
    level also less, on the last also more.
    """
    centres, stride = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2] - anchors[:, 0]
    edges = torch.cat([centres[:, None] - boxes[:, :2], boxes[:, 2:] - centres[:, None]], 2)
    near = (centres[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2).abs().amax(2) < radius * stride[:, None]
    low, high = 4 * stride, 8 * stride
    low[: level_sizes[0]], high[len(anchors) - level_sizes[-1] :] = 0.0, torch.inf
    far = edges.amax(2)
    return ((edges.amin(2) > 0) & near & (far > low[:, None]) & (far < high[:, None])).any(1)


def select_instances(
    student_scores: Tensor,
    teacher_scores: Tensor,
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    image_size: tuple[int, int],
    *,
    instances: int = 10,
    candidates: int = 3000,
    nms_threshold: float = 0.3,
    min_size: float = 10.0,
) -> Tensor:
    """General instances (n, 4) of one image: the boxes at which the two disagree most.

    An anchor's score is the largest difference of a foreground class's probability; its box is that of the network with the
    larger probability for any class. Of the ``candidates`` best, clipped to the image and not smaller than ``min_size``, NMS
    that does not look at classes keeps ``instances``.

    Args:
        student_scores, teacher_scores: (A, C) probabilities, without the background
        student_boxes, teacher_boxes: (A, 4) xyxy
        image_size: height and width
    """
    scores = (teacher_scores - student_scores).abs().amax(1)
    by_teacher = teacher_scores.amax(1) > student_scores.amax(1)
    scores, best = scores.topk(min(candidates, len(scores)))
    boxes = torch.where(by_teacher[:, None], teacher_boxes, student_boxes)[best]
    boxes = clip_boxes_to_image(boxes, image_size)
    large = (boxes[:, 2:] - boxes[:, :2]).amin(1) >= min_size
    boxes, scores = boxes[large], scores[large]
    kept: Tensor = boxes[nms(boxes, scores, nms_threshold)[:instances]]
    return kept
