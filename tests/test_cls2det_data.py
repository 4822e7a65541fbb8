"""Scenes are deterministic, valid COCO; the dataset reads COCO with its gaps and its faults."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")
pytest.importorskip("sklearn")

from cls2det import scenes
from cls2det.data import Augmentation, DetectionData, SeededSampler, test_loader, train_loader
from cls2det.scenes import SceneSettings, make_scenes, render_scene

test_loader.__test__ = False  # a function of the package, not a test
SMALL = SceneSettings(train=12, val=3, test=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("data") / "scenes", SMALL)


def files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes_whatever_the_workers(root, tmp_path):
    assert files(make_scenes(tmp_path / "again", SMALL, workers=2)) == files(root)


def test_other_seed_other_scenes():
    assert not np.array_equal(render_scene("train", 0, SMALL)[0], render_scene("train", 0, SceneSettings(seed=1))[0])


def test_stale_scenes_are_made_again_and_good_ones_are_kept(root, tmp_path):
    target = make_scenes(tmp_path / "scenes", SceneSettings(train=2, val=1, test=1))
    before = (target / "scenes.json").stat().st_mtime_ns
    assert (make_scenes(target, SceneSettings(train=2, val=1, test=1)) / "scenes.json").stat().st_mtime_ns == before
    make_scenes(target, SceneSettings(train=3, val=1, test=1))
    assert len(list((target / "train").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]  # no temporary folder is left


def test_foreign_folder_is_not_overwritten(tmp_path):
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"not scenes"):
        make_scenes(tmp_path / "scenes", SMALL)
    assert (tmp_path / "scenes" / "thesis.txt").read_text() == "mine"


def test_splits_share_no_photograph_and_no_glyph():
    photographs = [photograph for split in scenes.PHOTOGRAPHS.values() for photograph in split]
    assert len(photographs) == len(set(photographs))
    ranges = sorted(scenes.GLYPHS.values())
    assert all(first[1] <= second[0] for first, second in pairwise(ranges))
    for package, path in photographs:
        assert scenes._photograph(package, path).ndim == 3  # every one lies in the installed wheels


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_boxes_lie_in_the_image_and_fit_pycocotools(root, split):
    data = DetectionData(root, split)
    assert len(data.coco.getImgIds()) == getattr(SMALL, split) and data.classes == [str(digit) for digit in range(10)]
    for image, target in (data[index] for index in range(len(data))):
        assert image.shape == (3, 96, 96) and image.dtype == torch.uint8
        assert (target["boxes"] >= 0).all() and (target["boxes"] <= 96).all()
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
        assert ((target["labels"] >= 1) & (target["labels"] <= 10)).all()


def write_coco(root, annotations, categories=({"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}), **more):
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "mine").mkdir(exist_ok=True)
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "width": 50, "height": 40}],
        "categories": list(categories),
        "annotations": [
            {"id": number + 1, "image_id": 5, "iscrowd": 0, "area": 1, **annotation}
            for number, annotation in enumerate(annotations)
        ],
    }
    (root / "annotations" / "instances_mine.json").write_text(json.dumps({**content, **more}))
    return root


def test_category_gaps_crowds_and_degenerate_boxes(tmp_path):
    root = write_coco(
        tmp_path,
        [
            {"category_id": 90, "bbox": [1, 2, 10, 10]},
            {"category_id": 7, "bbox": [1, 2, 10, 10], "iscrowd": 1, "segmentation": {"counts": [], "size": [40, 50]}},
            {"category_id": 7, "bbox": [1, 2, 0, 10]},
            {"category_id": 7, "bbox": [45, 30, 10, 20]},
        ],
    )
    data = DetectionData(root, "mine")
    assert data.targets[0]["labels"].tolist() == [2, 1]
    assert data.targets[0]["boxes"].tolist() == [[1, 2, 11, 12], [45, 30, 50, 40]]
    with pytest.raises(FileNotFoundError, match=r"names .*a\.jpg, which is not there"):
        data[0]


def test_clear_errors(tmp_path, root):
    with pytest.raises(FileNotFoundError, match=r"no annotation file .*instances_train.json"):
        DetectionData(tmp_path, "train")
    write_coco(tmp_path, [{"category_id": 8, "bbox": [1, 2, 3, 4]}])
    with pytest.raises(ValueError, match=r"category 8, which is not listed"):
        DetectionData(tmp_path, "mine")
    write_coco(tmp_path, [])
    with pytest.raises(ValueError, match=r"leaves no image"):
        DetectionData(tmp_path, "mine", labelled_only=True)
    (tmp_path / "mine").rmdir()
    with pytest.raises(FileNotFoundError, match=r"no image folder"):
        DetectionData(tmp_path, "mine")
    (tmp_path / "annotations" / "instances_mine.json").write_text("{}")
    with pytest.raises(ValueError, match=r"lacks annotations, categories, images"):
        DetectionData(tmp_path, "mine")


def test_augmented_boxes_follow_the_object():
    """A bright rectangle stays under its box through zoom, shift and flip."""
    image = torch.full((3, 60, 80), 114, dtype=torch.uint8)
    image[:, 20:35, 30:50] = 255
    target = {"boxes": torch.tensor([[30.0, 20, 50, 35]]), "labels": torch.tensor([1])}
    seen = set()
    for seed in range(30):
        warped, moved = Augmentation(flip=True, colour=0.0)(image, target, seed)
        rows, columns = torch.where(warped[0] > 184)
        found = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (found - moved["boxes"][0]).abs().max() <= 1.0
        seen.add(tuple(moved["boxes"][0].tolist()))
    assert len(seen) == 30


def test_boxes_pushed_out_are_dropped():
    target = {"boxes": torch.tensor([[0.0, 0, 4, 4], [40.0, 30, 50, 40]]), "labels": torch.tensor([1, 2])}
    kept = [
        Augmentation(shift=0.1)(torch.zeros(3, 60, 80, dtype=torch.uint8), target, seed)[1]["labels"].tolist()
        for seed in range(40)
    ]
    assert [2] in kept and [1, 2] in kept


def test_order_is_a_function_of_seed_and_epoch():
    first, second = SeededSampler(7, 10, seed=3), SeededSampler(7, 10, seed=3)
    walked = list(first)
    first.set_epoch(1)
    walked += list(first)
    second.set_epoch(1)
    assert list(second) == walked[10:]
    assert len({seed for _, seed in walked}) == 20  # no augmentation twice
    for start in (0, 7):
        assert sorted(index for index, _ in walked[start : start + 7]) == list(range(7))  # permutations without a break
    assert list(SeededSampler(7, 10, seed=4)) != walked[:10]


def test_distributed_processes_share_the_batches(monkeypatch):
    whole = list(SeededSampler(9, 12, seed=1))
    parts = []
    for rank in range(2):
        monkeypatch.setattr("cls2det.data._world", lambda rank=rank: (rank, 2))
        parts.append(list(SeededSampler(9, 6, seed=1)))
    assert sorted(parts[0] + parts[1]) == sorted(whole) and parts[0] == whole[::2]


def test_batches_are_the_same_with_and_without_loader_workers(root):
    def batches(workers):
        data = DetectionData(root, "train", augment=Augmentation(), labelled_only=True)
        return [images for images, _ in train_loader(data, batch_size=4, steps_per_epoch=2, seed=1, loader_workers=workers)]

    for here, there in zip(batches(0), batches(1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
