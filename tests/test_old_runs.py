"""Runs of version 0.1 (tests/data): their weights.pt files load, and their checkpoints go on."""

import json
import shutil

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from cls2det.data.dataset import DetectionData
from cls2det.data.loader import train_loader
from cls2det.distill import (
    DETECTOR_METHODS,
    ClassifierDistiller,
    ClassifierSettings,
    DetectorTeacher,
    Distillation,
    FKDSettings,
)
from cls2det.models.backbones import load_backbone, load_classifier
from cls2det.models.students import build_student, load_student
from cls2det.models.weights import read_weights
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.training.classifier import ClassifierTraining
from cls2det.training.detector import DetectorTraining
from cls2det.training.fit import fit
from cls2det.training.resume import read_checkpoint
from cls2det.training.runs import check_claim
from cls2det.training.settings import Optim, Run
from training_cases import logged

CLASSES = ["disc", "box"]


def stored(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pt", weights_only=True)["weights"]


def test_student(old_runs):
    student = load_student(old_runs / "baseline" / "weights.pt")
    assert (student.name, student.classes, student.image_size) == ("ssd_compact", CLASSES, None)
    weights = stored(old_runs / "baseline")
    state = student.detector.state_dict()
    assert len(state) == len(weights) and all(torch.equal(value, weights[f"detector.{name}"]) for name, value in state.items())
    assert not student.detector.training
    teacher = DetectorTeacher.load(str(old_runs / "baseline" / "weights.pt"), CLASSES)
    assert teacher.columns("chen") == [0, 1, 2]


def test_teacher_and_backbones(old_runs):
    teacher = CropClassifier.load(old_runs / "teacher" / "weights.pt")
    assert (teacher.classes, teacher.architecture, teacher.width, teacher.crop_size) == (CLASSES, "resnet18", 4, 32)
    assert (teacher.loss, teacher.image_size) == ("joint", None)
    for name in ("teacher", "pretrained"):
        network, weights = load_classifier(old_runs / name / "weights.pt"), stored(old_runs / name)
        assert all(torch.equal(value, weights[f"network.{key}"]) for key, value in network.state_dict().items())
    with pytest.raises(ValueError, match="the ResNet does not fit the student's backbone"):
        load_backbone(build_student("ssd_compact", 2), network)
    with pytest.raises(ValueError, match="holds a student, expected a crop_classifier"):
        CropClassifier.load(old_runs / "baseline" / "weights.pt")
    assert read_weights(old_runs / "pretrained" / "weights.pt").kind == "backbone"


@pytest.fixture
def distilled(old_runs, tmp_path):
    """A copy of the run with adapters, and the module that it trained."""
    shutil.copytree(old_runs / "distilled", tmp_path / "run")
    torch.manual_seed(0)
    detector = build_student("ssd_compact", 2)
    classifier = CropClassifier.load(old_runs / "teacher" / "weights.pt")
    settings = ClassifierSettings(kd_loc_weight=2.0, temperature=1.5)
    distillation = Distillation(
        detector,
        ClassifierDistiller(classifier, settings, CLASSES, detector.transform),
        DetectorTeacher.load(str(old_runs / "baseline" / "weights.pt"), CLASSES),
        {"fkd": FKDSettings(weight=0.5, preset="one-stage")},
    )
    return tmp_path / "run", detector, distillation


def optim_of(steps: int) -> Optim:
    return Optim("sgd", 1e-3, momentum=0.0, steps=steps, batch_size=2)


def train(module, optim, root, folder) -> tuple[float, list]:
    """Seconds that ``fit`` reports, and the steps that it made."""
    run, steps = Run(device="cpu", checkpoint_every=2, log_every=1), []
    loader = train_loader(DetectionData(root / "data", "train"), batch_size=2, steps_per_epoch=2, seed=0)
    seconds = fit(module, loader, folder, optim=optim, run=run, seed=0, progress=lambda *step: steps.append(step))
    return seconds, steps


def test_a_finished_run_trains_nothing(old_runs, distilled):
    folder, detector, distillation = distilled
    module = DetectorTraining(detector, CLASSES, distillation=distillation)
    seconds, steps = train(module, optim_of(4), old_runs, folder)
    assert seconds > 0 and not steps
    state = torch.load(old_runs / "distilled" / "last.ckpt", weights_only=True)["state_dict"]
    for prefix, part in (("detector.", detector), ("distillers.", distillation)):
        assert all(torch.equal(value, state[prefix + name]) for name, value in part.state_dict().items())
    assert any(name.startswith("methods.fkd") for name in distillation.state_dict())


def test_an_unfinished_run_goes_on(old_runs, distilled):
    """As if it had been stopped after 4 of 8 steps: the schedule, whose length the checkpoint holds, is made to fit."""
    folder, detector, distillation = distilled
    content = torch.load(folder / "last.ckpt", weights_only=True)
    content["lr_schedulers"][0]["total_steps"] = 9
    torch.save(content, folder / "last.ckpt")
    module = DetectorTraining(detector, CLASSES, optim=optim_of(8), distillation=distillation)
    _, steps = train(module, optim_of(8), old_runs, folder)
    rows, before = logged(folder), logged(old_runs / "distilled")
    assert [int(row["step"]) for row in rows] == list(range(8)) and steps[-1][:2] == (8, 8)
    assert [row["fkd_transfer"] for row in rows[:4]] == [row["fkd_transfer"] for row in before]
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    trained = [name for name, value in state.items() if name.startswith("distillation.methods.fkd") and value.dim() > 1]
    old = content["state_dict"]
    assert trained and any(not torch.equal(state[name], old[name.replace("distillation.", "distillers.")]) for name in trained)


def test_a_finished_teacher_trains_nothing(old_runs, tmp_path):
    shutil.copytree(old_runs / "teacher", tmp_path / "run")
    classifier = CropClassifier(CLASSES, width=4, loss="joint")
    _, steps = train(ClassifierTraining(classifier), optim_of(4), old_runs, tmp_path / "run")
    weights = stored(old_runs / "teacher")
    assert not steps
    assert all(torch.equal(value, weights[f"network.{name}"]) for name, value in classifier.network.state_dict().items())


def test_an_averaged_state_is_renamed_too(distilled):
    """Where weights are averaged, a checkpoint holds those that are trained beside the averaged ones."""
    folder, detector, distillation = distilled
    content = torch.load(folder / "last.ckpt", weights_only=True)
    methods = [name for name in content["state_dict"] if name.startswith("distillers.methods.fkd")]
    content["current_model_state"] = {name: value + 1 for name, value in content["state_dict"].items()}
    torch.save(content, folder / "last.ckpt")
    read_checkpoint(folder / "last.ckpt", DetectorTraining(detector, CLASSES, distillation=distillation))
    renamed = torch.load(folder / "last.ckpt", weights_only=True)
    for state in ("state_dict", "current_model_state"):
        for name in methods:
            assert torch.equal(renamed[state][name.replace("distillers.", "distillation.")], content[state][name])


@pytest.mark.parametrize("student, method, old", [("fasterrcnn_compact", "chen", "kd"), ("fcos_compact", "harmony", "tbd")])
def test_adapters_of_renamed_methods(tmp_path, student, method, old):
    torch.manual_seed(0)
    detector, teacher = build_student(student, 2), build_student(f"{student}_wide", 2)
    settings = {method: DETECTOR_METHODS[method][1]()}
    distillation = Distillation(detector, None, DetectorTeacher(teacher, CLASSES, [1, 2]), settings)
    module = DetectorTraining(detector, CLASSES, distillation=distillation)
    state = {name: torch.full_like(value, 3) for name, value in module.state_dict().items()}
    renamed = {name.replace(f"distillation.methods.{method}", f"distillers.methods.{old}"): state[name] for name in state}
    assert renamed.keys() != state.keys()
    torch.save({"global_step": 1, "state_dict": renamed}, tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt", module)["state_dict"].keys() == state.keys()
    assert all((value == 3).all() for value in distillation.parameters())


def test_a_claim_is_compared_under_todays_names(old_runs):
    old = json.loads((old_runs / "pretrained" / "options.json").read_text())
    record = old | {"run": old["run"] | {"ema": None}}

    def rename(options):
        return options | {"run": options["run"] | {"ema": options["run"]["ema"] or None}}

    with pytest.raises(FileExistsError, match=r"holds a run with other options \(run\)"):
        check_claim(old_runs / "pretrained", record)
    assert check_claim(old_runs / "pretrained", record, rename)
    with pytest.raises(FileExistsError, match=r"other options \(seed\)"):
        check_claim(old_runs / "pretrained", record | {"seed": 1}, rename)
