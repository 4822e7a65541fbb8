"""Run by torchrun in test_training_ddp.py: two gloo processes train students, and compare what they hold at the end."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from cls2det import commands
from cls2det.distill.classifier import DistillSettings
from cls2det.models.students import STUDENTS
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.training import fit
from cls2det.training.detector import DetectorTraining
from cls2det.training.settings import Optim, Run
from training_cases import DIGITS, FITS, batch, silent, training


def train_students(scenes: Path, folder: Path, teachers: dict[str, str]) -> None:
    """Some steps of every student; the processes must end with the same weights."""
    for student, teacher in teachers.items():
        size = 96 if STUDENTS[student].size == 96 or not STUDENTS[student].fixed_size else 0
        commands.distill(
            scenes,
            folder / student,
            student=student,
            image_size=size,
            val_split="val",
            images=8,
            backbone_weights="none",
            optim=Optim(steps=2, batch_size=2, learning_rate=1e-4),
            run=Run(device="cpu", devices=2, checkpoint_every=2, log_every=1, validate_every=1),
            teacher=Path(teacher),
            allow_poor_teacher=True,
            distill=DistillSettings(normalizer="all", max_positives=16),
            progress=silent,
        )


def train_by_methods(scenes: Path, folder: Path, student: str, teacher: str) -> None:
    """Some steps on every method that fits the student, and on the classifier's terms; adapters train in DDP's buckets."""
    if dist.get_rank() == 0:
        torch.manual_seed(1)
        DetectorTraining(DIGITS, student).save(folder / f"detector-{student}.pt")
    dist.barrier()
    commands.distill(
        scenes,
        folder / f"{student}-methods",
        student=student,
        images=8,
        backbone_weights="none",
        optim=Optim(steps=2, batch_size=2, learning_rate=1e-4),
        run=Run(device="cpu", devices=2, checkpoint_every=2, log_every=1),
        teacher=Path(teacher),
        allow_poor_teacher=True,
        detector_teacher=str(folder / f"detector-{student}.pt"),
        distillers=["classifier", *FITS[student]],
        progress=silent,
    )


def split_batch(scenes: Path, teacher: Path, found: Path) -> None:
    """Distillation terms and their gradients of half of a batch in each process, averaged as DDP does it."""
    torch.set_num_threads(1)
    rank, world = dist.get_rank(), dist.get_world_size()
    images, targets = batch(scenes, 6)
    shares = [(images[:5], targets[:5]), (images[5:], targets[5:])]  # unequal shares, unequal numbers of positives
    for name in ("all", "process"):
        terms, gradients = distilled(teacher, name, *shares[rank])
        for value in (*terms.values(), *gradients.values()):
            dist.all_reduce(value)
            value /= world
        if rank == 0:
            torch.save({"terms": terms, "gradients": gradients}, found / f"{name}.pt")


def distilled(teacher: Path, normalizer: str, images: list, targets: list) -> tuple[dict, dict]:
    model: DetectorTraining = training(teacher, DistillSettings(normalizer=normalizer))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # its statistics are those of the share
    _, terms = model.losses(images, targets)
    sum(terms.values()).backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {name: term.detach() for name, term in terms.items()}, gradients


def untrained_teachers(folder: Path, students: list[str]) -> dict[str, str]:
    """A teacher of each student's normalisation."""
    paths = {}
    for student in students:
        torch.manual_seed(0)
        path = folder / f"teacher-of-{student}.pt"
        CropClassifier(DIGITS, student=student, image_size=0 if STUDENTS[student].fixed_size else 96).save(path)
        paths[student] = str(path)
    return paths


def check_same_weights(train):
    """``fit.fit`` that fails where the processes end with different weights."""

    def trained(module, *arguments, **options):
        seconds = train(module, *arguments, **options)
        mine = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
        others = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(others, mine)
        assert all(torch.equal(mine, other) for other in others), "the processes ended with different weights"
        return seconds

    return trained


def keep_evaluations() -> None:
    """Each evaluation during training writes the images that all processes saw, and the detections that it evaluates."""
    step, end, seen = DetectorTraining.validation_step, DetectorTraining.on_validation_epoch_end, []

    def validation_step(self, batch, index):
        seen.extend(int(target["image_id"]) for target in batch[1])
        step(self, batch, index)

    def on_validation_epoch_end(self):
        end(self)
        shares: list = [None] * dist.get_world_size()
        dist.all_gather_object(shares, seen)
        seen.clear()
        if dist.get_rank() == 0:
            content = {"images": [image for share in shares for image in share], "detections": self.found}
            (Path(self.trainer.default_root_dir) / "evaluated.json").write_text(json.dumps(content))

    DetectorTraining.validation_step, DetectorTraining.on_validation_epoch_end = validation_step, on_validation_epoch_end


if __name__ == "__main__":
    fit.fit = check_same_weights(fit.fit)
    keep_evaluations()
    scenes_folder, out, teacher_file, *students = sys.argv[1:]
    torch.set_num_threads(1)
    train_students(Path(scenes_folder), Path(out), dict(entry.split("=", 1) for entry in students))
    for name, path in (entry.split("=", 1) for entry in students):
        if name in FITS:
            train_by_methods(Path(scenes_folder), Path(out), name, path)
    split_batch(Path(scenes_folder), Path(teacher_file), Path(out))
    dist.barrier()
    dist.destroy_process_group()
