"""VOC's and YOLO's layouts give the images, boxes, classes and numbers of the same data in COCO's."""

import warnings

import pytest
import torch

pytest.importorskip("pycocotools")

from other_layouts import LAYOUTS

from cls2det.data.dataset import DetectionData
from cls2det.data.layouts import list_splits, load_truth
from cls2det.evaluation.coco import coco_table
from rectangles import change_annotations, make_rectangles

SIZE = (96, 72)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = make_rectangles(tmp_path_factory.mktemp("formats") / "coco")

    def empty_the_last(content):
        last = content["images"][-1]["id"]
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != last]

    change_annotations(root, "train", empty_the_last)  # an image without objects
    return root


def silently(root, split="train", **options):
    """The data, which must not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return DetectionData(root, split, **options)


def names_of(data, target):
    return [data.classes[label - 1] for label in target["labels"]]


def perfect(data):
    return [
        {name: entry[name] for name in ("image_id", "category_id", "bbox")} | {"score": 1.0 - entry["id"] / 1000}
        for entry in data.coco.dataset["annotations"]
    ]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_as_the_same_data(name, coco, tmp_path):
    root = LAYOUTS[name](coco, tmp_path / "data")
    for split in ("train", "val"):
        expected, data = silently(coco, split), silently(root, split)
        order = sorted if name.startswith("voc") else list
        assert data.classes == order(expected.classes) and len(data) == len(expected)
        for index in range(len(data)):
            (image, target), (other_image, other) = data[index], expected[index]
            assert torch.equal(image, other_image)
            torch.testing.assert_close(target["boxes"], other["boxes"])
            assert names_of(data, target) == names_of(expected, other)
        table, expected_table = (coco_table(which, perfect(which)) for which in (data, expected))
        assert table["mAP"] == pytest.approx(100) == expected_table["mAP"]
        assert len(load_truth(root, split).dataset["images"]) == len(expected)
    assert len(silently(root, "train", labelled_only=True)) == 11
    splits = ["train", "val"] if name != "yolo, archive" else ["train", "val", "valid"]
    assert list_splits(root) == splits
