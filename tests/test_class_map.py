"""A teacher of other classes: probabilities of finer classes add up, coarser ones are shared, the others are left out."""

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision")

from cls2det.distill import BoxDistiller, ClassifierSettings
from cls2det.models.positives import Positives
from cls2det.teachers.class_map import class_map
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.teachers.network import teacher_from

KNOWN = ["husky", "poodle", "cat", "animal", "sofa"]
DATA = ["cat", "dog"]
TABLE = {"husky": "dog", "poodle": "dog", "animal": ["cat", "dog"], "sofa": None}


def logits(rows=6, columns=5, scale=3.0):
    return scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def test_softmax_probabilities_add_up():
    probabilities = logits().softmax(1)
    husky, poodle, cat, animal, _ = probabilities.unbind(1)
    mapped = class_map(DATA, KNOWN, TABLE)(logits()).softmax(1)
    expected = torch.stack([cat + animal / 2, husky + poodle + animal / 2], 1)
    torch.testing.assert_close(mapped, expected / expected.sum(1, keepdim=True))


def test_a_column_of_the_background_takes_what_stands_for_nothing():
    values = logits(columns=6)
    husky, poodle, cat, animal, sofa, background = values.softmax(1).unbind(1)
    mapped = class_map(DATA, KNOWN, TABLE, background=True)(values).softmax(1)
    torch.testing.assert_close(mapped, torch.stack([cat + animal / 2, husky + poodle + animal / 2, background + sofa], 1))


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_sigmoids_are_joined_as_if_independent(scale):
    values = logits(64, scale=scale).double()
    husky, poodle, cat, animal, _ = values.sigmoid().unbind(1)
    joined = [1 - (1 - cat) * (1 - animal / 2), 1 - (1 - husky) * (1 - poodle) * (1 - animal / 2)]
    mapped = class_map(DATA, KNOWN, TABLE, head="sigmoid")(values.float())
    assert mapped.isfinite().all()
    torch.testing.assert_close(mapped.double().sigmoid(), torch.stack(joined, 1), rtol=1e-4, atol=1e-7)


def test_sigmoids_that_are_next_to_0_or_1_stay_finite():
    values = torch.tensor([[-80.0, -90, 0, -200, 0], [80, 90, 0, 200, 0], [-1e4, -1e4, 0, -1e4, 0]])
    mapped = class_map(DATA, KNOWN, TABLE, head="sigmoid")(values)
    expected = [[0.0, -80], [torch.tensor(3.0).log().item(), 170 + torch.tensor(2.0).log().item()]]  # of the first two
    torch.testing.assert_close(mapped[:2], torch.tensor(expected))
    assert mapped[2, 1] < -9000 and mapped.isfinite().all()


def test_an_order_or_other_names_exchange_columns_and_compute_nothing():
    values = logits(columns=3)
    for wanted, table in ((["c", "a", "b"], None), (["z", "x", "y"], {"a": "x", "b": "y", "c": "z"})):
        assert torch.equal(class_map(wanted, ["a", "b", "c"], table)(values), values[:, [2, 0, 1]])
    assert class_map(["a", "b", "c"], ["a", "b", "c"], None) is None
    assert class_map(["a", "b", "c"], ["a", "b", "c"], {"a": "a"}) is None
    crossed = class_map(["a", "b", "c"], ["a", "b", "c"], {"a": "b", "b": "a"})
    assert torch.equal(crossed(values), values[:, [1, 0, 2]])
    # names of both sides need no entry, and what has none on the other side is left out
    assert torch.equal(class_map(["c", "a"], ["a", "b", "c"], {})(values), values[:, [2, 0]])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, r"the data has 2 classes and the teacher 5 classes, .*which of its classes stand for which \(class_mapping\)"),
        ({"husky": "dog", "Sofa": None}, r"names 'Sofa', which the teacher does not have; 'Sofa' and 'sofa' differ by case"),
        ({"husky": "hound"}, r"names 'hound', which the data does not have; there are 'cat', 'dog'"),
        ({"sofa": None}, r"leaves classes of the data without one of the teacher: 'dog'"),
        ({"cat": None, "husky": "dog"}, r"leaves classes of the data without one of the teacher: 'cat'"),
        (
            {"husky": 3},
            r"to a name, to names, or to null, found 3 in 'husky': 3; put a name that looks like a number in quotes",
        ),
    ],
)
def test_what_does_not_fit_is_an_error(table, message):
    with pytest.raises(ValueError, match=message):
        class_map(DATA, KNOWN, table)
    with pytest.raises(ValueError, match="head is softmax or sigmoid, found 'focal'"):
        class_map(DATA, KNOWN, TABLE, head="focal")


class Small(nn.Sequential):
    """A network with a batch norm, whose classes are ``KNOWN``."""

    def __init__(self):
        torch.manual_seed(0)
        body = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*body, nn.Linear(8, len(KNOWN)))
        nn.init.normal_(self[-1].bias, std=3.0)


def test_the_fast_reader_maps_logits_and_leaves_layers():
    teacher = teacher_from(Small(), KNOWN, 16, mean=(0, 0, 0), std=(1, 1, 1))
    mapped = teacher.for_classes(DATA, TABLE)
    assert teacher.classes == KNOWN and mapped.classes == DATA and mapped.network is teacher.network
    assert "mapping" not in dict(teacher.named_children())
    crops = torch.randn(4, 3, 16, 16)
    plain, ours = teacher.reader(["2"], True)(crops), mapped.reader(["2"], True)(crops)
    assert torch.equal(plain["2"], ours["2"])
    torch.testing.assert_close(ours["logits"], class_map(DATA, KNOWN, TABLE)(teacher(crops)))
    torch.testing.assert_close(mapped(crops), ours["logits"])
    assert set(mapped.reader(["2"], False)(crops)) == {"2"}
    assert mapped.for_classes(DATA) is mapped
    torch.testing.assert_close(mapped.for_classes(["dog", "cat"])(crops), mapped(crops)[:, [1, 0]])


def test_a_trained_classifier_is_mapped_with_its_background():
    teacher = CropClassifier(KNOWN, architecture="compact", background=True, loss="joint").eval()
    crops = torch.randn(4, 3, 32, 32)
    for head in ("softmax", "sigmoid"):
        mapped = teacher.for_classes(DATA, mapping=TABLE, head=head)
        expected = class_map(DATA, KNOWN, TABLE, head=head, background=True)(teacher(crops))
        assert mapped(crops).shape == (4, 3)
        torch.testing.assert_close(mapped.reader([], True)(crops)["logits"], expected)
        assert mapped.probabilities(mapped(crops)).shape == (4, 3)
    turned = mapped.for_classes(DATA[::-1])
    torch.testing.assert_close(turned(crops), mapped(crops)[:, [1, 0, 2]])
    of_sigmoids = CropClassifier(KNOWN, architecture="compact", loss="bce").eval()  # reads its logits as it was trained
    expected = class_map(DATA, KNOWN, TABLE, head="sigmoid")(of_sigmoids(crops))
    torch.testing.assert_close(of_sigmoids.for_classes(DATA, mapping=TABLE)(crops), expected)


def test_a_distiller_takes_a_mapped_teacher():
    """The student's order is another: a student that gives the mapped logits has nothing to learn."""
    teacher = teacher_from(Small(), KNOWN, 16, mean=(0, 0, 0), std=(1, 1, 1)).for_classes(DATA, TABLE)
    only = ClassifierSettings(kd_cls_weight=1.0)
    distiller = BoxDistiller(teacher, only, classes=["dog", "cat"], image_mean=(0, 0, 0), image_std=(1, 1, 1))
    images, boxes = torch.rand(1, 3, 40, 40), torch.tensor([[3.0, 4, 20, 30], [10, 8, 38, 39]])
    index = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        answers = teacher(teacher.crop(images, boxes, index))[:, [1, 0]]

    def positives(student):
        return Positives(
            images, student, boxes, index, index.new_tensor([0, 1]), boxes, index, index.new_tensor([1, 2]),
            head="softmax", background="none",
        )  # fmt: skip

    assert distiller(positives(answers))["kd_cls"] < 1e-4 < 1e-2 < distiller(positives(answers.flip(1)))["kd_cls"]
