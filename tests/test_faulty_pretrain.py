"""Folders of images by class that hold more, or less, than images by class."""

import numpy as np
import pytest

pytest.importorskip("torchvision")
pytest.importorskip("lightning")

from PIL import Image
from torchvision.datasets import ImageFolder

from cls2det.commands.options import PretrainOptions
from cls2det.commands.pretrain import pretrain as run_pretrain
from cls2det.training.backbone import ImagesByClass
from cls2det.training.settings import Optim, PretrainRun


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def by_class(tmp_path):
    """train/ and val/ with the folders cat and owl, as `cls2det pretrain` reads them."""
    for folder in ("train/cat", "train/owl/deeper", "val/cat", "val/owl"):
        (tmp_path / folder).mkdir(parents=True)
        noise(40, 40).save(tmp_path / folder / "a.png")
    return tmp_path


def pretrain(root, out) -> dict:
    optim = Optim("sgd", 0.01, steps=1, batch_size=2, schedule="constant")
    options = PretrainOptions(root, out, architecture="compact", image_size=32, optim=optim, run=PretrainRun(device="cpu"))
    return run_pretrain(options, lambda *_: None)


def test_hidden_folders_are_no_classes(by_class, tmp_path):
    for folder in ("train/.ipynb_checkpoints", "train/.git", "train/__MACOSX", "train/cat/.ipynb_checkpoints", "val/@eaDir"):
        (by_class / folder).mkdir()
        noise(40, 40).save(by_class / folder / "a.png")
    (by_class / "train" / "cat" / "._a.png").write_bytes(b"of a file system")
    assert pretrain(by_class, tmp_path / "out")["images"] == 2


def test_files_are_found_under_a_hidden_data_root(by_class, tmp_path):
    (by_class / "train").rename(tmp_path / "moved")
    (by_class / ".cache").mkdir()
    (tmp_path / "moved").rename(by_class / ".cache" / "train")
    (by_class / "val").rename(by_class / ".cache" / "val")
    assert pretrain(by_class / ".cache", tmp_path / "out")["images"] == 2


def test_classes_of_one_side_are_named(by_class, tmp_path):
    for folder in ("train/dog", "train/emu", "val/fox"):
        (by_class / folder).mkdir()
        noise(40, 40).save(by_class / folder / "a.png")
    with pytest.raises(ValueError, match=r"differ: .*train alone has dog, emu; .*val alone has fox"):
        pretrain(by_class, tmp_path / "out")


def test_a_class_without_images_is_named(by_class, tmp_path):
    (by_class / "train" / "dog").mkdir()
    (by_class / "train" / "dog" / "a.heic").write_bytes(b"not decoded")
    with pytest.raises(ValueError, match=r"1 of 3 folders have no image that can be read: dog \(1 picture .*1 \.heic"):
        pretrain(by_class, tmp_path / "out")


def test_pretraining_takes_what_pillow_reads_and_counts_the_rest(by_class, tmp_path):
    for name, kind in (("b.jfif", "JPEG"), ("c.JPE", "JPEG"), ("d.gif", "GIF")):
        noise(40, 40).save(by_class / "train" / "cat" / name, format=kind)
    (by_class / "train" / "cat" / "e.heic").write_bytes(b"not decoded")
    with pytest.warns(UserWarning, match=r"left out: 1 picture of kinds that cannot be read here \(1 \.heic\)"):
        assert pretrain(by_class, tmp_path / "out")["images"] == 5


def test_images_by_class_come_in_the_order_of_torchvision(by_class):
    for name in ("deeper/z.png", "b.png", "z.png", "Z.png"):
        noise(40, 40).save(by_class / "train" / "owl" / name)
    assert ImagesByClass(by_class / "train").samples == ImageFolder(by_class / "train").samples
