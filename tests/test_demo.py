"""The job from end to end, small: teacher, students, resume, evaluation, report, command line."""

import dataclasses
import json
import os
import shutil

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")
pytest.importorskip("jsonargparse")

from cls2det import commands, evaluate
from cls2det import demo as demo_module
from cls2det.cli import main
from cls2det.data import Augmentation, DetectionData, collate
from cls2det.distill import ClassifierDistiller, DistillSettings
from cls2det.report import summarise
from cls2det.scenes import SceneSettings, make_scenes
from cls2det.taps import PositiveTap
from cls2det.teacher import CropClassifier
from cls2det.train import DetectorTraining

DIGITS = [str(digit) for digit in range(10)]
SILENT = {"progress": lambda *_: None, "device": "cpu"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("data") / "scenes", SceneSettings(train=16, val=4, test=4))


@pytest.fixture(scope="module")
def teacher(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    report = commands.teacher(root, folder, epochs=2, batch_size=8, **SILENT)
    assert 0 <= report["accuracy"] <= 100 and json.loads((folder / "report.json").read_text()) == report
    return folder / "weights.pt"


def batch(root, size=4):
    data = DetectionData(root, "train", augment=Augmentation(), labelled_only=True)
    return collate([data[index, index] for index in range(size)])


def test_gradient_reaches_logits_and_boxes_and_nothing_of_the_teacher(root, teacher):
    torch.manual_seed(0)
    distiller = ClassifierDistiller(CropClassifier.load(teacher))
    model = DetectorTraining(DIGITS, distiller=distiller).train()
    with PositiveTap(model.detector) as tap:
        model.detector([image.float() / 255 for image in batch(root)[0]], batch(root)[1])
    found = tap.positives
    terms = distiller(found)
    assert set(terms) == {"kd_cls", "kd_loc"} and all(term > 0 for term in terms.values())
    (of_logits,) = torch.autograd.grad(terms["kd_cls"], found.logits, retain_graph=True)
    (of_boxes,) = torch.autograd.grad(terms["kd_loc"], found.boxes, retain_graph=True)
    assert (of_logits.abs().sum(1) > 0).all() and (of_boxes.abs().sum(1) > 0).float().mean() > 0.9
    sum(terms.values()).backward()
    head = model.detector.head
    for part in (head.classification_head, head.regression_head):
        assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in part.parameters())
    assert all(parameter.grad is None for parameter in distiller.teacher.parameters())
    own = {id(parameter) for parameter in model.parameters()}
    assert not own & {id(parameter) for parameter in [*distiller.teacher.parameters(), *distiller.stem.parameters()]}
    assert not distiller.teacher.training and not any(parameter.requires_grad for parameter in distiller.teacher.parameters())


def test_box_gradient_of_kd_loc_pulls_towards_the_ground_truth(root, teacher):
    """A descent step on KD-loc alone moves shifted boxes closer to their ground truths."""
    distiller = ClassifierDistiller(CropClassifier.load(teacher), DistillSettings(cls_weight=0.0))
    model = DetectorTraining(DIGITS, distiller=distiller).train()
    with PositiveTap(model.detector) as tap:
        model.detector([image.float() / 255 for image in batch(root, 12)[0]], batch(root, 12)[1])
    found = tap.positives
    truth = found.target_boxes[found.matched_idxs]
    boxes = (truth + 0.08 * (truth[:, 2:] - truth[:, :2]).repeat(1, 2)).requires_grad_()
    term = distiller(dataclasses.replace(found, boxes=boxes))["kd_loc"]
    (gradient,) = torch.autograd.grad(term, boxes)
    inside = ((truth > 2) & (truth < 94)).all(1)
    assert inside.sum() > 20
    assert (gradient[inside].sum(1) > 0).float().mean() > 0.7


def test_loss_falls_and_the_student_stands_alone(root, teacher, tmp_path):
    history = []
    commands.train(
        root,
        tmp_path / "run",
        images=8,
        teacher=teacher,
        steps=60,
        batch_size=4,
        checkpoint_every=20,
        cache=True,
        **{**SILENT, "progress": lambda step, total, text: history.append(float(text.split()[-1]))},
    )
    assert len(history) == 6 and history[-1] < 0.7 * history[0], history
    logged = (tmp_path / "run" / "log" / "metrics.csv").read_text().splitlines()
    assert set(logged[0].split(",")) >= {"bbox_regression", "classification", "kd_cls", "kd_loc", "loss"}
    keys = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    assert keys and all(key.startswith("detector.") for key in keys)
    alone = tmp_path / "elsewhere.pt"
    shutil.move(tmp_path / "run" / "weights.pt", alone)
    table = commands.evaluate(alone, root, "test", tmp_path / "evaluation", device="cpu")
    assert 0 <= table["class acc"] <= 100 and 0 <= table["mean IoU"] <= 100 and len(table["AP by IoU"]) == 10
    assert table["mAP"] == pytest.approx(sum(table["AP by IoU"]) / 10, abs=0.01)
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text()) == table


class Stop(Exception):
    pass


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(root, teacher, tmp_path):
    def run(folder, progress):
        commands.train(
            root,
            tmp_path / folder,
            teacher=teacher,
            images=8,
            steps=40,
            batch_size=2,
            checkpoint_every=10,
            seed=3,
            **{**SILENT, "progress": progress},
        )
        return torch.load(tmp_path / folder / "weights.pt", weights_only=True)["weights"]

    def stop_in_the_third_epoch(step, total, text):
        if step == 20:
            torch.manual_seed(99)  # whatever happens between, the restart does not depend on it
        if step == 30:
            raise Stop

    unbroken = run("unbroken", lambda *_: None)
    with pytest.raises(Stop):
        run("broken", stop_in_the_third_epoch)
    assert not (tmp_path / "broken" / "weights.pt").exists()
    steps = []
    resumed = run("broken", lambda step, *_: steps.append(step))
    assert steps[0] == 30, "the restart did not go on from the checkpoint at step 20"
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_a_stopped_teacher_goes_on_as_if_it_had_not_stopped(root, tmp_path):
    """The teacher's steps draw random numbers (box jitter): they too are the same after a restart."""

    def run(folder, stop_at):
        def stop(step, *_):
            if step == stop_at:
                raise Stop

        commands.teacher(root, tmp_path / folder, epochs=3, batch_size=2, seed=5, test_split=None, device="cpu", progress=stop)
        return torch.load(tmp_path / folder / "weights.pt", weights_only=True)["weights"]

    unbroken = run("unbroken", None)
    with pytest.raises(Stop):
        run("broken", 20)  # in the third epoch of eight steps
    torch.manual_seed(99)
    resumed = run("broken", None)
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_seed_changes_the_images(root, tmp_path):
    first, second = (
        commands.train(root, tmp_path / str(seed), images=4, steps=1, batch_size=2, checkpoint_every=1, seed=seed, **SILENT)
        for seed in (1, 2)
    )
    assert first["images"] == second["images"] == 4
    weights = [torch.load(tmp_path / str(seed) / "weights.pt", weights_only=True)["weights"] for seed in (1, 2)]
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_one_hot_control_ignores_the_teacher(root, teacher):
    torch.manual_seed(0)
    settings = DistillSettings(loc_weight=0.0, one_hot=True)
    other = CropClassifier(DIGITS)
    model = DetectorTraining(DIGITS, distiller=ClassifierDistiller(other, settings)).train()
    with model.tap:
        model.detector([image.float() / 255 for image in batch(root)[0]], batch(root)[1])
    found = model.tap.positives
    value = ClassifierDistiller(CropClassifier.load(teacher), settings)(found)["kd_cls"]
    labels = found.target_labels[found.matched_idxs]
    wanted = 0.4 * 4 * torch.nn.functional.cross_entropy(found.logits / 2, labels)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(model.distiller(found)["kd_cls"], wanted)


def test_perfect_detections_score_100(root):
    data = DetectionData(root, "test")
    perfect = [
        {"image_id": note["image_id"], "category_id": note["category_id"], "bbox": note["bbox"], "score": 1.0}
        for note in data.coco.dataset["annotations"]
    ]
    table = evaluate._coco_table(data, perfect)
    assert table["mAP"] == pytest.approx(100) and table["AP75"] == pytest.approx(100)
    assert evaluate._coco_table(data, [])["mAP"] == 0


def test_clear_errors(root, teacher, tmp_path):
    distiller = ClassifierDistiller(CropClassifier.load(teacher))
    with pytest.raises(ValueError, match=r"the teacher knows 10 classes, the data has 2: .*only the data has \['cat'\]"):
        DetectorTraining(["1", "cat"], distiller=distiller)
    with pytest.raises(ValueError, match=r"the order differs"):
        DetectorTraining(DIGITS[::-1], distiller=distiller)
    distiller.teacher.transform.image_std = [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match=r"image_std is .* in the student and .* in the teacher"):
        DetectorTraining(DIGITS, distiller=distiller)
    with pytest.raises(ValueError, match=r"no student 'yolo'; there are ssd_compact"):
        DetectorTraining(DIGITS, student="yolo")
    with pytest.raises(ValueError, match=r"holds something other than a DetectorTraining"):
        DetectorTraining.load(teacher)
    with pytest.raises(ValueError, match=r"--images 99: train of .* has 16 images"):
        commands.train(root, tmp_path, images=99, **SILENT)
    DetectorTraining(["cat"]).save(tmp_path / "cats.pt")
    with pytest.raises(ValueError, match=r"the model knows 1 classes .cat"):
        commands.evaluate(tmp_path / "cats.pt", root, "test", device="cpu")


def test_command_line_errors_are_one_line(tmp_path, capsys):
    assert main(["evaluate", "--weights", str(tmp_path / "none.pt"), "--data-root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("cls2det evaluate: no weights at")
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "holds something other than a demo" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--help"])
    assert stop.value.code == 0 and "--quick" in capsys.readouterr().out


def in_this_process(jobs, workers, console):
    for job in jobs:
        job.function(*job.arguments, progress=lambda *_: None)
    in_this_process.ran += [job.name for job in jobs]


def test_demo_writes_its_report_and_does_nothing_twice(tmp_path, monkeypatch, capsys):
    tiny = dataclasses.replace(
        demo_module.QUICK,
        scenes=SceneSettings(train=8, val=2, test=4),
        teacher_epochs=1,
        labelled_images=4,
        steps=2,
        batch_size=2,
        checkpoint_every=2,
    )
    monkeypatch.setattr(demo_module, "QUICK", tiny)
    monkeypatch.setattr(demo_module, "run_jobs", in_this_process)
    in_this_process.ran = []
    out, command = tmp_path / "demo", ["demo", "--quick", "--out", str(tmp_path / "demo"), "--device", "cpu", "--workers", "1"]
    assert main(command) == 0
    assert in_this_process.ran == ["teacher", "start"] + [f"{arm}, seed 11" for arm in demo_module.ARMS]
    for name in ("report.md", "report.json", "gain.png", "detections.png"):
        assert (out / name).stat().st_size > 500
    text, content = (out / "report.md").read_text(), json.loads((out / "report.json").read_text())
    assert "Too short to show the gain" in text and "crops of all 8 train scenes" in text and "saw 4 images" in text
    assert list(content["table"]) == list(demo_module.ARMS) and content["table"]["+ both"]["standard error"] is None
    assert os.listdir(tmp_path) == ["demo"]
    assert main([*command, "--seeds", "2"]) == 0  # the first seed is kept, the second is trained
    assert in_this_process.ran[6:] == [f"{arm}, seed 12" for arm in demo_module.ARMS]
    monkeypatch.setattr(demo_module, "QUICK", dataclasses.replace(tiny, steps=3))
    capsys.readouterr()
    assert main(command) == 2 and "other settings" in capsys.readouterr().err


def test_paired_gain():
    def result(value):
        return dict.fromkeys(("mAP", "AP50", "AP75", "APs", "APm", "class acc", "mean IoU", "seconds"), value) | {
            "APl": None,
            "AP by IoU": [value] * 10,
        }

    results = {
        ("baseline", 1): result(10.0),
        ("baseline", 2): result(20.0),
        ("+ both", 1): result(11.0),
        ("+ both", 2): result(23.0),
    }
    both = summarise(results)["+ both"]
    assert both["gain"] == 2.0 and both["standard error"] == pytest.approx(1.0) and both["mAP"] == 17.0 and both["APl"] is None
