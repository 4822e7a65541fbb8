"""Splits and weights that disagree on classes, and teachers with too little to learn."""

import json
import warnings

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from rectangles import COLOURS, change_annotations, make_rectangles

from cls2det.cli import main
from cls2det.data.dataset import DetectionData
from cls2det.distill import ClassifierDistiller, ClassifierSettings
from cls2det.evaluation.coco import as_results, evaluate_detector
from cls2det.models.students import build_student, load_student, save_student
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.teachers.detector import DetectorTeacher
from cls2det.training.settings import Optim, Run, TeacherRun
from training_cases import distill, evaluate, logged, train, train_teacher

CLASSES = list(COLOURS)
SHORT = {"optim": Optim(steps=2, batch_size=4), "run": TeacherRun(device="cpu", checkpoint_every=2)}
ONE_STEP = {"optim": Optim(steps=1, batch_size=4), "run": Run(device="cpu", checkpoint_every=1)}


@pytest.fixture
def root(tmp_path):
    return make_rectangles(tmp_path / "data")


def drop_blue(content):
    """As if nobody had seen a blue rectangle, and nobody had listed the class."""
    content["categories"] = content["categories"][:2]
    content["annotations"] = [note for note in content["annotations"] if note["category_id"] < 3]


def add_class(content):
    content["categories"].append({"id": 4, "name": "yellow"})


def rename(old, new):
    def change(content):
        next(category for category in content["categories"] if category["name"] == old)["name"] = new

    return change


def reverse_ids(content):
    """The same objects and names, under the ids 30, 20, 10."""
    new = {1: 30, 2: 20, 3: 10}
    for category in content["categories"]:
        category["id"] = new[category["id"]]
    for note in content["annotations"]:
        note["category_id"] = new[note["category_id"]]


DISAGREE = {
    "fewer": (
        drop_blue,
        r"instances_train.json has 3 classes and .*instances_val.json 2 classes.*only .*train.json has 'blue'\. L",
    ),
    "more": (add_class, r"only .*instances_val.json has 'yellow'\. List all classes in the annotation files of all splits"),
    "case": (
        rename("red", "Red"),
        r"train.json has 'red', only .*val.json has 'Red'; 'red' and 'Red' differ by case or blanks",
    ),
    "blank": (rename("red", "red "), r"'red' and 'red ' differ by case or blanks alone"),
}


@pytest.mark.parametrize("change, message", DISAGREE.values(), ids=DISAGREE)
def test_splits_that_disagree_on_classes_end_a_training_before_it_begins(root, tmp_path, change, message):
    change_annotations(root, "val", change)
    with pytest.raises(ValueError, match=message):
        train_teacher(root, tmp_path / "teacher", val_split="val", **SHORT)
    with pytest.raises(ValueError, match=message):
        train(root, tmp_path / "student", val_split="val")
    with pytest.raises(ValueError, match=message):
        distill(root, tmp_path / "distilled", val_split="val", classifier=ClassifierSettings(kd_cls_weight=0, kd_loc_weight=0))
    assert not any((tmp_path / run).exists() for run in ("teacher", "student", "distilled"))


def test_splits_that_disagree_on_classes_end_a_sweep_before_it_begins(root, tmp_path, capsys):
    change_annotations(root, "val", drop_blue)
    plan = tmp_path / "plan.yaml"
    plan.write_text("train: {optim: {steps: 1, batch_size: 2}}\nseeds: [0]\narms: {baseline: {}}\n")
    words = ["--config", str(plan), "--data-root", str(root), "--out", str(tmp_path / "sweep"), "--split", "val"]
    assert main(["sweep", *words]) == 2
    assert "instances_val.json 2 classes" in capsys.readouterr().err and not (tmp_path / "sweep" / "runs").exists()


def test_splits_with_other_ids_and_another_order_of_classes_are_mapped(root, tmp_path):
    """Objects keep the labels of their names; accuracy, mAP and results are those of the file in the old order."""
    before = DetectionData(root, "val")
    teacher = train_teacher(root, tmp_path / "teacher", optim=Optim(steps=40, batch_size=4), val_split="val")
    accuracy = json.loads((teacher.parent / "report.json").read_text())["accuracy"]
    run = Run(device="cpu", cache=True, checkpoint_every=40, log_every=10, validate_every=1)
    settings = {"images": None, "optim": Optim(steps=40, batch_size=4), "run": run, "val_split": "val"}
    plain = train(root, tmp_path / "plain", **settings)
    change_annotations(root, "val", reverse_ids)

    data = DetectionData(root, "val", classes=CLASSES)
    assert DetectionData(root, "val").classes == CLASSES[::-1]
    assert data.classes == CLASSES and data.category_ids == [30, 20, 10] and data.class_counts() == before.class_counts()
    assert all(torch.equal(new["labels"], old["labels"]) for new, old in zip(data.targets, before.targets, strict=True))

    again = train_teacher(root, tmp_path / "again", optim=Optim(steps=40, batch_size=4), val_split="val")
    assert json.loads((again.parent / "report.json").read_text())["accuracy"] == accuracy > 60
    mapped = train(root, tmp_path / "mapped", **settings)
    assert mapped["mAP"] == pytest.approx(plain["mAP"]) and plain["AP50"] > 5
    during = [logged(tmp_path / name, "val/mAP")[-1]["val/mAP"] for name in ("plain", "mapped")]
    assert float(during[0]) == pytest.approx(float(during[1])) == pytest.approx(mapped["mAP"], rel=1e-3)
    detections = json.loads((tmp_path / "mapped" / "val" / "detections.json").read_text())
    assert {detection["category_id"] for detection in detections} <= {10, 20, 30}


def test_weights_of_other_classes_than_the_split_are_not_evaluated(root, tmp_path):
    torch.manual_seed(0)
    for name, classes in (("fewer", CLASSES[:2]), ("other", ["red", "green", "Blue"]), ("turned", CLASSES[::-1])):
        save_student(tmp_path / name, build_student("ssd_compact", len(classes)), name="ssd_compact", classes=classes)
    with pytest.raises(ValueError, match=r"fewer has 2 classes and .*val.json 3 classes, .*: only .*val.json has 'blue'"):
        evaluate(tmp_path / "fewer", root, "val")
    with pytest.raises(ValueError, match=r"'Blue' and 'blue' differ by case or blanks alone"):
        evaluate(tmp_path / "other", root, "val")
    student, data = load_student(tmp_path / "turned"), DetectionData(root, "val")
    table = evaluate(tmp_path / "turned", root, "val", tmp_path / "out")
    with pytest.raises(ValueError, match=r"in different orders; open the data in the model's"):
        evaluate_detector(student.detector, data, classes=student.classes)
    # The weights' label 1 is blue, which the file calls 3. So are the results, and so are those of the same weights unnamed.
    unnamed = evaluate_detector(student.detector, data)["detections"]
    named = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [4 - entry["category_id"] for entry in named] == [entry["category_id"] for entry in unnamed]
    assert table["mAP"] is not None


def test_a_label_that_stands_for_no_class_is_an_error():
    for label in (0, 3):
        output = {"boxes": torch.rand(1, 4), "scores": torch.rand(1), "labels": torch.tensor([label])}
        with pytest.raises(ValueError, match=f"image 7 the label {label}; the data's 2 classes have the labels from 1 to 2"):
            as_results(7, output, [5, 9])


@pytest.mark.parametrize("architecture", ["resnet18", "compact", "squeezenet1_1", "mobilenet_v3_small"])
def test_a_teacher_with_its_classes_in_another_order_is_mapped(architecture):
    torch.manual_seed(0)
    width = 64 if "net" in architecture else 16
    teacher = CropClassifier(CLASSES, architecture=architecture, width=width, crop_size=64).eval()
    mapped, crops = teacher.for_classes(["blue", "red", "green"]), torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(mapped(crops), teacher(crops)[:, [2, 0, 1]])
    assert mapped.classes == ["blue", "red", "green"] and teacher.classes == CLASSES
    assert teacher.for_classes(CLASSES) is teacher
    torch.testing.assert_close(mapped.reader([], logits=True)(crops)["logits"], mapped(crops), rtol=1e-4, atol=1e-4)


def test_a_teacher_of_other_classes_is_refused_and_one_in_another_order_is_mapped(root, tmp_path):
    """The check for guessing, which runs first, measures the mapped teacher."""
    change_annotations(root, "val", reverse_ids)
    teacher = train_teacher(root, tmp_path / "teacher", train_split="val", optim=Optim(steps=60, batch_size=4))
    assert CropClassifier.load(teacher).classes == CLASSES[::-1]
    distill(root, tmp_path / "distilled", teacher, allow_poor_teacher=False, images=None, **ONE_STEP)
    detector = build_student("ssd_compact", 3)
    distiller = ClassifierDistiller(CropClassifier.load(teacher), ClassifierSettings(), CLASSES, detector.transform)
    assert distiller.teacher is not None and distiller.teacher.classes == CLASSES
    change_annotations(root, "train", add_class)
    with pytest.raises(
        ValueError, match=r"train.json has 4 classes and the teacher 3 classes, .* has 'yellow'\. Train the teacher"
    ):
        distill(root, tmp_path / "other", teacher, **ONE_STEP)


def test_a_detector_teacher_of_other_names_is_told_apart_from_one_that_spells_them_otherwise(tmp_path):
    weights = tmp_path / "weights.pt"
    save_student(weights, build_student("fasterrcnn_compact", 3), name="fasterrcnn_compact", classes=["red", "Green", "blue"])
    teacher = DetectorTeacher.load(str(weights), CLASSES)
    with pytest.raises(
        ValueError, match=r"does not know 'green' \(it knows 'red', 'Green', 'blue'\); 'green' and 'Green' differ"
    ):
        teacher.columns("chen")
    # torchvision's names for no class are not the data's, which may use them for one
    assert DetectorTeacher.load(str(weights), ["__background__", "red"]).labels == [None, 1]


def test_classes_that_differ_by_blanks_alone_are_warned_of_once(root):
    change_annotations(root, "train", rename("green", "red "))
    with pytest.warns(UserWarning, match=r"count as different classes: 'red' and 'red '$") as record:
        DetectionData(root, "train")
    assert len(record) == 1


def test_a_validation_on_the_training_split_is_warned_of(root, tmp_path):
    with pytest.warns(UserWarning, match=r"val_split and train_split are both train: what is measured there is memory"):
        train(root, tmp_path / "run", val_split="train", **ONE_STEP)


def test_right_classes_are_met_with_silence(root, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="cls2det")
        warnings.filterwarnings("error", message=".*class")
        train(root, tmp_path / "run", val_split="val", images=None, **ONE_STEP)
