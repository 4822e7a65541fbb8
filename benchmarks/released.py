"""A baseline: classifier distillation in the way of the authors' release, from a description of what it does.

Not their code, which has a licence of its own and was not looked at. What that way does, and this does too: an image is copied
once for every box before grid_sample; a Python loop goes over the images; for KD-loc each ground truth is cropped and run
again for each positive that it matches; all four stages of the ResNet run, for a low layer too; the teacher's weights require
gradients, so those of the layers compared are computed; 256 crops at a time go through the teacher; its logits take a
detour through the CPU. Where the description leaves a choice, the cheaper one is taken.

The release clamps boxes to the image and pads with zeros. Here both are arguments, and by default as in ``ClassifierDistiller``,
so that results can be compared; the time does not hang on them.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.models.positives import Positives
from cls2det.settings import ClassifierSettings
from cls2det.teachers.crop_classifier import CropClassifier

CHUNK = 256  # crops in one forward of the teacher
EPS = 1e-10  # inside the logarithms of KD-cls


class AllStages(nn.Module):
    """A torchvision ResNet that runs to its end, whichever of its layers is compared."""

    def __init__(self, network: ResNet, layers: Sequence[str]) -> None:
        super().__init__()
        self.network, self.layers = network, layers

    def forward(self, crops: Tensor) -> dict[str, Tensor]:
        network, features = self.network, {}
        x = network.maxpool(network.relu(network.bn1(network.conv1(crops))))
        features["maxpool"] = x
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = features[name] = getattr(network, name)(x)
        logits = network.fc(network.avgpool(x).flatten(1))
        return {name: features[name] for name in self.layers} | {"logits": logits}


class Released:
    """``Released(...)(positives)``: the terms by name, as ``ClassifierDistiller`` gives them, on the same settings.

    Args:
        padding_mode: outside of the image: "border", or the release's "zeros"
        clamp: move edges of boxes onto the image's, as the release does
    """

    def __init__(
        self,
        teacher: CropClassifier,
        settings: ClassifierSettings,
        _classes: Sequence[str],
        transform: GeneralizedRCNNTransform,
        padding_mode: str = "border",
        clamp: bool = False,
    ) -> None:
        self.settings, self.size, self.padding_mode, self.clamp = settings, teacher.crop_size, padding_mode, clamp
        network = copy.deepcopy(teacher.network).eval().requires_grad_(True)
        # The same network twice, so that a watch can tell them apart.
        self.on_targets, self.on_predictions = (AllStages(network, settings.feature_layers) for _ in range(2))
        self.pixel_scale = 255 * statistics.fmean(transform.image_std) / settings.input_std

    def to(self, device: torch.device) -> Released:
        self.on_targets.to(device)
        return self

    def __call__(self, positives: Positives) -> dict[str, Tensor]:
        settings, terms = self.settings, {}
        if settings.kd_cls_weight:
            terms["kd_cls"] = settings.kd_cls_weight * self.classification(positives)
        if settings.kd_loc_weight or settings.loc_weight:
            features, pixels = self.localisation(positives)
            terms["kd_loc"], terms["loc"] = settings.kd_loc_weight * features, settings.loc_weight * pixels
        return terms

    def crop(self, image: Tensor, boxes: Tensor) -> Tensor:
        """(K, 3, S, S): K boxes of one image (3, H, W), from K copies of it."""
        height, width = image.shape[1:]
        left, top, right, bottom = boxes.unbind(1)
        if self.clamp:
            left, top, right, bottom = left.clamp(min=0), top.clamp(min=0), right.clamp(max=width), bottom.clamp(max=height)
        zero = torch.zeros_like(left)
        theta = torch.stack(
            [
                (right - left) / width,
                zero,
                (left + right) / width - 1,
                zero,
                (bottom - top) / height,
                (top + bottom) / height - 1,
            ],
            dim=1,
        ).view(-1, 2, 3)
        copies = image.repeat(len(boxes), 1, 1, 1)
        grid = F.affine_grid(theta, [len(boxes), 3, self.size, self.size], align_corners=False)
        return F.grid_sample(copies, grid, mode="bilinear", padding_mode=self.padding_mode, align_corners=False)

    def crops(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> Iterator[Tensor]:
        for number, image in enumerate(images):
            yield self.crop(image, boxes[image_index == number])

    def classification(self, positives: Positives) -> Tensor:
        """KD-cls; one pass of the teacher for each ground truth."""
        with torch.no_grad():
            crops = torch.cat(list(self.crops(positives.images, positives.target_boxes, positives.target_image_index)))
            logits = torch.cat([self.on_targets(chunk)["logits"].cpu() for chunk in crops.split(CHUNK)])
        order = torch.argsort(positives.target_image_index, stable=True)  # of the loop over images
        teacher = torch.empty_like(logits, device=positives.logits.device)
        teacher[order] = logits.to(teacher.device)
        teacher, temperature = teacher[positives.matched_idxs], self.settings.temperature
        if positives.head == "softmax":
            student = positives.logits.softmax(1) if temperature == 1 else (positives.logits / temperature).softmax(1)
            truth = F.pad((teacher / temperature).softmax(1), (1, 0) if positives.background == "first" else (0, 1))
            divergence = ((truth + EPS) * ((truth + EPS).log() - (student + EPS).log())).sum(1)
        else:
            student = positives.logits[:, 1:] if positives.background == "first" else positives.logits
            student, truth = ((logits / temperature).sigmoid() for logits in (student, teacher))
            student, truth = (torch.stack([score, 1 - score]).clamp(min=EPS) for score in (student, truth))
            divergence = (truth * (truth.log() - student.log())).sum(0).mean(1)
        return temperature**2 * divergence.sum() / max(1, len(positives))

    def localisation(self, positives: Positives) -> tuple[Tensor, Tensor]:
        """KD-loc and loc, from crops of every prediction and, beside each, of the ground truth that it matches."""
        if not len(positives):
            return 0.0 * positives.boxes.sum(), 0.0 * positives.boxes.sum()
        by_image = torch.argsort(positives.image_index, stable=True)
        index, boxes = positives.image_index[by_image], positives.boxes[by_image]
        predicted = torch.cat(list(self.crops(positives.images, boxes, index)))
        with torch.no_grad():
            matched = positives.target_boxes[positives.matched_idxs[by_image]]
            target = torch.cat(list(self.crops(positives.images, matched, index)))
        settings, features = self.settings, torch.zeros((), device=predicted.device)
        for chunk, target_chunk in zip(predicted.split(CHUNK), target.split(CHUNK), strict=True):
            if not settings.kd_loc_weight:
                break
            maps = self.on_predictions(chunk)
            with torch.no_grad():
                target_maps = self.on_targets(target_chunk)
            for layer, pool in zip(settings.feature_layers, settings.feature_pools, strict=True):
                features = features + distance(maps[layer], target_maps[layer], pool) / len(settings.feature_layers)
        pixels = self.pixel_scale * distance(predicted, target, settings.pixel_pool)
        return features / len(positives), pixels / len(positives)


def distance(maps: Tensor, target_maps: Tensor, pool: int) -> Tensor:
    """Mean absolute difference of the pooled maps, summed over crops."""
    pooled, target = (F.adaptive_avg_pool2d(crops, pool) for crops in (maps, target_maps))
    return (pooled - target).abs().mean((1, 2, 3)).sum()
