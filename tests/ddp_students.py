"""Run by torchrun in test_training_ddp.py: two gloo processes train students, and compare what they hold at the end."""

import dataclasses
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from cls2det.models.students import STUDENTS
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.training import fit
from cls2det.training.detector import DetectorTraining
from cls2det.training.settings import Optim, Run
from training_cases import ALL_TERMS, DIGITS, FITS, batch, distill, training, untrained_student


def train_students(scenes: Path, folder: Path, teachers: dict[str, str]) -> None:
    """Some steps of every student, on the classifier's terms and on every detector-to-detector method that fits it.

    Adapters train in DDP's buckets; the processes must end with the same weights.
    """
    for student, teacher in teachers.items():
        distill(
            scenes,
            folder / student,
            Path(teacher),
            student=student,
            image_size=image_size(student),
            val_split="val",
            optim=Optim(steps=2, batch_size=2, learning_rate=1e-4),
            run=Run(device="cpu", devices=2, checkpoint_every=2, log_every=1, validate_every=1),
            classifier=dataclasses.replace(ALL_TERMS, normalizer="all", max_positives=16),
            distillers=["classifier", *(("regions", *FITS[student]) if student in FITS else ())],
            detector_teacher=str(detector_file(folder, student)) if student in FITS else None,
            encoder=teacher,
            term_weights="auto" if student in FITS else "fixed",
        )


def image_size(student: str) -> int | None:
    """Small, where the student takes it."""
    return None if STUDENTS[student].fixed_size else 96


def detector_file(folder: Path, student: str) -> Path:
    return folder / f"detector-{student}.pt"


def split_batch(scenes: Path, teacher: Path, out: Path) -> None:
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
            torch.save({"terms": terms, "gradients": gradients}, out / f"{name}.pt")


def distilled(teacher: Path, normalizer: str, images: list, targets: list) -> tuple[dict, dict]:
    model: DetectorTraining = training(teacher, dataclasses.replace(ALL_TERMS, normalizer=normalizer))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # its statistics are those of the share
    _, terms = model.losses(images, targets)
    sum(terms.values()).backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {name: term.detach() for name, term in terms.items()}, gradients


def untrained_teachers(folder: Path, students: list[str]) -> dict[str, str]:
    """A classifier of each student's normalisation, and a detector for those that the methods fit."""
    paths = {}
    for student in students:
        torch.manual_seed(0)
        path = folder / f"teacher-of-{student}.pt"
        CropClassifier(DIGITS, student=student, image_size=image_size(student)).save(path)
        paths[student] = str(path)
        if student in FITS:
            untrained_student(detector_file(folder, student), student)
    return paths


def check_same_weights(train):
    """``fit.fit`` that fails where the processes end with different weights."""

    def trained(module, *arguments, **options):
        seconds = train(module, *arguments, **options)
        weights = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
        gathered = [torch.empty_like(weights) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, weights)
        assert all(torch.equal(weights, share) for share in gathered), "the processes ended with different weights"
        return seconds

    return trained


def keep_evaluations() -> None:
    """Each evaluation during training writes the images of all processes, and the detections that it evaluates."""
    step, end, images = DetectorTraining.validation_step, DetectorTraining.on_validation_epoch_end, []

    def validation_step(self, batch, index):
        images.extend(int(target["image_id"]) for target in batch[1])
        step(self, batch, index)

    def on_validation_epoch_end(self):
        end(self)
        shares: list = [None] * dist.get_world_size()
        dist.all_gather_object(shares, images)
        images.clear()
        if dist.get_rank() == 0:
            content = {"images": [image for share in shares for image in share], "detections": self.detections}
            (Path(self.trainer.default_root_dir) / "evaluated.json").write_text(json.dumps(content))

    DetectorTraining.validation_step, DetectorTraining.on_validation_epoch_end = validation_step, on_validation_epoch_end


if __name__ == "__main__":
    fit.fit = check_same_weights(fit.fit)
    keep_evaluations()
    scenes_folder, out, teacher_file, *students = sys.argv[1:]
    torch.set_num_threads(1)
    train_students(Path(scenes_folder), Path(out), dict(entry.split("=", 1) for entry in students))
    split_batch(Path(scenes_folder), Path(teacher_file), Path(out))
    dist.barrier()
    dist.destroy_process_group()
