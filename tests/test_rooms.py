"""The rooms of cls2det import only those below them, and the lower ones work without Lightning, rich and matplotlib."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchvision")

import cls2det

PACKAGE = Path(cls2det.__file__).parent
# From the bottom to the top.
LEVELS = (
    ("__init__", "errors", "files", "settings"),
    ("data",),
    ("models",),
    ("teachers",),
    ("distill",),
    ("evaluation",),
    ("training",),
    ("recipes",),
    ("commands",),
    ("study",),
    ("cli",),
    ("__main__",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
WITHOUT_LIGHTNING = ("data", "models", "teachers", "distill")


def room_of(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py") if parts else "__init__"


def imported_rooms(file: Path) -> set[str]:
    """Rooms that a file imports, at its top and inside of functions."""
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} has a relative import"
            # ``from cls2det import commands`` imports a room by its name
            modules = [f"{node.module}.{alias.name}" if node.module == "cls2det" else node.module for alias in node.names]
        else:
            continue
        rooms |= {room_of(tuple(module.split("."))[1:]) for module in modules if module.split(".")[0] == "cls2det"}
    return rooms


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_point_down(file):
    room = room_of(file.relative_to(PACKAGE).parts)
    path = file.relative_to(PACKAGE).as_posix()
    above = {target for target in imported_rooms(file) if LEVEL[target] > LEVEL[room]}
    assert not above, f"{path} imports {', '.join(sorted(above))}, which should import it"


DISTIL = """
import importlib, pkgutil, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lightning", "pytorch_lightning", "rich", "matplotlib", "pycocotools", "jsonargparse"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())

import cls2det
for room in sys.argv[1:]:
    package = importlib.import_module(f"cls2det.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)

import torch
from cls2det.distill import ClassifierDistiller, ClassifierSettings, DetectorTeacher, Distillation, FKDSettings
from cls2det.models.students import build_student
from cls2det.models.taps import PositiveTap
from cls2det.teachers.crop_classifier import CropClassifier

classes = ["cat", "dog"]
student, teacher = build_student("ssd_compact", 2).train(), build_student("ssd_compact_wide", 2)
settings = ClassifierSettings(kd_loc_weight=2.0, loc_weight=2.0)
classifier = ClassifierDistiller(CropClassifier(classes), settings, classes, student.transform)
distillation = Distillation(student, classifier, DetectorTeacher(teacher, classes, [1, 2]), {"fkd": FKDSettings()})
tap = PositiveTap(student)
targets = [{"boxes": torch.tensor([[10.0, 12, 42, 44]]), "labels": torch.tensor([2])}]
with tap:
    losses = student([torch.rand(3, 96, 96)], targets)
terms = distillation(tap.student_outputs, 0)
sum((losses | terms).values()).backward()
assert all(parameter.grad is not None for parameter in distillation.parameters())
assert all(parameter.grad is not None for parameter in student.parameters())
print(*sorted(terms))
"""


def test_distillers_work_without_lightning_rich_and_matplotlib():
    """Every module of the lower rooms is imported, and a step with a classifier and a detector as teachers runs."""
    child = subprocess.run([sys.executable, "-c", DISTIL, *WITHOUT_LIGHTNING], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == ["fkd_attention", "fkd_nonlocal", "fkd_transfer", "kd_cls", "kd_loc", "loc"]
