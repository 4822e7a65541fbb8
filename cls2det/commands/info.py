"""``cls2det info``: what is installed, what runs where, and what can be trained."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "pycocotools",
    "jsonargparse",
    "transformers",
    "onnx",
    "onnxruntime",
)


def info() -> None:
    """Print versions, back ends of the operators, devices, students and recipes."""
    import torch

    from cls2det.distill import DETECTOR_METHODS, ClassifierSettings
    from cls2det.models.students import STUDENTS
    from cls2det.recipes import recipes
    from cls2det_ops.__main__ import report as operators

    print(f"Python {platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        try:
            print(f"{package:14} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{package:14} not installed")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    print(f"{'GPUs':14} {', '.join(gpus) or 'none'}\n\nOperators")
    for name, said in operators():
        print(f"{name:34} {said}")
    print("\nStudents")
    for name, student in STUDENTS.items():
        print(f"{name:34} {student.about}")
    print("\nDistillers")
    for name, (_, settings) in {"classifier": (None, ClassifierSettings), **DETECTOR_METHODS}.items():
        print(f"{name:34} {settings.__doc__.splitlines()[0]}")
    print("\nRecipes")
    recipes()
