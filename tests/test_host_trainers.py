"""BoxDistiller in other people's trainers: two processes, bfloat16, accumulation, averages, and checkpoints without the teacher."""

from __future__ import annotations

import copy
import json
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("torchvision")

import ddp_host
from helpers import clean_environment

TERMS = ("kd_cls",)


def two_processes(host: str, folder: Path) -> list[dict]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, ddp_host.__file__, host]
    workers = [
        subprocess.Popen(
            [*command, str(rank), port, str(folder)], env=clean_environment(), cwd=folder, stderr=subprocess.PIPE, text=True
        )
        for rank in range(ddp_host.WORLD)
    ]
    try:
        errors = [worker.communicate(timeout=240)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert all(worker.returncode == 0 for worker in workers), "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ddp_host.WORLD)]


def assert_in_step(results: list[dict]) -> None:
    """The processes saw other pictures, and hold the same weights."""
    first, second = results
    assert first["history"][0]["kd_cls"] != second["history"][0]["kd_cls"]
    assert first["weights"].keys() == second["weights"].keys()
    for name, weight in first["weights"].items():
        if "running" not in name and "num_batches" not in name:  # batch norms keep the statistics of their process
            assert torch.equal(weight, second["weights"][name]), name
    assert not [name for name in first["weights"] if "teacher" in name or "network" in name]


gloo = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")


@gloo
def test_two_processes_of_torchvision(tmp_path):
    results = two_processes("torchvision", tmp_path)
    assert_in_step(results)
    expected = ddp_host.gradients_of_terms(None)
    for result in results:
        for name, gradient in expected.items():
            torch.testing.assert_close(result["gradients"][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    assert any(gradient.abs().sum() > 0 for gradient in expected.values())


@gloo
def test_two_processes_of_transformers(tmp_path):
    for library in ("transformers", "scipy", "accelerate"):
        pytest.importorskip(library)
    results = two_processes("transformers", tmp_path)
    assert_in_step(results)
    assert [result["wrapper"] for result in results] == ["DistributedDataParallel"] * 2


@pytest.fixture
def hugging_face():
    for library in ("transformers", "scipy", "accelerate"):
        pytest.importorskip(library)
    import transformers_trainer

    return transformers_trainer


def test_transformers_in_bfloat16_and_its_checkpoint(hugging_face, tmp_path):
    trainer = hugging_face.main(3, bf16=True)
    assert len(trainer.history) == 3
    assert all(0 < step[term] < 100 for step in trainer.history for term in TERMS)
    trainer.save_model(tmp_path)
    from safetensors.torch import load_file

    hugging_face.small_model().save_pretrained(tmp_path / "plain")
    saved, plain = (load_file(folder / "model.safetensors").keys() for folder in (tmp_path, tmp_path / "plain"))
    assert saved == plain and trainer.model.state_dict().keys() == hugging_face.small_model().state_dict().keys()
    assert trainer.create_optimizer() is trainer.optimizer
    trained = {id(value) for group in trainer.optimizer.param_groups for value in group["params"]}
    assert not trained & {id(value) for value in trainer.distiller.teacher.parameters()}
    evaluated = trainer.evaluate(hugging_face.make_data())  # the detector's own loss, without terms
    assert evaluated["eval_loss"] > 0 and len(trainer.history) == 3


def test_transformers_accumulates_the_terms_as_its_own_loss(hugging_face):
    """A step of two batches takes half of each one's sum: neither the loss nor the terms count twice."""
    returned, plain = [], hugging_face.Trainer.training_step

    class Recording(hugging_face.DistillingTrainer):
        def training_step(self, *arguments, **options):
            returned.append(float(plain(self, *arguments, **options)))
            return torch.tensor(returned[-1])

    hugging_face.DistillingTrainer, original = Recording, hugging_face.DistillingTrainer
    try:
        trainer = hugging_face.main(2, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    finally:
        hugging_face.DistillingTrainer = original
    sums = [sum(step.values()) for step in trainer.history]
    assert len(sums) == len(returned) == 4
    assert returned == pytest.approx([value / 2 for value in sums], rel=1e-4)


@pytest.fixture
def module():
    pytest.importorskip("lightning")
    import lightning_module
    from pictures import CLASSES, CROP, MEAN, STD, train_classifier

    torch.manual_seed(0)
    teacher = ddp_host.teacher_from(train_classifier(), CLASSES, CROP, mean=MEAN, std=STD)
    return lightning_module.Detection(ddp_host.build_student("ssd_compact", len(CLASSES), 96), teacher)


def test_lightning_in_bfloat16_with_accumulation_averages_and_its_checkpoint(module, tmp_path):
    import lightning
    from lightning.pytorch.callbacks import EMAWeightAveraging
    from pictures import make_pictures

    pictures = make_pictures(2)
    batch = [picture for picture, _, _ in pictures], [{"boxes": boxes, "labels": labels} for _, boxes, labels in pictures]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    halves = {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "callbacks": [EMAWeightAveraging()]}
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, **quiet, **halves)
    trainer.fit(module, torch.utils.data.DataLoader([batch] * 8, batch_size=None))
    for term in TERMS:
        assert 0 < module.history[-1][term] < module.history[0][term]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    names = {f"model.{name}" for name in module.model.state_dict()}
    assert set(checkpoint["state_dict"]) == names
    teacher = {tuple(value.shape) for value in module.distiller.teacher.parameters()}
    assert teacher and "teacher" not in json.dumps([*checkpoint, *checkpoint["state_dict"]])


def test_a_copy_of_the_module_shares_the_teacher_and_taps_its_own_detector(module):
    twin = copy.deepcopy(module)
    assert twin.distiller is module.distiller
    assert twin.model is not module.model and twin.tap.model is twin.model


@pytest.mark.parametrize("library, example", [("ultralytics", "ultralytics_yolo"), ("libreyolo", "libreyolo_yolo9")])
def test_checkpoints_of_yolo_know_nothing_of_distillation(library, example, tmp_path):
    pytest.importorskip(library)
    code = f"import sys; sys.path.append({str(ddp_host.EXAMPLES)!r}); import {example}; "
    code += f"{example}.main(epochs=1, project={str(tmp_path)!r})"
    environment = clean_environment() | {"YOLO_OFFLINE": "1"}
    child = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-3000:]
    files = list(tmp_path.rglob("*.pt"))
    assert files
    for file in files:
        with zipfile.ZipFile(file) as content:
            (pickled,) = (content.read(name) for name in content.namelist() if name.endswith("data.pkl"))
        assert not [word for word in (b"cls2det", b"Distilling", b"teacher.") if word in pickled]
