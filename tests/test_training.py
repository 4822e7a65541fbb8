"""Training runs: they learn, survive a kill, resume exactly, and leave the files that they say."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_post_hook
from torchvision.models import get_model_weights

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from cls2det.cli import main
from cls2det.commands.options import DistillOptions
from cls2det.commands.train import train as train_command
from cls2det.distill import ClassifierSettings, DetectorTeacher
from cls2det.models.backbones import build_classifier
from cls2det.models.students import build_student, detr, load_student
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.training.classifier import ClassifierTraining
from cls2det.training.detector import DetectorTraining
from cls2det.training.optimizer import configure_optimizer
from cls2det.training.settings import Optim, Run
from helpers import default_signal
from training_cases import DIGITS, distill, evaluate, logged, silent, train, train_teacher, untrained_student, weights_in

RUN = Run(device="cpu", cache=True, checkpoint_every=10)


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first) and first.keys() == second.keys()


def test_loss_falls_and_the_student_stands_alone(scenes, teacher_weights, tmp_path):
    history = []
    run = dataclasses.replace(RUN, checkpoint_every=20, log_every=5, ratio_every=5)
    distill(
        scenes,
        tmp_path / "run",
        teacher_weights,
        optim=Optim(steps=60, batch_size=4),
        run=run,
        progress=lambda step, total, text: history.append(float(text.split()[-1])),
    )
    assert len(history) == 15 and history[-1] < 0.75 * history[0], history  # ten steps at first, then every tenth
    rows = logged(tmp_path / "run")
    for term in ("bbox_regression", "classification"):
        assert float(rows[0][term]) > float(rows[-1][term]) > 0, term
    for term in ("kd_cls", "kd_loc", "loc"):
        assert all(float(row[term]) > 0 and 0 < float(row[f"gradient_ratio/{term}"]) < 10 for row in rows)
    assert all(float(row["images_per_second"]) > 0 and 0 <= float(row["teacher_accuracy"]) <= 100 for row in rows)
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    keys = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    assert {key.split(".")[0] for key in keys} == {"detector", "distillation"}
    assert [key for key in keys if not key.startswith("detector.")] == ["distillation.balance._extra_state"]
    copy = tmp_path / "elsewhere.pt"
    shutil.move(tmp_path / "run" / "weights.pt", copy)
    table = evaluate(copy, scenes, "test", tmp_path / "evaluation")
    assert 0 <= table["class acc"] <= 100 and 0 <= table["mean IoU"] <= 100 and len(table["AP by IoU"]) == 10
    assert table["mAP"] == pytest.approx(sum(table["AP by IoU"]) / 10, abs=0.01)
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text()) == table


class Stop(Exception):
    pass


def losses(folder):
    """What is logged of each step, but for how long it took."""
    rows = logged(folder)
    return {int(row.pop("step")): row for row in rows if row.pop("images_per_second", True)}


@pytest.mark.parametrize(
    ("student", "changes"),
    [
        ("fasterrcnn_compact", {}),  # samples anchors and proposals
        ("detr_compact", {}),  # with dropout, as DETR as published
        ("rtdetr_v2_compact", {"ema": 0.5}),  # draws noise to denoise
        ("ssd_compact", {"ema": 0.5, "precision": "bf16-mixed"}),
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(scenes, teacher_weights, tmp_path, monkeypatch, student, changes):
    steps, training_step = [], DetectorTraining.training_step
    if student == "detr_compact":
        pytest.importorskip("transformers")
        monkeypatch.setitem(detr.COMPACT, "dropout", 0.2)

    def run(folder, seed, stop_at=None):
        def watched(self, batch, index):
            if self.global_step == stop_at:
                raise Stop
            steps.append(self.global_step)
            return training_step(self, batch, index)

        monkeypatch.setattr(DetectorTraining, "training_step", watched)
        for draw in (random.seed, np.random.seed, torch.manual_seed):
            draw(seed)  # whatever happens between, the restart does not depend on it
        run = dataclasses.replace(RUN, checkpoint_every=2, log_every=1, ratio_every=2, **changes)
        options = {"optim": Optim(steps=6, batch_size=2), "run": run, "seed": 3, "student": student}
        distill(scenes, tmp_path / folder, teacher_weights, **options)
        return weights_in(tmp_path / folder / "weights.pt")

    unbroken = run("unbroken", 1)
    with pytest.raises(Stop):
        run("broken", 2, stop_at=5)
    assert not (tmp_path / "broken" / "weights.pt").exists()
    steps.clear()
    resumed = run("broken", 99)
    assert steps == [4, 5], "the restart did not go on from the checkpoint at step 4"
    assert same(unbroken, resumed)
    assert len(losses(tmp_path / "unbroken")) == 6 and losses(tmp_path / "broken") == losses(tmp_path / "unbroken")


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
GLOO = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")


@pytest.mark.parametrize("launcher", [[], pytest.param(TORCHRUN, marks=[pytest.mark.slow, GLOO])], ids=["one", "torchrun"])
def test_kill_in_the_middle_and_restart(scenes, teacher_weights, tmp_path, launcher):
    """kill -9 at any moment: the restart logs the losses of an unbroken run and ends with its weights."""
    arguments = (
        f"--data-root {scenes} --teacher {teacher_weights} --allow-poor-teacher --images 8 --augmentation jitter "
        "--backbone-weights none --optim.steps 16 --optim.batch-size 2 --optim.accumulate 2 "
        f"--run.checkpoint-every 4 --run.log-every 1 --run.device cpu --run.cache true --run.devices {2 if launcher else 1} --out"
    ).split()

    def start(folder):
        command = [sys.executable, *launcher, "-m", "cls2det", "distill", *arguments, str(tmp_path / folder)]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def run_to_the_end(folder):
        if launcher:
            process = start(folder)
            assert process.wait(timeout=300) == 0, process.stderr.read()
        else:  # here: it costs no start of Python
            assert main(["distill", *arguments, str(tmp_path / folder)]) == 0

    process = start("broken")
    deadline = time.monotonic() + 120
    while not (tmp_path / "broken" / "last.ckpt").is_file():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.02)
    time.sleep(0.1)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() if launcher else []
    for number in (process.pid, *map(int, workers)):  # torchrun's are in sessions of their own
        os.kill(number, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it had ended already"
    assert len(workers) == (2 if launcher else 0) and not (tmp_path / "broken" / "weights.pt").exists()
    for folder in ("broken", "unbroken"):
        run_to_the_end(folder)
    assert same(*(weights_in(tmp_path / folder / "weights.pt") for folder in ("unbroken", "broken")))
    assert len(losses(tmp_path / "unbroken")) == 16
    assert losses(tmp_path / "broken") == losses(tmp_path / "unbroken")  # every step once, also those from before the kill


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_run_that_ended_before_its_weights_were_written(scenes, tmp_path, ema):
    """Started again, it trains nothing, keeps its log, and writes the weights that it would have written."""
    run, optim = dataclasses.replace(RUN, checkpoint_every=2, log_every=1, ema=ema), Optim(steps=6, batch_size=2)
    train(scenes, tmp_path, run=run, optim=optim)
    expected, log = weights_in(tmp_path / "weights.pt"), logged(tmp_path)
    (tmp_path / "weights.pt").unlink()
    steps = []
    report = train(scenes, tmp_path, run=run, optim=optim, progress=lambda *a: steps.append(a))
    assert same(expected, weights_in(tmp_path / "weights.pt")) and not steps
    assert logged(tmp_path) == log and report["seconds"] > 0


def test_a_restart_may_not_change_the_steps(scenes, tmp_path):
    train(scenes, tmp_path, run=dataclasses.replace(RUN, checkpoint_every=2))
    train(scenes, tmp_path, run=dataclasses.replace(RUN, checkpoint_every=2, log_every=3, cache=False))
    for change in ({"checkpoint_every": 4}, {"checkpoint_every": 2, "precision": "bf16-mixed"}):
        with pytest.raises(FileExistsError, match=r"other options \(run\)"):
            train(scenes, tmp_path, run=dataclasses.replace(RUN, **change))


def test_ctrl_c_says_how_to_go_on(scenes, tmp_path):
    command = [
        sys.executable,
        "-m",
        "cls2det",
        "train",
        "--data-root",
        str(scenes),
        "--out",
        str(tmp_path),
        "--run.device",
        "cpu",
    ]
    command += ["--optim.steps", "5000", "--run.checkpoint-every", "5", "--backbone-weights", "none"]
    with default_signal(signal.SIGINT):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "goes on from the last checkpoint" in message and "Traceback" not in message, message


def test_a_stopped_teacher_goes_on_as_if_it_had_not_stopped(scenes, tmp_path, caplog):
    """The teacher's steps draw random numbers (box jitter): they too are the same after a restart."""

    def run(folder, stop_at):
        def stop(step, *_):
            if step == stop_at:
                raise Stop

        options = {"optim": Optim(steps=24, batch_size=2), "run": dataclasses.replace(RUN, checkpoint_every=8), "seed": 5}
        return weights_in(train_teacher(scenes, tmp_path / folder, progress=stop, **options))

    unbroken = run("unbroken", None)
    with pytest.raises(Stop):
        run("broken", 20)  # in the third stretch of eight steps
    torch.manual_seed(99)
    with caplog.at_level("INFO", "cls2det"):
        assert same(unbroken, run("broken", None))
    assert f"{tmp_path / 'broken'}: goes on from step 16 of 24" in caplog.text


def test_seed_changes_the_images(scenes, tmp_path):
    optim, run = Optim(steps=1, batch_size=2), dataclasses.replace(RUN, checkpoint_every=1)
    for seed in (1, 2):
        report = train(scenes, tmp_path / str(seed), images=4, optim=optim, run=run, seed=seed)
        assert report["images"] == 4
    assert not same(*(weights_in(tmp_path / str(seed) / "weights.pt") for seed in (1, 2)))


def test_train_is_distill_with_nothing_to_distil(scenes, tmp_path):
    options = {"optim": Optim(steps=2, batch_size=2), "run": dataclasses.replace(RUN, checkpoint_every=2)}
    ignored = {"teacher": tmp_path / "ignored.pt", "backbone_weights": "none"}
    with pytest.warns(UserWarning, match="train distils nothing"):
        train_command(DistillOptions(scenes, tmp_path / "train", **ignored, **options), silent)
    train(scenes, tmp_path / "distill", images=None, augmentation="none", **options)
    assert same(*(weights_in(tmp_path / name / "weights.pt") for name in ("train", "distill")))
    assert json.loads((tmp_path / "train" / "options.json").read_text())["command"] == "train"


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(scenes, teacher_weights, tmp_path, precision):
    """A run of the student with most losses; test_distillers.py has every student's terms under autocast."""
    if precision == "16-mixed" and not torch.cuda.is_available():
        pytest.skip("fp16 autocast with its gradient scaler is for GPUs")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = dataclasses.replace(RUN, device=device, precision=precision, checkpoint_every=4, log_every=1, ratio_every=1)
    distill(scenes, tmp_path, teacher_weights, student="fasterrcnn_compact", run=run)
    for row in logged(tmp_path):
        for term in ("loss", "kd_cls", "kd_loc", "loc", "gradient_ratio/kd_loc"):
            assert 0 < float(row[term]) < 1e3, (term, row[term])
    assert all(value.isfinite().all() for value in weights_in(tmp_path / "weights.pt").values())


def test_accumulated_batches_make_one_step(scenes, tmp_path):
    run = dataclasses.replace(RUN, checkpoint_every=2)
    optim = Optim(steps=4, batch_size=2, accumulate=3)
    steps = []
    report = train(scenes, tmp_path, optim=optim, run=run, progress=lambda *a: steps.append(a))
    assert report["steps"] == 4 and steps[-1][:2] == (4, 4)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_short_run_logs_its_ratios(scenes, teacher_weights, tmp_path, accumulate):
    """With the defaults, which ask for a line every 25 steps."""
    optim, run = Optim(steps=4, batch_size=2, accumulate=accumulate), Run(device="cpu", cache=True)
    distill(scenes, tmp_path, teacher_weights, optim=optim, run=run)
    (row,) = logged(tmp_path)
    assert all(0 < float(row[f"gradient_ratio/{term}"]) < 10 for term in ("kd_cls", "kd_loc", "loc"))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradients_are_clipped_once_per_step(scenes, tmp_path, accumulate):
    """The gradient that a step applies is the one of all its forwards, shortened to ``clip_norm``, and whole where that is None."""
    gradients_of_steps = []

    def keep(optimizer, *_):
        gradients_of_steps.append(
            torch.cat([weight.grad.flatten() for weight in optimizer.param_groups[0]["params"]]).double()
        )

    def gradients(clip_norm):
        gradients_of_steps.clear()
        optim = Optim("sgd", 1e-3, schedule="constant", steps=2, batch_size=2, accumulate=accumulate, clip_norm=clip_norm)
        hook = register_optimizer_step_post_hook(keep)
        try:
            train(scenes, tmp_path / str(clip_norm), optim=optim)
        finally:
            hook.remove()
        return list(gradients_of_steps)

    unclipped, clipped, loose = (gradients(clip_norm) for clip_norm in (None, 0.5, 1e6))
    assert len(unclipped) == len(clipped) == 2 and min(gradient.norm() for gradient in unclipped) > 1
    assert all(torch.equal(one, other) for one, other in zip(unclipped, loose, strict=True))
    for gradient in clipped:
        assert gradient.norm().item() == pytest.approx(0.5, rel=1e-4)
    torch.testing.assert_close(
        clipped[0], unclipped[0] * 0.5 / unclipped[0].norm(), rtol=1e-4, atol=1e-8
    )  # from the same weights


def test_validation_is_logged_and_leaves_the_run_as_it_was(scenes, teacher_weights, tmp_path):
    """mAP in the log is pycocotools' of the saved weights; pictures reach TensorBoard; training is not touched."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    optim = Optim(steps=24, batch_size=4, learning_rate=1e-2)
    run = dataclasses.replace(RUN, checkpoint_every=8, validate_every=1, log_every=4)
    report = distill(scenes, tmp_path / "with", teacher_weights, optim=optim, run=run, val_split="train")
    run = dataclasses.replace(run, validate_every=None)
    distill(scenes, tmp_path / "without", teacher_weights, optim=optim, run=run)
    assert same(*(weights_in(tmp_path / name / "weights.pt") for name in ("with", "without")))
    values = logged(tmp_path / "with", "val/mAP")
    assert len(values) == 3
    table = json.loads((tmp_path / "with" / "train" / "evaluation.json").read_text())
    assert table["AP50"] > 0, "nothing was learnt, so nothing is compared"
    for column in ("mAP", "AP50", "AP75"):
        assert float(values[-1][f"val/{column}"]) == pytest.approx(table[column], abs=1e-3) and report[column] == table[column]
    events = EventAccumulator(str(tmp_path / "with" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == {"val/ground truth above predictions", "val/crops of the teacher"}
    assert {"loss", "kd_cls", "kd_loc", "loc", "val/mAP", "images_per_second", "lr-AdamW"} <= set(events.Tags()["scalars"])


def test_averaged_weights_are_saved_without_the_teacher(scenes, teacher_weights, tmp_path):
    optim, run = Optim(steps=4, batch_size=2), dataclasses.replace(RUN, checkpoint_every=2)
    distill(scenes, tmp_path / "plain", teacher_weights, optim=optim, run=run)
    distill(scenes, tmp_path / "averaged", teacher_weights, optim=optim, run=dataclasses.replace(run, ema=0.5))
    plain, averaged = (weights_in(tmp_path / name / "weights.pt") for name in ("plain", "averaged"))
    assert plain.keys() == averaged.keys() and not same(plain, averaged)
    state = torch.load(tmp_path / "averaged" / "last.ckpt", weights_only=True)
    assert all("teacher" not in key and "on_targets" not in key for key in state["state_dict"])


def test_learning_rates():
    weight = torch.nn.Linear(1, 1)

    def rates(steps, **changes):
        configured = configure_optimizer(Optim(steps=steps, learning_rate=1.0, **changes), weight)
        optimizer, schedule, rates = configured["optimizer"], configured["lr_scheduler"]["scheduler"], []
        for _ in range(steps):
            rates.append(round(optimizer.param_groups[0]["lr"], 6))
            optimizer.step()
            schedule.step()
        return rates

    assert rates(12, schedule="multi_step", decay_at=(2 / 3, 11 / 12)) == [1.0] * 8 + [0.1] * 3 + [0.01]
    assert rates(30, schedule="constant", warmup_steps=3)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(20, schedule="constant", warmup_steps=500)[:4] == [0.333333, 0.666667, 1.0, 1.0]  # a tenth of the run
    assert rates(4, schedule="cosine") == [1.0, 0.853553, 0.5, 0.146447]
    optim = Optim(epochs=2, batch_size=4, accumulate=2, learning_rate=0.1, base_batch=32)
    configured, run = optim.for_run(100, Run(devices=2, checkpoint_every=3))
    assert run.checkpoint_every == 3
    assert (configured.steps, configured.learning_rate) == (15, pytest.approx(0.05))  # 13 steps of 16, up to a multiple of 3
    for steps, every, expected in ((6, 1000, (6, 6)), (1500, 1000, (1500, 750)), (2000, 100, (2000, 100)), (7, 3, (9, 3))):
        configured, run = Optim(steps=steps).for_run(100, Run(checkpoint_every=every))
        assert (configured.steps, run.checkpoint_every) == expected
    for steps, every, expected in (
        (6, (1000, 25, 25), (6, 6)),
        (40, (10, 25, 25), (10, 20)),
        (200, (100, 25, 500), (25, 200)),
        (2000, (100, 50, 500), (50, 500)),
        (2000, (100, 50, 5), (50, 50)),
        (60, (60, 25, None), (25, None)),
    ):
        options = dict(zip(("checkpoint_every", "log_every", "ratio_every"), every, strict=True))
        run = Optim(steps=steps).for_run(100, Run(**options))[1]
        assert (run.log_every, run.ratio_every) == expected, (steps, every)
    for wrong in ({"epochs": 0}, {"steps": -1}, {"batch_size": 0}, {"clip_norm": 0}, {"base_batch": 0}, {"steps": 0}):
        with pytest.raises(ValueError, match=f"optim.{next(iter(wrong))} must be above 0"):
            Optim(**wrong)
    for wrong in ({"devices": 0}, {"checkpoint_every": 0}, {"ema": 1.0}, {"ema": 0}, {"pictures": -1}, {"ratio_every": 0}):
        with pytest.raises(ValueError, match=f"run.{next(iter(wrong))}"):
            Run(**wrong)


def test_every_process_needs_an_image_to_validate_on(scenes, tmp_path):
    run = Run(device="cpu", devices=999, validate_every=1)
    with pytest.raises(ValueError, match=r"val has \d+ images, too few for a validation by 999 processes"):
        train(scenes, tmp_path / "run", val_split="val", run=run)


def test_a_poor_teacher_is_refused(scenes, teacher_weights, tmp_path):
    guessing = tmp_path / "guessing.pt"
    CropClassifier(DIGITS).save(guessing)
    options = {"images": None, "optim": Optim(steps=1, batch_size=8)}
    with pytest.raises(
        ValueError, match=r"names .* % of \d+ ground-truth crops right, of training .*; naming the commonest class"
    ):
        distill(scenes, tmp_path / "run", guessing, allow_poor_teacher=False, **options)
    distill(scenes, tmp_path / "run", guessing, **options)  # as the message says; the folder is still free
    distill(scenes, tmp_path / "run2", teacher_weights, allow_poor_teacher=False, **options)


def test_a_teacher_whose_scores_mean_something_else_is_refused(scenes, teacher_weights, tmp_path):
    with pytest.raises(ValueError, match=r"retinanet_compact has a sigmoid .* trained with ce alone"):
        distill(scenes, tmp_path, teacher_weights, student="retinanet_compact", allow_poor_teacher=False)
    options = {
        "classifier": ClassifierSettings(kd_cls_weight=0.0, kd_loc_weight=2.0, loc_weight=2.0),
        "optim": Optim(steps=1, batch_size=8),
    }
    distill(scenes, tmp_path, teacher_weights, student="retinanet_compact", allow_poor_teacher=False, **options)


def test_bad_images_are_skipped_if_that_is_asked_for(scenes, teacher_weights, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(scenes, root)
    for name in sorted(os.listdir(root / "train"))[::3]:
        (root / "train" / name).write_bytes((root / "train" / name).read_bytes()[:500])
    options = {"images": None, "allow_poor_teacher": False}
    with pytest.raises(ValueError, match=r"train.*jpg"):
        distill(root, tmp_path / "stops", teacher_weights, **options)
    run = dataclasses.replace(RUN, checkpoint_every=4, skip_bad_images=True)
    with pytest.warns(UserWarning, match=r"jpg"):
        distill(root, tmp_path / "goes-on", teacher_weights, run=run, **options)


def test_start_from_a_trained_backbone(scenes, tmp_path):
    start = train_teacher(scenes, tmp_path / "start", architecture="compact", optim=Optim(steps=2, batch_size=4))
    run = dataclasses.replace(RUN, checkpoint_every=1)
    still = Optim(optimizer="sgd", learning_rate=0.0, schedule="constant", weight_decay=0.0, steps=1, batch_size=2)
    train(scenes, tmp_path / "run", start=start, run=run, optim=still)
    body = {name: value for name, value in weights_in(start).items() if "backbone" in name}
    weights = weights_in(tmp_path / "run" / "weights.pt")
    convolutions = [name for name in body if name.endswith("weight")]
    assert convolutions and all(torch.equal(body[name], weights[name]) for name in convolutions)
    with pytest.raises(ValueError, match=r"holds a student, expected a crop_classifier or a backbone"):
        train(scenes, tmp_path / "other", start=tmp_path / "run" / "weights.pt", run=run)


def test_files_that_are_no_weights(scenes, teacher_weights, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        CropClassifier.load(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="holds a crop_classifier, expected a student"):
        load_student(teacher_weights)
    torch.save({"weights": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="was not written by cls2det"):
        CropClassifier.load(tmp_path / "other.pt")
    (tmp_path / "cut.pt").write_bytes(teacher_weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="does not load as weights alone"):
        CropClassifier.load(tmp_path / "cut.pt")
    saved = torch.load(teacher_weights, weights_only=True)
    saved["weights"]["extra"] = saved["weights"].pop("fc.bias")
    torch.save(saved, tmp_path / "renamed.pt")
    with pytest.raises(ValueError, match=r"(?s)does not fit its own settings.*Missing.*fc\.bias.*Unexpected.*extra"):
        CropClassifier.load(tmp_path / "renamed.pt")


class Malice:
    def __reduce__(self):
        return os.system, ("echo executed",)


def test_no_pickle_is_executed(scenes, tmp_path, capfd):
    torch.save({"kind": "crop_classifier", "settings": Malice(), "weights": {}}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="does not load as weights alone"):
        CropClassifier.load(tmp_path / "bad.pt")
    folder = tmp_path / "run"
    run = dataclasses.replace(RUN, checkpoint_every=2)
    train(scenes, folder, run=run)
    torch.save({"state_dict": Malice(), "global_step": 2}, folder / "last.ckpt")
    with pytest.raises(ValueError, match=r"last.ckpt does not load as a checkpoint: Weights only load failed"):
        train(scenes, folder, run=run)
    assert "executed" not in capfd.readouterr().out


def test_a_cached_file_of_torchvision_is_read_as_weights_alone(monkeypatch, tmp_path, capfd):
    """Of a classifier, and of a detector as teacher: torchvision would execute what lies in torch's cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    for weights in (get_model_weights("resnet18").DEFAULT, get_model_weights("ssd300_vgg16").DEFAULT):
        torch.save(Malice(), tmp_path / "checkpoints" / weights.url.rsplit("/", 1)[1])
    with pytest.raises(ValueError, match=r"resnet18.* in torch's cache, .* is not weights alone"):
        build_classifier("resnet18", 10, weights="auto")
    with pytest.raises(ValueError, match=r"ssd300.* in torch's cache, .* is not weights alone"):
        DetectorTeacher.load("torchvision:ssd300_vgg16", ["person"])
    assert "executed" not in capfd.readouterr().out


def test_a_launcher_of_more_processes_than_the_run_has_is_refused(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    with pytest.raises(ValueError, match=r"run.devices 1 and run.num_nodes 1 make 1 processes, torchrun made 2"):
        train(scenes, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_clear_errors(scenes, teacher_weights, tmp_path):
    with pytest.raises(ValueError, match=r"cls_weight and box_weight must be at least 0, got -1.0 and 1.0"):
        DetectorTraining(build_student("ssd_compact", 10), DIGITS, cls_weight=-1.0)
    for option in ({"margin": -2.0}, {"crop_size": 0}):
        with pytest.raises(ValueError, match=r"a teacher needs a crop_size from 1 and a margin from 0; got"):
            CropClassifier(DIGITS, **option)
    for option in ({"label_smoothing": 2.0}, {"min_size": -1.0}, {"jitter": -0.1}):
        with pytest.raises(ValueError, match=r"a teacher's training needs label_smoothing in"):
            ClassifierTraining(CropClassifier(DIGITS), **option)
    with pytest.raises(ValueError, match=r"--images 99: train of .* has 16 images"):
        distill(scenes, tmp_path / "a", teacher_weights, images=99)
    untrained_student(tmp_path / "cats.pt", classes=["cat"])
    with pytest.raises(
        ValueError,
        match=r"cats.pt has 1 class and .*instances_test.json 10 classes, of other names: only .*cats.pt has .cat., only",
    ):
        evaluate(tmp_path / "cats.pt", scenes, "test")
    with pytest.raises(ValueError, match="need a teacher"):
        distill(scenes, tmp_path / "b", None)
    train(scenes, tmp_path / "c")
    with pytest.raises(
        FileExistsError, match=r"holds a run with other options \(box_weight, seed\): .*box_weight was 1\.0, is 3\.0"
    ):
        train(scenes, tmp_path / "c", seed=9, box_weight=3.0)
    settings = ClassifierSettings(kd_loc_weight=2.0, feature_layers=("conv9",))
    with pytest.raises(ValueError, match="no layer conv9 in resnet18; there are conv1, bn1"):
        distill(scenes, tmp_path / "d", teacher_weights, classifier=settings)
