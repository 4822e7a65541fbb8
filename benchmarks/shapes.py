"""What is measured: the tensors of SSD300, SSD512 and Faster R-CNN training steps, and such steps. Data, no code.

image: input size (height, width); images: batch; k: positives; g: ground truths; channels, stride: of the compared map
(stride 1: the pixels themselves); samples S, bins P; c: classes. "map_gradient": the student's own map is compared, so it needs
a gradient too. "compile": also measured with torch.compile, whose compilation takes from seconds to minutes per shape.
Names that begin with "small": so little work that the call itself is what costs; their memory is not measured.
"""

SSD300 = {"image": (300, 300), "images": 8, "k": 480, "g": 60}
SSD512 = {"image": (512, 512), "images": 8, "k": 640, "g": 60}
FASTER_256 = {"image": (800, 1333), "images": 2, "k": 256, "g": 15}
FASTER_512 = {"image": (800, 1333), "images": 2, "k": 512, "g": 15}
FEW = {"image": (64, 64), "images": 1, "k": 16, "g": 4}

ROI_CROP = {
    "ssd300 3x300x300 K480 S112": SSD300 | {"channels": 3, "stride": 1, "samples": 112, "compile": True},
    "ssd512 3x512x512 K640 S112": SSD512 | {"channels": 3, "stride": 1, "samples": 112},
    "frcnn 3x800x1333 K512 S112": FASTER_512 | {"channels": 3, "stride": 1, "samples": 112},
    "small 3x64x64 K16 S32": FEW | {"channels": 3, "stride": 1, "samples": 32},
}

ROI_AVG_POOL = {
    "ssd300 64x75x75 K480 S28 P8": SSD300 | {"channels": 64, "stride": 4, "samples": 28, "bins": 8, "compile": True},
    "frcnn 256x200x334 K256 S14 P7": FASTER_256 | {"channels": 256, "stride": 4, "samples": 14, "bins": 7},
    "small 64x16x16 K16 S14 P7": FEW | {"channels": 64, "stride": 4, "samples": 14, "bins": 7},
}

ROI_FEATURE_LOSS = {
    "ssd300 3x300x300 K480 S112 P4": SSD300 | {"channels": 3, "stride": 1, "samples": 112, "bins": 4},
    "ssd300 64x75x75 K480 S28 P8": SSD300 | {"channels": 64, "stride": 4, "samples": 28, "bins": 8, "compile": True},
    "ssd300 64x75x75 K480 S28 P8 +map": SSD300 | {
        "channels": 64, "stride": 4, "samples": 28, "bins": 8, "map_gradient": True,
    },
    "ssd512 64x128x128 K640 S28 P8": SSD512 | {"channels": 64, "stride": 4, "samples": 28, "bins": 8},
    "frcnn 256x200x334 K256 S14 P7": FASTER_256 | {"channels": 256, "stride": 4, "samples": 14, "bins": 7},
    "frcnn 256x200x334 K512 S14 P7": FASTER_512 | {"channels": 256, "stride": 4, "samples": 14, "bins": 7},
    "small 64x16x16 K16 S14 P7": FEW | {"channels": 64, "stride": 4, "samples": 14, "bins": 7},
}  # fmt: skip

MATCHED_FEATURE_LOSS = {
    "ssd300 K480 64x28x28 P8": {"k": 480, "g": 60, "channels": 64, "size": 28, "bins": 8, "compile": True},
    "frcnn K256 256x14x14 P7": {"k": 256, "g": 15, "channels": 256, "size": 14, "bins": 7},
    "small K16 64x7x7 P1": {"k": 16, "g": 4, "channels": 64, "size": 7, "bins": 1},
}

FROZEN_STEM = {  # of a ResNet-50, and of the demo's teacher
    "K160 3x112x112 C64": {"k": 160, "size": 112, "channels": 64, "compile": True},
    "K128 3x32x32 C16": {"k": 128, "size": 32, "channels": 16},
    "small K16 3x32x32 C16": {"k": 16, "size": 32, "channels": 16},
}

PYRAMID_P3 = {"images": 2, "channels": 256, "size": (100, 152)}  # of images of 800 x 1216

MASKED_FEATURE_LOSS = {
    "fpn 2x256x100x152": PYRAMID_P3 | {"compile": True},
    "fpn 2x256x100x152 channels-last": PYRAMID_P3 | {"channels_last": True},
    "fpn 2x256x25x38": PYRAMID_P3 | {"size": (25, 38)},
    "small 1x64x16x16": {"images": 1, "channels": 64, "size": (16, 16)},
}

ATTENTION_MEANS = MASKED_FEATURE_LOSS

IMITATION_MASK = {  # RetinaNet's anchors: 9 per position of strides 8 to 128
    "800x1024 N152757 G40": {"image": (800, 1024), "images": 2, "g": 40, "compile": True},
    "800x1344 N200871 G200": {"image": (800, 1344), "images": 8, "g": 200},
    "small 64x64 N774 G4": {"image": (64, 64), "images": 1, "g": 4},
}

KD_SOFTMAX_LOSS = {
    "K480 C80+1": {"k": 480, "g": 60, "c": 80},
    "K4096 C80+1": {"k": 4096, "g": 60, "c": 80, "compile": True},
    "K65536 C80+1": {"k": 65536, "g": 60, "c": 80, "compile": True},
    "K262144 C80+1": {"k": 262144, "g": 60, "c": 80},
    "small K16 C20+1": {"k": 16, "g": 4, "c": 20},
}

KD_SIGMOID_LOSS = {
    "bce K4096 C80": {"k": 4096, "g": 60, "c": 80, "mode": "bce", "compile": True},
    "bce K16384 C80": {"k": 16384, "g": 60, "c": 80, "mode": "bce"},
    "l1norm K4096 C80": {"k": 4096, "g": 60, "c": 80, "mode": "l1norm", "compile": True},
    "small bce K16 C20": {"k": 16, "g": 4, "c": 20, "mode": "bce"},
}

ROI_KD_LOSS = {  # the compared maps: channels, stride, samples, bins
    "ssd300 pixels+64x75x75 K480 C80+1": SSD300 | {"c": 80, "maps": [(3, 1, 112, 4), (64, 4, 28, 8)], "compile": True},
    "frcnn 256x200x334 K512 C80+1": FASTER_512 | {"c": 80, "maps": [(256, 4, 14, 7)]},
    "small 64x16x16 K16 C20+1": FEW | {"c": 20, "maps": [(64, 4, 14, 7)]},
}

# Training steps: the students of the paper at their input sizes. "small" is what runs where nothing is timed: one small image
# (SSDs take one size only) and small crops, once per family of detectors. "cuda": what differs on a GPU, which few images leave idle.
SMALL = {"images": 1, "crop": 32}
SMALL_PYRAMID = SMALL | {"size": (128, 208), "shorter": 128}
STEPS = {
    "ssd300_vgg16": {"images": 4, "size": (300, 300), "small": SMALL, "cuda": {"images": 32}},
    "ssd512_vgg16": {"images": 2, "size": (512, 512), "cuda": {"images": 16}},
    "fasterrcnn_qr50_fpn": {"images": 1, "size": (800, 1333), "small": SMALL_PYRAMID, "cuda": {"images": 8}},
    "fasterrcnn_resnet50_fpn": {"images": 1, "size": (800, 1333), "cuda": {"images": 4}},
    "retinanet_resnet50_fpn": {"images": 1, "size": (800, 1333), "small": SMALL_PYRAMID, "cuda": {"images": 4}},
}
TERMS = {  # what they change in the settings
    "KD-cls": {"kd_loc_weight": 0.0, "loc_weight": 0.0},
    "KD-loc": {"kd_cls_weight": 0.0},  # with loc on pixels, as the release sums them
    "both": {},
}
