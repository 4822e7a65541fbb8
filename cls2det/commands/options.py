# ruff: noqa: RUF009 (the settings are frozen)
"""What each command takes: a record per command, whose docstring is the command's help.

These records, and the settings in them, need no torch: a help text comes at once.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from cls2det.settings import (
    DISTILLERS,
    MAX_PIXELS,
    TERMS,
    BalanceSettings,
    BCKDSettings,
    ChenSettings,
    ClassifierSettings,
    CWDSettings,
    FGDSettings,
    FGFISettings,
    FKDSettings,
    GIDSettings,
    HarmonySettings,
    PKDSettings,
    RegionsSettings,
)
from cls2det.training.settings import Device, Optim, PretrainRun, Run, TeacherRun


@dataclasses.dataclass(frozen=True)
class TeacherOptions:
    """Train an image classifier on the objects of a detection data set.

    It sees the ground-truth boxes, cut out of the images. Writes weights.pt (for `distill --teacher`), report.json and, with a
    val_split, reliability.png.

    Args:
        data_root: folder of the data, in COCO's, Pascal VOC's or YOLO's layout (or YOLO's data.yaml)
        out: folder for what is written
        train_split: split to train on (train2017 for COCO)
        val_split: split to measure accuracy and calibration on
        architecture: any classifier of torchvision (resnet18, resnet50, resnext101_32x8d …), compact (the backbone of
            ssd_compact), timm:NAME, hf:NAME of the hub, or hf:FOLDER; timm and transformers are installed apart
        width: channels of the first stage of a ResNet; 64 is as published, 16 is every width divided by 4
        backbone_weights: what the classifier starts from: none (random), pretrained (the library's own; imagenet is another
            word for it), auto (random where there is no network), or a path: a file or folder of safetensors, or a .pth of
            torchvision's network of that architecture
        freeze_body: train the last layer alone, a linear probe
        student: the detector that this classifier will teach; crops are resized as this detector's images, and normalised so
            too, except for networks of timm and transformers, which get their own normalisation
        image_size: side in pixels that images are brought to (default: the student's own)
        crop_size: side of the crops in pixels; 112 in the paper
        loss: ce for students with a softmax, bce for students with a sigmoid, joint for both (the paper's shared teacher)
        margin: crops are larger than the box by this share of its size, on each side
        min_size: boxes whose shorter side is below this many input pixels are not trained on
        jitter: training boxes are moved by up to this share of their size
        label_smoothing: of the ce loss; a smoothed teacher is less sure of itself
        background: learn from crops that miss the objects too, and give a softmax a column for them (default: where fewer
            than two classes have objects; a classifier of one class would have nothing to tell apart)
        images: how many images to use, drawn with the seed (default: all)
        augmentation: none, flip, ssd, ssdlite, jitter, jitter_flip; best the same as the student's
        max_image_side: pictures whose longer side is larger are reduced to it when they are read, but for those of the val_split
            (null: none is reduced)
        optim: how weights are optimised; batch_size counts images, not crops
        seed: of weights, order and augmentation
        run: where and how it runs
    """

    data_root: Path
    out: Path
    train_split: str = "train"
    val_split: str | None = None
    architecture: str = "resnet18"
    width: int = 64
    backbone_weights: str = "none"
    freeze_body: bool = False
    student: str = "ssd_compact"
    image_size: int | None = None
    crop_size: int = 112
    loss: Literal["ce", "bce", "joint"] = "ce"
    margin: float = 0.0
    min_size: float = 0.0
    jitter: float = 0.05
    label_smoothing: float = 0.05
    background: bool | None = None
    images: int | None = None
    augmentation: str = "none"
    max_image_side: int | None = None
    optim: Optim = Optim()
    seed: int = 0
    run: TeacherRun = TeacherRun()


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train a detector without distillation: the baseline.

    Takes the recipes of `distill`, and leaves out what they say of teachers. Writes weights.pt, report.json, log/metrics.csv,
    tensorboard/ and, with a val_split, its evaluation.

    Args:
        data_root: folder of the data, in COCO's, Pascal VOC's or YOLO's layout (or YOLO's data.yaml)
        out: folder for what is written
        train_split: split to train on (train2017 for COCO)
        val_split: split to evaluate on at the end, and during training if run.validate_every is given
        student: the detector; `cls2det info` lists them. hf:FOLDER or hf:NAME is a detector of Hugging Face transformers that
            matches by the Hungarian method, from a folder (config.json, model.safetensors) or from huggingface.co
        image_size: side in pixels that images are brought to (default: the student's own)
        name: what reports call this run (default: baseline, or what is distilled)
        images: how many images to use, drawn with the seed (default: all)
        augmentation: none, flip, ssd, ssdlite, jitter, jitter_flip
        max_image_side: pictures whose longer side is larger are reduced to it when they are read, and before they enter the trained
            detector (null: none is reduced)
        backbone_weights: what the backbone, or an hf: student as a whole, starts from: imagenet (of an hf: student: its own),
            auto (random where there are none), none, or a file (.pth or .safetensors) with a state dict of torchvision's
            network of the backbone's architecture
        start: weights.pt of `cls2det teacher` or `pretrain` with the same backbone, to start from instead
        anchors: default boxes or anchors of SSD, RetinaNet, Faster R-CNN, a word per map: [[18, 18], [14, 26]] is width and height
            of each in pixels of the student's input, {sizes: [16, 20], ratios: [0.5, 1, 2]} every size at every ratio of height
            to width (default: the student's own)
        fit_anchors: take them from the training data; as many per map as the student has
        cls_weight: weight of the detector's own classification losses
        box_weight: weight of the detector's own box losses
        optim: how weights are optimised
        seed: of weights, order and augmentation
        run: where and how it runs
    """

    data_root: Path
    out: Path
    train_split: str = "train"
    val_split: str | None = None
    student: str = "ssd_compact"
    image_size: int | None = None
    name: str | None = None
    images: int | None = None
    augmentation: str = "none"
    max_image_side: int | None = None
    backbone_weights: str = "auto"
    start: Path | None = None
    anchors: list[Any] | None = None
    fit_anchors: bool = False
    cls_weight: float = 1.0
    box_weight: float = 1.0
    optim: Optim = Optim()
    seed: int = 0
    run: Run = Run()


@dataclasses.dataclass(frozen=True)
class DistillOptions(TrainOptions):
    """Train a detector that also learns from a teacher.

    The teacher is an image classifier, a bigger detector, or both. Writes weights.pt (the student alone), report.json,
    log/metrics.csv, tensorboard/ and, with a val_split, its evaluation.

    Args:
        teacher: weights.pt of `cls2det teacher`, or zero-shot:NAME or zero-shot:FOLDER for a CLIP or SigLIP of transformers,
            which is not trained; the pixel term alone (loc_weight) needs none
        prompts: texts with {} for the name of a class, whose embeddings a zero-shot teacher averages (default: a photo of a {}.)
        teacher_crop_size: side of a zero-shot teacher's crops in pixels (default: the network's own)
        class_mapping: which classes of the teacher stand for which of the data, where these differ: a table of the teacher's
            name to the data's name, to several, or to null
        allow_poor_teacher: go on with a teacher that is no better than guessing
        bank: file of `cls2det bank`, or several, which are averaged: it has the logits that KD-cls reads, and the embeddings of
            regions, so that neither runs a network. A teacher beside it serves KD-loc, and the boxes that are cut
        bank_weights: of several banks; the default is by their calibration
        bank_visible: a box of which augmentation left a smaller share is not compared with the bank: it goes to the teacher or
            encoder beside it, or, where there is none, is left out of KD-cls and regions
        detector_teacher: weights.pt of `cls2det train` or `distill`, or torchvision:NAME for a detector with torchvision's COCO
            weights; the teacher of every distiller but classifier
        encoder: image encoder that regions learns from: timm:NAME, hf:NAME or hf:FOLDER, a classifier of torchvision, or
            weights.pt of `cls2det teacher`
        encoder_weights: of an encoder by name: pretrained, none (random), or a file or folder of safetensors
        term_weights: auto: every term's weight is brought to where its gradient at the head is a share of the detector's own; fixed:
            the terms have the weights of their settings
        balance: automatic weights
        distillers: methods whose terms are added up: classifier, regions, chen, fgfi, gid, fkd, fgd, pkd, cwd, bckd, harmony
        classifier: the image classifier's terms (Guo et al., NeurIPS 2021)
        regions: ours, after ViLD (Gu et al., ICLR 2022): an image encoder's embeddings of boxes, without classes
        chen: Chen et al., NeurIPS 2017: soft labels, bounded regression, hint
        fgfi: FGFI (Wang et al., CVPR 2019): features near objects
        gid: GID (Dai et al., CVPR 2021): where student and teacher disagree most
        fkd: FKD (Zhang & Ma, ICLR 2021): attention and non-local relations
        fgd: FGD (Yang et al., CVPR 2022): objects and background apart
        pkd: PKD (Cao et al., NeurIPS 2022): normalised features
        cwd: CWD (Shu et al., ICCV 2021): where each channel looks
        bckd: BCKD (Yang et al., ICCV 2023): scores and boxes of sigmoid heads
        harmony: ours, after an idea of Tang et al. 2022: where class scores and boxes agree
    """

    teacher: Path | None = None
    prompts: list[str] | None = None
    teacher_crop_size: int | None = None
    class_mapping: dict[str, str | list[str] | None] | None = None
    allow_poor_teacher: bool = False
    bank: list[Path] | None = None
    bank_weights: list[float] | None = None
    bank_visible: float = 0.5
    detector_teacher: str | None = None
    encoder: str | None = None
    encoder_weights: str = "pretrained"
    term_weights: Literal["auto", "fixed"] = "auto"
    balance: BalanceSettings = BalanceSettings()
    distillers: list[str] = dataclasses.field(default_factory=lambda: ["classifier"])
    classifier: ClassifierSettings = ClassifierSettings()
    regions: RegionsSettings = RegionsSettings()
    chen: ChenSettings = ChenSettings()
    fgfi: FGFISettings = FGFISettings()
    gid: GIDSettings = GIDSettings()
    fkd: FKDSettings = FKDSettings()
    fgd: FGDSettings = FGDSettings()
    pkd: PKDSettings = PKDSettings()
    cwd: CWDSettings = CWDSettings()
    bckd: BCKDSettings = BCKDSettings()
    harmony: HarmonySettings = HarmonySettings()

    @property
    def methods(self) -> list[str]:
        """The distillers beside the classifier."""
        return [name for name in DISTILLERS if name in self.distillers and name != "classifier"]

    def without_distillation(self) -> TrainOptions:
        """Those of ``train``."""
        return TrainOptions(**{field.name: getattr(self, field.name) for field in dataclasses.fields(TrainOptions)})

    @property
    def distils(self) -> bool:
        """Whether any term is distilled: a method, a teacher, a bank, or a weight of the classifier's terms above 0."""
        terms = self.teacher or self.bank or any(getattr(self.classifier, weight) for weight in TERMS)
        return bool(self.methods or ("classifier" in self.distillers and terms))


@dataclasses.dataclass(frozen=True)
class BankOptions:
    """Compute a teacher's outputs on every ground-truth crop once, for `distill --bank`.

    Writes one file, with fp16 logits of a teacher, embeddings of an encoder, or both, by annotation id. The same command goes on
    where an earlier one was stopped.

    Args:
        data_root: folder of the data, in COCO's, Pascal VOC's or YOLO's layout (or YOLO's data.yaml)
        out: the file that is written, such as bank.safetensors
        split: split whose boxes are looked at: the one that is trained on
        teacher: weights.pt of `cls2det teacher`, or zero-shot:NAME or zero-shot:FOLDER
        encoder: image encoder for regions: timm:NAME, hf:NAME or hf:FOLDER, a classifier of torchvision, or weights.pt of
            `cls2det teacher`
        encoder_weights: of an encoder by name: pretrained, none (random), or a file or folder of safetensors
        encoder_crop_size: side of the encoder's crops in pixels (default: the encoder's own)
        student: the detector that will read it, whose way of resizing and normalising pictures is taken (default: that of the
            teacher's weights.pt)
        image_size: side in pixels that images are brought to (default: the student's own, or that of the teacher's weights.pt)
        views: how many views of each box; the first is the box as it is, the others are as the augmentation shows it
        augmentation: of the further views: none, flip, ssd, ssdlite, jitter, jitter_flip; that of the training
        max_image_side: pictures whose longer side is larger are reduced to it when they are read, but for those of the val_split
            (null: none is reduced); that of the training
        margins: views are enlarged by these shares of the box's size on each side, one after another, beside the teacher's own
        flip: hold every view mirrored too (default: where the augmentation mirrors)
        prompts: of a zero-shot teacher, see distill
        teacher_crop_size: side of a zero-shot teacher's crops in pixels (default: the network's own)
        class_mapping: of a teacher of other classes, see distill
        val_split: split to measure accuracy and calibration on, by which several banks are weighed (default: the boxes of the bank
            itself, which a trained teacher knows)
        precision: 32, or bf16: the network runs in bfloat16
        batch_size: images that are cropped together
        loader_workers: processes that load and augment images, for each device
        device: auto takes a GPU if there is one
        devices: GPUs, or processes on a CPU, of this machine
        seed: of the views
        max_pixels: an image of more pixels is not read, as a small file can fill the memory; null is no limit
    """

    data_root: Path
    out: Path
    split: str = "train"
    teacher: Path | None = None
    encoder: str | None = None
    encoder_weights: str = "pretrained"
    encoder_crop_size: int | None = None
    student: str | None = None
    image_size: int | None = None
    views: int = 1
    augmentation: str = "none"
    max_image_side: int | None = None
    margins: list[float] = dataclasses.field(default_factory=lambda: [0.0])
    flip: bool | None = None
    prompts: list[str] | None = None
    teacher_crop_size: int | None = None
    class_mapping: dict[str, str | list[str] | None] | None = None
    val_split: str | None = None
    precision: Literal["32", "bf16"] = "32"
    batch_size: int = 32
    loader_workers: int = 0
    device: Device = "auto"
    devices: int = 1
    seed: int = 0
    max_pixels: int | None = MAX_PIXELS


@dataclasses.dataclass(frozen=True)
class PretrainOptions:
    """Train a backbone on a folder of images by class (ImageNet's layout).

    For `train --start` and `distill --start`, where nobody offers weights: ResNet-50 with every width divided by 4, say.
    Writes weights.pt and report.json.

    Args:
        data_root: folder with <train_split>/<class>/*.jpg and <val_split>/<class>/*.jpg
        out: folder for what is written
        train_split: folder to train on
        val_split: folder to measure the top-1 accuracy on, or null
        architecture: any classifier of torchvision
        width: channels of the first stage of a ResNet; 16 is every width divided by 4
        image_size: side of the training crops in pixels
        label_smoothing: of the cross-entropy
        optim: how weights are optimised
        seed: of weights, order and augmentation
        run: where and how it runs
    """

    data_root: Path
    out: Path
    train_split: str = "train"
    val_split: str | None = "val"
    architecture: str = "resnet50"
    width: int = 16
    image_size: int = 224
    label_smoothing: float = 0.1
    optim: Optim = Optim("sgd", 0.1, base_batch=256, weight_decay=1e-4, schedule="multi_step", epochs=90, batch_size=256)
    seed: int = 0
    run: PretrainRun = PretrainRun()


@dataclasses.dataclass(frozen=True)
class LookOptions:
    """Look at a data set before anything is trained on it.

    Prints what it holds, what in it is doubtful, how well a student's anchors (default boxes) fit its objects, and a proposal:
    size of the input, anchors and recipe, as commands that can be pasted.

    Args:
        data_root: folder of the data, in COCO's, Pascal VOC's or YOLO's layout (or YOLO's data.yaml)
        split: split to look at: the one that is trained on
        student: the detector that is to be trained; `cls2det info` lists them
        image_size: side in pixels that images are brought to (default: the student's own, and a larger one is proposed where that
            helps)
        out: folder for look.json and pictures.jpg; without it nothing is written
        pictures: how many pictures with their boxes pictures.jpg shows; 0 is none
        max_pixels: an image of more pixels is not read, as a small file can fill the memory; null is no limit
    """

    data_root: Path
    split: str = "train"
    student: str = "ssdlite_mobilenet_v2"
    image_size: int | None = None
    out: Path | None = None
    pictures: int = 12
    max_pixels: int | None = MAX_PIXELS


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate a trained detector: COCO's mAP.

    Args:
        weights: weights.pt of `cls2det train` or `distill`
        data_root: folder of the data, in COCO's, Pascal VOC's or YOLO's layout (or YOLO's data.yaml)
        split: split to evaluate on (val2017 for COCO)
        out: folder for evaluation.json and detections.json (COCO's result format); without it nothing is written
        batch_size: images per forward; where images differ in shape, neighbours pad each other and shift scores a little
        loader_workers: processes that load images
        max_detections: that count per image and class, as in COCO's evaluation; for images with more objects, above 100 the
            detector is also told to give as many
        device: auto takes a GPU if there is one
        max_pixels: an image of more pixels is not read, as a small file can fill the memory; null is no limit
    """

    weights: Path
    data_root: Path
    split: str = "val"
    out: Path | None = None
    batch_size: int = 8
    loader_workers: int = 0
    max_detections: int = 100
    device: Device = "auto"
    max_pixels: int | None = MAX_PIXELS


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Detect objects in images, and draw them.

    Writes a picture per image under the folder given by --out, in the folders of the images, and predictions.json. Images are
    turned upright as their EXIF orientation says: boxes, width and height are those of the picture as viewers show it. An image
    that cannot be used is named and left out.

    Args:
        weights: weights.pt of `cls2det train` or `distill`
        images: image files, and folders, which are searched at every depth for what Pillow can read
        out: folder for what is written
        threshold: detections with a lower score are left out
        most: at most this many detections per image, those of the highest scores; above 100 the detector is told to give more
        device: auto takes a GPU if there is one
        no_pictures: write predictions.json alone
        max_pixels: an image of more pixels is not read, as a small file can fill the memory; null is no limit
    """

    weights: Path
    images: list[Path]
    out: Path
    threshold: float = 0.5
    most: int = 100
    device: Device = "auto"
    no_pictures: bool = False
    max_pixels: int | None = MAX_PIXELS


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write a trained student in formats that run without this package.

    Writes a file per format and export.json, which says how each is used, what images it takes and, for a format that does not
    work for this student, why.

    Args:
        weights: weights.pt of `cls2det train` or `distill`
        out: folder for what is written
        formats: state_dict (the detector's weights alone), torch_export, onnx
        image_size: side in pixels of the square image that formats of a fixed size are made for (default: the student's own)
        check: run what was written on random images and compare with the trained student
    """

    weights: Path
    out: Path
    formats: list[str] = dataclasses.field(default_factory=lambda: ["state_dict", "torch_export", "onnx"])
    image_size: int | None = None
    check: bool = True


@dataclasses.dataclass(frozen=True)
class RecipesOptions:
    """List the recipes that come with the package, or print one.

    Args:
        name: the recipe to print; `cls2det recipes --name ssd300 > mine.yaml` gives a copy to change
    """

    name: str | None = None


@dataclasses.dataclass(frozen=True)
class InfoOptions:
    """Print versions, back ends of the operators, devices, students, distillers and recipes."""
