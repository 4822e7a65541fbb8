"""Splits and weights that disagree on classes, and teachers with too little to learn."""

import dataclasses
import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from cls2det.cli import main
from cls2det.data.dataset import DetectionData
from cls2det.data.loader import collate, test_loader
from cls2det.distill import ClassifierDistiller, ClassifierSettings, Distillation
from cls2det.evaluation.coco import as_results, evaluate_detector
from cls2det.models.students import build_student, load_student, save_student
from cls2det.models.taps import PositiveTap
from cls2det.teachers.accuracy import check_not_at_chance, crop_logits
from cls2det.teachers.background import background_boxes
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.teachers.detector import DetectorTeacher
from cls2det.training.classifier import ClassifierTraining
from cls2det.training.detector import DetectorTraining
from cls2det.training.settings import Optim, Run, TeacherRun
from rectangles import COLOURS, change_annotations, make_rectangles
from training_cases import distill, evaluate, logged, train, train_teacher

test_loader.__test__ = False  # a function of the package, not a test
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
        distill(root, tmp_path / "distilled", val_split="val", classifier=ClassifierSettings(kd_cls_weight=0, loc_weight=2.0))
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
    teacher = train_teacher(root, tmp_path / "teacher", optim=Optim(steps=20, batch_size=4), val_split="val")
    accuracy = json.loads((teacher.parent / "report.json").read_text())["accuracy"]
    run = Run(device="cpu", cache=True, checkpoint_every=40, log_every=10, validate_every=1)
    settings = {"images": None, "optim": Optim(steps=40, batch_size=4), "run": run, "val_split": "val"}
    plain = train(root, tmp_path / "plain", **settings)
    change_annotations(root, "val", reverse_ids)

    data = DetectionData(root, "val", classes=CLASSES)
    assert DetectionData(root, "val").classes == CLASSES[::-1]
    assert data.classes == CLASSES and data.category_ids == [30, 20, 10] and data.class_counts() == before.class_counts()
    assert all(torch.equal(new["labels"], old["labels"]) for new, old in zip(data.targets, before.targets, strict=True))

    again = train_teacher(root, tmp_path / "again", optim=Optim(steps=20, batch_size=4), val_split="val")
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
    """But 0, which a head of sigmoids may give: it is the background, and no class."""
    output = {"boxes": torch.rand(3, 4), "scores": torch.rand(3), "labels": torch.tensor([1, 0, 2])}
    assert [result["category_id"] for result in as_results(7, output, [5, 9])] == [5, 9]
    output["labels"][1] = 3
    with pytest.raises(ValueError, match="image 7 the label 3; the data's 2 classes have the labels from 1 to 2"):
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


def keep_class(*names):
    """Only objects of these classes; all stay listed."""

    def change(content):
        ids = [category["id"] for category in content["categories"] if category["name"] in names]
        content["annotations"] = [note for note in content["annotations"] if note["category_id"] in ids]

    return change


def list_class(name):
    def change(content):
        keep_class(name)(content)
        content["categories"] = [category for category in content["categories"] if category["name"] == name]

    return change


def spoil(root, change):
    for split in ("train", "val"):
        change_annotations(root, split, change)


TRAINED = {"optim": Optim(steps=30, batch_size=4), "augmentation": "none"}


@pytest.mark.parametrize("loss", ["ce", "bce", "joint"])
@pytest.mark.parametrize("change", [list_class("red"), keep_class("red")], ids=["listed", "with objects"])
def test_a_teacher_of_one_class_learns_the_background(root, tmp_path, caplog, loss, change):
    spoil(root, change)
    with caplog.at_level("INFO", logger="cls2det"):
        weights = train_teacher(root, tmp_path / "teacher", loss=loss, val_split="val", **TRAINED)
    assert "'red' is the only class with objects: the teacher learns the background too" in caplog.text
    teacher, report = CropClassifier.load(weights), json.loads((weights.parent / "report.json").read_text())
    classes = len(teacher.classes)
    assert teacher.background and report["background"]
    counts = report["validation crops"]
    assert counts["objects"] == sum(DetectionData(root, "val").class_counts().values()) and counts["background"] >= 3
    assert report["accuracy"] > 100 * max(counts.values()) / sum(counts.values()) + 10
    data = DetectionData(root, "train")
    logits, truth = crop_logits(teacher, test_loader(data))
    assert logits.shape[1] == classes + (loss != "bce")
    assert check_not_at_chance(teacher, test_loader(data)) > 80
    again, _ = crop_logits(teacher, test_loader(data))
    assert torch.equal(logits, again)  # the same crops every time
    sigmoids = teacher.probabilities(logits, sigmoid=True)
    assert sigmoids.shape[1] == classes + 1 and (sigmoids > 0).all() and truth.max() == classes
    if loss != "ce":
        assert sigmoids[truth == classes, :-1].amax(1).mean() < 0.5 < sigmoids[truth == 0, 0].mean()


@pytest.fixture(scope="module")
def one_class(tmp_path_factory):
    """Data of one class, and a teacher for both kinds of heads that was trained on it."""
    folder = tmp_path_factory.mktemp("one_class")
    root = make_rectangles(folder / "data")
    spoil(root, list_class("red"))
    return root, train_teacher(root, folder / "teacher", loss="joint", **TRAINED)


@pytest.mark.parametrize(
    "student", ["ssd_compact", "fasterrcnn_compact", "detr_compact", "rtdetr_v2_compact", "retinanet_compact", "fcos_compact"]
)
def test_a_student_of_one_class_learns_from_the_background_too(one_class, student):
    """KD-cls is positive, has gradients and falls; without a column for the background it was the one-hot label."""
    root, weights = one_class
    only = ClassifierSettings(kd_cls_weight=1.0)
    torch.manual_seed(0)
    detector = build_student(student, 1)
    teacher = CropClassifier.load(weights)
    model = DetectorTraining(
        detector,
        ["red"],
        distillation=Distillation(detector, ClassifierDistiller(teacher, only, ["red"], detector.transform)),
    ).train()
    data = DetectionData(root, "train", labelled_only=True)
    pictures, history = collate([data[index] for index in range(4)]), []
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    for step in range(12):
        torch.manual_seed(step)  # of the proposals that Faster R-CNN samples
        _, terms = model.losses(*pictures)
        optimizer.zero_grad()
        terms["kd_cls"].backward()
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in detector.parameters())
        optimizer.step()
        history.append(terms["kd_cls"].item())
    assert min(history) > 0 and sum(history[-3:]) / 3 < 0.95 * history[0], history

    positives = model.tap.positives
    crops = teacher.crop(positives.images, positives.target_boxes, positives.target_image_index)
    of_teacher = teacher(crops)[positives.matched_idxs]
    logits = positives.logits.detach()
    if positives.head == "softmax":  # written out, with the columns where each student has them
        columns = [1, 0] if positives.background == "first" else [0, 1]
        expected = F.kl_div((logits / 2).log_softmax(1), (of_teacher[:, columns] / 2).softmax(1), reduction="sum")
    else:
        student_score = (logits[:, -1:] / 2).sigmoid()
        score = (of_teacher[:, :1] / 2).sigmoid()
        expected = sum(p * (p / q).log() for p, q in ((score, student_score), (1 - score, 1 - student_score))).sum()
    distiller = model.distillation.classifier
    torch.testing.assert_close(distiller(positives)["kd_cls"], 4 * expected / len(positives), rtol=1e-3, atol=1e-5)
    equal = dataclasses.replace(positives, logits=of_teacher[:, columns]) if positives.head == "softmax" else None
    if equal is not None:
        assert distiller(equal)["kd_cls"].abs() < 1e-5


def test_columns_of_several_classes_and_the_background_land_where_the_student_has_them(root):
    """A student that gives the teacher's logits, in its own order of columns, has nothing to learn."""
    torch.manual_seed(0)
    only = ClassifierSettings(kd_cls_weight=1.0)
    teacher = CropClassifier(CLASSES[::-1], background=True, loss="joint").eval()
    detector = build_student("ssd_compact", 3).train()
    tap, data = PositiveTap(detector), DetectionData(root, "train")
    images, targets = collate([data[index] for index in range(4)])
    with tap:
        detector([image / 255 for image in images], targets)
    positives = tap.positives
    crops = teacher.crop(positives.images, positives.target_boxes, positives.target_image_index)
    blue, green, red, background = teacher(crops)[positives.matched_idxs].unbind(1)
    distiller = ClassifierDistiller(teacher, only, CLASSES, detector.transform)
    places = {"first": [background, red, green, blue], "last": [red, green, blue, background]}
    for place, columns in places.items():
        equal = dataclasses.replace(positives, logits=torch.stack(columns, 1), background=place)
        assert distiller(equal)["kd_cls"].abs() < 1e-6
        assert distiller(dataclasses.replace(equal, logits=equal.logits.flip(1)))["kd_cls"] > 1e-4
    sigmoid = dataclasses.replace(positives, logits=torch.stack([red, green, blue], 1), head="sigmoid", background="none")
    assert distiller(sigmoid)["kd_cls"].abs() < 1e-6
    shuffled = dataclasses.replace(only, control="shuffled")
    wrong = ClassifierDistiller(teacher, shuffled, CLASSES, detector.transform)
    equal = dataclasses.replace(positives, logits=torch.stack([background, blue, red, green], 1), background="first")
    assert wrong(equal)["kd_cls"].abs() < 1e-6


def test_background_boxes_miss_the_objects_and_lie_inside_their_image():
    torch.manual_seed(0)
    corners = torch.rand(40, 2) * 60
    boxes = torch.cat([corners, corners + 5 + torch.rand(40, 2) * 30], 1)
    image_index, sizes = torch.arange(40) % 8, [(96, 128)] * 8
    spaces, space_index = background_boxes(boxes, image_index, sizes)
    assert 30 <= len(spaces) <= 40
    for index in range(8):
        assert box_iou(spaces[space_index == index], boxes[image_index == index]).max() < 0.2
    assert (spaces >= 0).all() and (spaces[:, 2] <= 128).all() and (spaces[:, 3] <= 96).all()
    full = torch.tensor([[0.0, 0, 128, 96], [10, 10, 30, 30]])  # an object that fills the image leaves no room for another
    assert len(background_boxes(full, torch.tensor([0, 0]), [(96, 128)])[0]) == 0
    assert background_boxes(full[:0], torch.zeros(0, dtype=torch.int64), [(96, 128)])[0].shape == (0, 4)


def test_one_class_and_no_background_is_refused(root, tmp_path):
    spoil(root, list_class("red"))
    for loss in ("ce", "bce"):
        with pytest.raises(ValueError, match=r"'red' is the only class .*--background true.*loc-weight.*detector teacher"):
            train_teacher(root, tmp_path / "teacher", loss=loss, background=False, **SHORT)
    assert not (tmp_path / "teacher").exists()
    CropClassifier(["red"]).save(tmp_path / "old.pt")  # as was written before
    with pytest.raises(ValueError, match=r"all \d+ crops .* are of class 'red': naming it is always right.*--background true"):
        distill(root, tmp_path / "run", tmp_path / "old.pt", allow_poor_teacher=False, **ONE_STEP)
    with pytest.raises(ValueError, match="control shuffled needs two classes or more"):
        settings = ClassifierSettings(control="shuffled")
        ClassifierDistiller(CropClassifier(["red"]), settings, ["red"], build_student("ssd_compact", 1).transform)


def test_one_class_from_the_teacher_to_the_student(root, tmp_path):
    """By the two commands, with the check that refuses a guessing teacher; the student starts from the teacher's body."""
    spoil(root, list_class("red"))
    weights = train_teacher(root, tmp_path / "teacher", architecture="compact", **TRAINED)
    settings = {"classifier": ClassifierSettings(loc_weight=2.0), "images": None, "allow_poor_teacher": False}
    report = distill(root, tmp_path / "run", weights, start=weights, **settings, **ONE_STEP)
    assert report["started from"] == str(weights)
    assert float(logged(tmp_path / "run", "kd_cls")[0]["kd_cls"]) > 0


def test_background_for_several_classes_is_learnt_where_it_is_asked_for(root, tmp_path):
    weights = train_teacher(root, tmp_path / "teacher", background=True, val_split="val", **TRAINED)
    teacher, report = CropClassifier.load(weights), json.loads((weights.parent / "report.json").read_text())
    assert teacher.network.fc.out_features == 4 and report["validation crops"]["background"] > 0
    assert report["accuracy"] > 60 and check_not_at_chance(teacher, test_loader(DetectionData(root, "train"))) > 60
    plain = train_teacher(root, tmp_path / "plain", **SHORT)
    assert CropClassifier.load(plain).network.fc.out_features == 3
    assert not json.loads((plain.parent / "report.json").read_text())["background"]


def test_classes_without_objects_to_train_on_are_counted_in_the_val_split(root, tmp_path):
    change_annotations(root, "train", keep_class("red", "green"))
    count = DetectionData(root, "val").class_counts()["blue"]
    text = rf"the 12 images that are trained on have no object of class 'blue' \(.*val.json has {count}\): the {{}} will not"
    with pytest.warns(UserWarning, match=text.format("teacher")):
        train_teacher(root, tmp_path / "teacher", val_split="val", **SHORT)
    with pytest.warns(UserWarning, match=text.format("detector")):
        train(root, tmp_path / "run", val_split="val", images=None, **ONE_STEP)
    change_annotations(root, "train", keep_class("red"))
    change_annotations(root, "val", keep_class("red"))
    with pytest.warns(UserWarning, match=r"trained on have no object of class 'green', 'blue': the detector"):
        train(root, tmp_path / "subset", images=1, **ONE_STEP)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no object")
        train(root, tmp_path / "listed", val_split="val", images=None, **ONE_STEP)


@pytest.mark.parametrize("changes", [{"min_size": 500.0}, {"optim": Optim(steps=2, batch_size=1)}], ids=["small", "single"])
def test_a_teacher_that_learns_from_no_batch_ends_with_an_error(root, tmp_path, changes):
    """Crops that are all below the least size; one crop per batch."""
    spoil(root, lambda content: content.update(annotations=content["annotations"][::2]))  # one per image
    out = tmp_path / "teacher"
    with (
        pytest.raises(
            ValueError, match=r"the teacher learns nothing: none of 2 batches held two crops of at least .* Lower --min"
        ),
        pytest.warns(UserWarning, match="nothing is learnt from a batch with . crops") as record,
    ):
        train_teacher(root, out, **SHORT | changes)
    assert len([entry for entry in record if "nothing is learnt" in str(entry.message)]) == 1
    assert not (out / "weights.pt").exists() and not (out / "last.ckpt").exists()


def test_objects_that_leave_no_room_for_a_background_are_an_error(root, tmp_path):
    def fill(content):
        list_class("red")(content)
        for note in content["annotations"]:
            note["bbox"] = [0, 0, 96, 72]

    spoil(root, fill)
    with pytest.raises(ValueError, match=r"no room for it in any of 2 batches\. Do without a classifier.*, or add images"):
        train_teacher(root, tmp_path / "teacher", **SHORT)
    assert not (tmp_path / "teacher" / "weights.pt").exists()


def test_a_stopped_teacher_remembers_what_it_has_seen():
    """A stretch without a crop of the background, after one with some, is no fault."""
    training = ClassifierTraining(CropClassifier(CLASSES, background=True))
    training.barren, training.fruitful, training.missed = 1, 5, 3
    checkpoint: dict = {}
    training.on_save_checkpoint(checkpoint)
    other = ClassifierTraining(CropClassifier(CLASSES, background=True))
    other.on_load_checkpoint(checkpoint)
    assert (other.barren, other.fruitful, other.missed) == (1, 5, 3)
    other.on_load_checkpoint({})  # of an older run
    assert other.fruitful and other.missed


def test_a_training_that_moves_no_weight_is_warned_of(root, tmp_path):
    still = Optim(optimizer="sgd", learning_rate=0.0, schedule="constant", weight_decay=0.0, steps=1, batch_size=4)
    with pytest.warns(UserWarning, match=r"moved no weight of the teacher, .* started from: random weights"):
        train_teacher(root, tmp_path / "teacher", **SHORT | {"optim": still})


def test_weights_of_the_other_kind_are_named(root, tmp_path):
    teacher = train_teacher(root, tmp_path / "teacher", **SHORT)
    train(root, tmp_path / "student", **ONE_STEP)
    student = tmp_path / "student" / "weights.pt"
    with pytest.raises(ValueError, match="holds a student, expected a crop_classifier"):
        distill(root, tmp_path / "a", student, **ONE_STEP)
    with pytest.raises(ValueError, match="holds a crop_classifier, expected a student"):
        distill(root, tmp_path / "b", detector_teacher=str(teacher), distillers=["fkd"], **ONE_STEP)
    with pytest.raises(ValueError, match="the ResNet does not fit the student's backbone"):
        train(root, tmp_path / "c", start=teacher, **ONE_STEP)
