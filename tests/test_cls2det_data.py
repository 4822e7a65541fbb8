"""Scenes are deterministic, valid COCO; the dataset reads COCO with its gaps and its faults."""

import json
import random
from itertools import pairwise

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")
pytest.importorskip("sklearn")

from PIL import Image

from cls2det.data.augment import AUGMENTATIONS, Augmentation, get_augmentation
from cls2det.data.dataset import DetectionData
from cls2det.data.loader import SeededSampler, test_loader, train_loader
from cls2det.study import scenes
from cls2det.study.scenes import SceneSettings, make_scenes, render_scene

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
    with pytest.raises(FileNotFoundError, match=r"names 1 of 1 images that are not there: .*a\.jpg"):
        DetectionData(root, "mine")
    Image.new("RGB", (50, 40)).save(root / "mine" / "a.jpg")
    with pytest.warns(UserWarning, match=r"1 annotation not trained on .*: annotation 3 of image 5"):
        data = DetectionData(root, "mine")
    assert data.targets[0]["labels"].tolist() == [2, 1]
    assert data.targets[0]["boxes"].tolist() == [[1, 2, 11, 12], [45, 30, 50, 40]]


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
    boxes = set()
    for seed in range(30):
        warped, moved = Augmentation(flip=True, colour=0.0)(image, target, seed)
        rows, columns = torch.where(warped[0] > 184)
        box = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (box - moved["boxes"][0]).abs().max() <= 1.0
        boxes.add(tuple(moved["boxes"][0].tolist()))
    assert len(boxes) == 30


def test_boxes_pushed_out_are_dropped():
    target = {"boxes": torch.tensor([[0.0, 0, 4, 4], [40.0, 30, 50, 40]]), "labels": torch.tensor([1, 2])}
    kept = [
        Augmentation(shift=0.1)(torch.zeros(3, 60, 80, dtype=torch.uint8), target, seed)[1]["labels"].tolist()
        for seed in range(40)
    ]
    assert [2] in kept and [1, 2] in kept


def scene(width=90, height=60):
    """Grey noise and two boxes filled with a colour of their own."""
    image = torch.randint(90, 140, (1, height, width), generator=torch.Generator().manual_seed(0)).repeat(3, 1, 1)
    boxes = torch.tensor([[10.0, 10, 40, 35], [50.0, 20, 80, 55]])
    image[:, 10:35, 10:40] = 255
    image[:, 20:55, 50:80] = 0
    return image.to(torch.uint8), {"boxes": boxes, "labels": torch.tensor([4, 2]), "image_id": torch.tensor(31)}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_are_functions_of_the_seed_alone(name):
    """Whatever was drawn before, from any generator; and they draw nothing from the others."""
    image, target = scene()
    original = image.clone(), {key: value.clone() for key, value in target.items()}
    results, after = [], []
    for other in (0, 1):
        torch.manual_seed(other), np.random.seed(other), random.seed(other)
        results.append([get_augmentation(name)(image, target, seed) for seed in range(25)])
        after.append((torch.rand(1).item(), np.random.rand(), random.random()))
    for (first, one), (second, two) in zip(*results, strict=True):
        assert torch.equal(first, second) and all(torch.equal(one[key], two[key]) for key in target)
    for other in (0, 1):
        torch.manual_seed(other), np.random.seed(other), random.seed(other)
        assert after[other] == (torch.rand(1).item(), np.random.rand(), random.random())
    assert torch.equal(image, original[0]) and all(torch.equal(target[key], original[1][key]) for key in target)
    kinds = {(tuple(image.shape), tuple(target["boxes"].flatten().tolist())) for image, target in results[0]}
    assert len(kinds) >= {"none": 1, "flip": 2}.get(name, 10)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmented_targets_are_whole_and_fit_the_image(name):
    image, target = scene()
    for seed in range(60):
        varied, moved = AUGMENTATIONS[name](image, target, seed)
        assert type(varied) is type(moved["boxes"]) is torch.Tensor
        assert varied.dtype == torch.uint8 and varied.shape[0] == 3
        assert moved["boxes"].dtype == torch.float32 and moved["labels"].dtype == torch.int64 and moved["image_id"] == 31
        assert 1 <= len(moved["boxes"]) == len(moved["labels"])
        limit = torch.tensor([varied.shape[2], varied.shape[1]] * 2)
        assert (moved["boxes"] >= 0).all() and (moved["boxes"] <= limit).all()
        assert (moved["boxes"][:, 2:] - moved["boxes"][:, :2] >= 1).all()


@pytest.mark.parametrize("name", ["flip", "ssd", "ssdlite"])
def test_boxes_and_labels_stay_on_their_objects(name):
    """The bright object is class 4, the dark one class 2, through flips, crops, zooms and changes of colour."""
    image, target = scene()
    mirrored = 0
    for seed in range(60):
        varied, moved = AUGMENTATIONS[name](image, target, seed)
        brightness = varied.float().mean(0)
        centres = {}
        for box, label in zip(moved["boxes"].round().int().tolist(), moved["labels"].tolist(), strict=True):
            inside = brightness[box[1] : box[3], box[0] : box[2]]
            assert inside.std() < 1e-3  # nothing beside the object
            assert inside.mean() > 150 if label == 4 else inside.mean() < 90
            centres[label] = box[0] + box[2]
        mirrored += len(centres) == 2 and centres[4] > centres[2]
    assert 5 < mirrored < 45


def test_zoomed_out_images_lie_on_the_mean_colour():
    image, target = scene()
    larger = [
        varied for varied, _ in (AUGMENTATIONS["ssd"](image, target, seed) for seed in range(80)) if varied.shape[1] > 100
    ]
    assert len(larger) > 5
    for varied in larger:
        colours, counts = varied.flatten(1).unique(dim=1, return_counts=True)
        assert colours[:, counts.argmax()].tolist() == [123, 117, 104]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_of_images_with_little_in_them(name):
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "image_id": torch.tensor(1)}
    sliver = {**nothing, "boxes": torch.tensor([[4.0, 0, 4.3, 9]]), "labels": torch.tensor([3])}
    for seed in range(30):
        for height, width in ((9, 9), (1, 9), (9, 2), (3, 3), (4, 4)):
            varied, moved = AUGMENTATIONS[name](torch.zeros(3, height, width, dtype=torch.uint8), nothing, seed)
            assert moved["boxes"].shape == (0, 4) and moved["labels"].shape == (0,) and varied.numel() > 0
        if not name.startswith("jitter"):  # which drops boxes that it moved out
            assert AUGMENTATIONS[name](torch.zeros(3, 9, 9, dtype=torch.uint8), sliver, seed)[1]["labels"].tolist() == [3]


def test_unknown_augmentation():
    with pytest.raises(ValueError, match=r"augmentation must be one of none, flip, ssd, .*; got 'mosaic'"):
        get_augmentation("mosaic")


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
    unshared = list(SeededSampler(9, 12, seed=1))
    parts = []
    for rank in range(2):
        monkeypatch.setattr("cls2det.data.loader.rank_and_world", lambda rank=rank: (rank, 2))
        parts.append(list(SeededSampler(9, 6, seed=1)))
    assert sorted(parts[0] + parts[1]) == sorted(unshared) and parts[0] == unshared[::2]


def test_shares_of_an_evaluation_hold_every_image_once(root, monkeypatch):
    data, images = DetectionData(root, "train"), []
    for rank in range(5):
        monkeypatch.setattr("cls2det.data.loader.rank_and_world", lambda rank=rank: (rank, 5))
        loader = test_loader(data, batch_size=2, shared=True)
        ids = [int(target["image_id"]) for _, targets in loader for target in targets]
        assert len(loader.sampler) == len(ids)
        images += ids
    assert sorted(images) == [int(target["image_id"]) for target in data.targets] and len(images) == 12


def test_batches_are_the_same_with_and_without_loader_workers(root):
    def batches(workers):
        data = DetectionData(root, "train", augment=Augmentation(), labelled_only=True)
        return [images for images, _ in train_loader(data, batch_size=4, steps_per_epoch=2, seed=1, loader_workers=workers)]

    for batch, batch_of_worker in zip(batches(0), batches(1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, batch_of_worker, strict=True))
