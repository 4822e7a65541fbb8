"""What several benchmarks measure: the tensors of SSD300, SSD512 and Faster R-CNN training steps, and such steps. Data, no code.

Each test_bench_<operator>.py has its own ``SHAPES``, by name. Keys: image, the input size (height, width); images, of a batch;
k, positives; g, ground truths; channels and stride of the compared map (stride 1: the pixels themselves); samples S, bins P;
c, classes. "map_gradient": the student's own map is compared, so it needs a gradient too. "compile": also measured with
torch.compile, whose compilation takes from seconds to minutes per shape. A name that begins with "small" has so little work
that the call itself is what costs; its memory is not measured.
"""

from typing import Any

Shape = dict[str, Any]

SSD300: Shape = {"image": (300, 300), "images": 8, "k": 480, "g": 60}
SSD512: Shape = {"image": (512, 512), "images": 8, "k": 640, "g": 60}
FASTER_256: Shape = {"image": (800, 1333), "images": 2, "k": 256, "g": 15}
FASTER_512: Shape = {"image": (800, 1333), "images": 2, "k": 512, "g": 15}
FEW: Shape = {"image": (64, 64), "images": 1, "k": 16, "g": 4}

PYRAMID_P3: Shape = {"images": 2, "channels": 256, "size": (100, 152)}  # of images of 800 x 1216
WHOLE_MAPS: dict[str, Shape] = {
    "fpn 2x256x100x152": PYRAMID_P3 | {"compile": True},
    "fpn 2x256x100x152 channels-last": PYRAMID_P3 | {"channels_last": True},
    "fpn 2x256x25x38": PYRAMID_P3 | {"size": (25, 38)},
    "small 1x64x16x16": {"images": 1, "channels": 64, "size": (16, 16)},
}

# Training steps: the students of the paper at their input sizes. "small" is what runs where nothing is timed: one small image
# (SSDs take one size only) and small crops, once per family of detectors. "cuda": what differs on a GPU, which few images leave idle.
SMALL: Shape = {"images": 1, "crop": 32}
SMALL_PYRAMID: Shape = SMALL | {"size": (128, 208), "shorter": 128}
STEPS: dict[str, Shape] = {
    "ssd300_vgg16": {"images": 4, "size": (300, 300), "small": SMALL, "cuda": {"images": 32}},
    "ssd512_vgg16": {"images": 2, "size": (512, 512), "cuda": {"images": 16}},
    "fasterrcnn_qr50_fpn": {"images": 1, "size": (800, 1333), "small": SMALL_PYRAMID, "cuda": {"images": 8}},
    "fasterrcnn_resnet50_fpn": {"images": 1, "size": (800, 1333), "cuda": {"images": 4}},
    "retinanet_resnet50_fpn": {"images": 1, "size": (800, 1333), "small": SMALL_PYRAMID, "cuda": {"images": 4}},
}
SMALL_STUDENTS: dict[str, Shape] = {  # of pairs.py alone
    "ssd_compact": {"images": 16, "size": (96, 96), "cuda": {"images": 64}},
    "ssdlite_mobilenet_v2": {"images": 8, "size": (224, 224), "cuda": {"images": 32}},
    "rtdetr_v2_r18": {"images": 2, "size": (640, 640), "cuda": {"images": 16}},
}
TERMS: dict[str, dict[str, float]] = {  # what they change in the settings
    "KD-cls": {"kd_loc_weight": 0.0, "loc_weight": 0.0},
    "KD-loc": {"kd_cls_weight": 0.0},  # with loc on pixels, as the release sums them
    "both": {},
}
