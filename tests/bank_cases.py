"""A small bank of rectangles, with its data and its teacher, for the tests of banks."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from cls2det.commands.bank import bank as make_bank
from cls2det.commands.options import BankOptions
from cls2det.data.augment import get_augmentation
from cls2det.data.dataset import DetectionData
from cls2det.data.loader import collate
from cls2det.distill import ClassifierSettings
from cls2det.models.taps import PositiveTap
from cls2det.training.settings import Optim, Run
from rectangles import make_rectangles
from training_cases import silent, train_teacher

CLASSES = ["red", "green", "blue"]
KD_CLS = ClassifierSettings(kd_cls_weight=1.0)
SHORT = {"optim": Optim(steps=4, batch_size=4), "images": None, "run": Run(device="cpu", checkpoint_every=2, log_every=1)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_rectangles(tmp_path_factory.mktemp("bank") / "data", objects=3)


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("bank_teacher")
    return train_teacher(data, out, augmentation="none", optim=Optim(steps=60, batch_size=4))


@pytest.fixture(scope="module")
def written(data, teacher, tmp_path_factory):
    """A bank with mirrored views and three views in all. Not to be written to."""
    path = tmp_path_factory.mktemp("bank_file") / "bank.safetensors"
    make(data, path, teacher, views=3, augmentation="ssd")
    return path


def make(root, out, teacher=None, *, progress=silent, **options):
    return make_bank(BankOptions(root, out, teacher=teacher, device="cpu", **options), progress)


def batch(root, augmentation="none", count=4, seed=0):
    augment = get_augmentation(augmentation)
    opened = DetectionData(root, "train", augment=augment, labelled_only=True, origins=True)
    return collate([opened[index, seed + index] for index in range(count)])


def positives(student, images, targets):
    tap = PositiveTap(student)
    torch.manual_seed(0)
    with tap:
        student([image / 255 for image in images], targets)
    return tap
