"""Detectors of Hugging Face transformers that match by the Hungarian method, called like torchvision's detectors.

DETR, Conditional, DAB and Deformable DETR, RT-DETR and RT-DETRv2, D-FINE, LW-DETR, RF-DETR, YOLOS and Table Transformer share
the form of their labels, losses and outputs, so that one wrapper serves all. transformers (``pip install 'cls2det[detr]'``) is
imported when such a detector is built, not before.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_convert, clip_boxes_to_image

from cls2det.errors import LibraryChanged
from cls2det.models.students.hungarian_loss import LIBRARY, Labels, check_sum, loss_in_float32, losses_by_name

BOX_HEADS = ("bbox_embed", "bbox_predictor", "enc_bbox_head")  # modules that give boxes or shifts of boxes
RT_DETRS = ("RTDetr", "DFine")  # how the classes begin of those that choose their queries among places of maps


class HungarianDetector(nn.Module):
    """transformers' detector between torchvision's transform and torchvision's form of losses and detections.

    Boxes are shares of the image without its padding where the network is told of the padding, and of the padded batch where it
    is not, or where all images have one size.

    Args:
        network: one of transformers' ``…ForObjectDetection``
        transform: normalises, resizes and pads
        description: plain values from which ``hugging_face.rebuild`` makes the detector; None for a name of ``STUDENTS``
    """

    network: Any  # whose parts are transformers', which mypy does not know

    def __init__(self, network: nn.Module, transform: GeneralizedRCNNTransform, description: Mapping[str, Any] | None = None):
        super().__init__()
        self.network = network.train()  # which transformers leaves in eval mode where it has loaded weights
        self.transform = transform
        self.description = None if description is None else dict(description)
        self.network.loss_function = partial(loss_in_float32, self.network.loss_function)
        for name, module in network.named_modules():
            if any(part in BOX_HEADS for part in name.split(".")[-2:]):
                module.register_forward_hook(_in_float32)
        for name, weight in network.named_parameters():
            if name.endswith("mask_token"):  # of a ViT's own training, as which it hid parts of images
                weight.requires_grad_(False)
        self._has_losses_that_add_up = False

    @property
    def backbone(self) -> nn.Module:
        """The part that makes maps of images: ``Body``, or transformers' own. AttributeError for a network without one."""
        for module in self.network.modules():
            if isinstance(module, Body) or hasattr(module, "forward_with_filtered_kwargs"):  # which all its backbones have
                part: nn.Module = module
                return part
        raise AttributeError(f"{type(self.network).__name__} has no backbone")

    @property
    def queries(self) -> int:
        """How many detections it gives of an image, and no more."""
        config = self.network.config
        return int(getattr(config, "num_queries", None) or config.num_detection_tokens)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in eval mode; see ``cls2det.models.students``."""
        torch._assert(not self.training or targets is not None, "targets should not be none when in training mode")
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        batch, targets = self.transform(images, targets)
        if self.training:
            labels = _labels(targets, self._frames(batch))
            outputs = self.network(batch.tensors, **self._mask(batch), labels=labels)
            if not self._has_losses_that_add_up:  # once: it waits for a GPU
                check_sum(self.network, outputs.loss, outputs.loss_dict)
                self._has_losses_that_add_up = True
            return losses_by_name(self.network, outputs.loss_dict, has_objects=any(len(label["boxes"]) for label in labels))
        outputs = self.network(batch.tensors, **self._mask(batch))
        in_input = self._detections(outputs.logits.float(), outputs.pred_boxes.float(), batch)
        detections: list[dict[str, Tensor]] = self.transform.postprocess(in_input, batch.image_sizes, sizes)
        return detections

    @property
    def _reads_mask(self) -> bool:
        """Whether images have sizes of their own, and the network takes a mask of their real pixels."""
        takes_mask = "pixel_mask" in inspect.signature(self.network.forward).parameters
        return takes_mask and self.transform.fixed_size is None

    def _mask(self, batch: ImageList) -> dict[str, Tensor]:
        if not self._reads_mask:
            return {}
        mask = batch.tensors.new_zeros((len(batch.tensors), *batch.tensors.shape[-2:]), dtype=torch.long)
        for row, (height, width) in zip(mask, batch.image_sizes, strict=True):
            row[:height, :width] = 1
        return {"pixel_mask": mask}

    def _frames(self, batch: ImageList) -> list[tuple[int, int]]:
        """Height and width that each image's boxes are shares of."""
        if self._reads_mask:
            return list(batch.image_sizes)
        return [(batch.tensors.shape[-2], batch.tensors.shape[-1])] * len(batch.tensors)

    def _detections(self, logits: Tensor, boxes: Tensor, batch: ImageList) -> list[dict[str, Tensor]]:
        """Best first, as many as there are queries: of a softmax each query's best class, of sigmoids the best of all."""
        classes = self.network.config.num_labels
        if is_softmax(self.network.config, logits.shape[-1]):
            scores, labels = logits.softmax(-1)[..., :-1].max(-1)
            scores, queries = scores.sort(dim=1, descending=True)
            labels = labels.gather(1, queries)
        else:
            scores, places = logits.sigmoid().flatten(1).topk(logits.shape[1], dim=1)
            queries, labels = places // classes, places % classes
        detections = []
        for row, (frame, size) in enumerate(zip(self._frames(batch), batch.image_sizes, strict=True)):
            pixels = in_pixels(boxes[row][queries[row]], boxes.new_tensor(frame))
            detections.append({"boxes": clip_boxes_to_image(pixels, size), "labels": labels[row] + 1, "scores": scores[row]})
        return detections


class Body(nn.Module):
    """What transformers' DETR and RT-DETR ask of a backbone: maps, each with the mask of its real pixels."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, images: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        maps = list(self.body(images).values())
        return [(feature, F.interpolate(mask[None].float(), size=feature.shape[-2:])[0].bool()) for feature in maps]


def named_maps(output: Any) -> dict[str, Tensor]:
    """Maps (B, C, h, w) by name, of what a body gave: a dictionary, a single map, or the output of one of transformers' backbones."""
    if isinstance(output, Tensor):
        return {"0": output}  # torchvision names a single map so
    if hasattr(output, "feature_maps"):
        return {str(number): feature for number, feature in enumerate(output.feature_maps)}
    return dict(output)


def in_pixels(boxes: Tensor, size: Tensor) -> Tensor:
    """xyxy in pixels of boxes (n, 4) as centre and sides in shares of ``size``, height and width, (2,) or (n, 2)."""
    corners: Tensor = box_convert(boxes, "cxcywh", "xyxy")
    return corners * size.flip(-1).repeat(*[1] * (size.dim() - 1), 2)


def is_softmax(config: Any, columns: int) -> bool:
    """A softmax has a column for "no object", the last; a sigmoid per class has none."""
    if columns not in (config.num_labels, config.num_labels + 1):
        raise LibraryChanged(LIBRARY, f"the class head has {columns} columns for {config.num_labels} classes")
    return bool(columns == config.num_labels + 1)


def import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"a DETR student needs transformers ({error}): pip install 'cls2det[detr]'") from error
    return transformers


def _labels(targets: list[dict[str, Tensor]], frames: list[tuple[int, int]]) -> Labels:
    """torchvision's targets in transformers' form."""
    return [
        {
            "class_labels": target["labels"] - 1,
            "boxes": box_convert(target["boxes"], "xyxy", "cxcywh") / target["boxes"].new_tensor([width, height] * 2),
            "size": target["boxes"].new_tensor([height, width]),
        }
        for target, (height, width) in zip(targets, frames, strict=True)
    ]


def _in_float32(_module: nn.Module, _arguments: Any, output: Tensor) -> Tensor:
    """Under mixed precision too: of an image of 640 pixels, bfloat16 cannot tell places of 2 pixels apart."""
    return output.float()
