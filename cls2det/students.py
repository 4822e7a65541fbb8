"""Students: torchvision detectors. ``build_student("ssd_compact", classes=10, size=96)``.

``ssd_compact`` is a torchvision SSD on a small ResNet, fit for two CPU cores; the others are torchvision's own
models. All start from random weights; nothing is downloaded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.resnet import BasicBlock

# Inputs are (x - mean) / std, x in [0, 1]: one pair for teacher and students, KD-loc's weight is tied to it.
IMAGE_MEAN, IMAGE_STD = [0.45, 0.45, 0.45], [0.25, 0.25, 0.25]


class CompactResNet(nn.Module):
    """One BasicBlock per stage, strides 4, 8, 16, 32. ``forward`` returns the last three maps, by name."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64, 128)):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
        )
        self.stages = nn.ModuleList(
            BasicBlock(before, width, 2, nn.Sequential(nn.Conv2d(before, width, 1, 2, bias=False), nn.BatchNorm2d(width)))
            for before, width in zip((widths[0], *widths[:-1]), widths, strict=True)
        )
        self.out_channels = list(widths[1:])

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        x, maps = self.stages[0](self.stem(images)), OrderedDict()
        for number, stage in enumerate(self.stages[1:]):
            x = maps[str(number)] = stage(x)
        return maps


def ssd_compact(classes: int, size: int) -> SSD:
    """SSD with default boxes of 0.15, 0.25 and 0.40 of the image at strides 8, 16 and 32: 0.43 M parameters for 10 classes."""
    anchors = DefaultBoxGenerator([[2], [2], [2]], scales=[0.15, 0.25, 0.40, 0.60])
    return SSD(
        CompactResNet(), anchors, (size, size), classes + 1, image_mean=IMAGE_MEAN, image_std=IMAGE_STD, detections_per_img=100
    )


def _torchvision(builder: Callable[..., nn.Module], fixed_size: bool = False) -> Callable[[int, int], nn.Module]:
    def build(classes: int, size: int) -> nn.Module:
        sizes = {} if fixed_size else {"min_size": size, "max_size": 2 * size}
        return builder(
            weights=None, weights_backbone=None, num_classes=classes + 1, image_mean=IMAGE_MEAN, image_std=IMAGE_STD, **sizes
        )

    return build


STUDENTS: dict[str, Callable[[int, int], nn.Module]] = {
    "ssd_compact": ssd_compact,
    "ssd300_vgg16": _torchvision(detection.ssd300_vgg16, fixed_size=True),
    "ssdlite320_mobilenet_v3_large": _torchvision(detection.ssdlite320_mobilenet_v3_large, fixed_size=True),
    "retinanet_resnet50_fpn": _torchvision(detection.retinanet_resnet50_fpn),
    "fasterrcnn_resnet50_fpn": _torchvision(detection.fasterrcnn_resnet50_fpn),
}


def build_student(name: str, classes: int, size: int) -> nn.Module:
    """A detector for ``classes`` foreground classes on images brought to ``size`` (models of a fixed size ignore it)."""
    if name not in STUDENTS:
        raise ValueError(f"no student {name!r}; there are {', '.join(STUDENTS)}")
    return STUDENTS[name](classes, size)


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def load_backbone(student: nn.Module, classifier: nn.Module) -> None:
    """Start a student's backbone from that of a classifier trained on crops."""
    if not isinstance(getattr(classifier, "backbone", None), type(student.backbone)):
        raise ValueError(
            f"the start holds no {type(student.backbone).__name__}; "
            "`cls2det teacher --architecture compact` trains one for ssd_compact"
        )
    student.backbone.load_state_dict(classifier.backbone.state_dict())
