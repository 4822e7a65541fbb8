"""``cls2det info``: what is installed, what runs where, and what can be trained."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from cls2det.commands.options import InfoOptions
from cls2det.commands.recipes import recipes
from cls2det.models.students import STUDENTS
from cls2det.settings import DISTILLERS
from cls2det_ops.__main__ import report as operators

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "pycocotools",
    "faster-coco-eval",
    "jsonargparse",
    "transformers",
    "timm",
    "onnx",
    "onnxruntime",
)


def info(_options: InfoOptions = InfoOptions()) -> None:  # noqa: B008 (frozen)
    """Print versions, back ends of the operators, devices, students, distillers and recipes."""
    print(f"Python {platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        try:
            print(f"{package:16} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{package:16} not installed")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    print(f"{'GPUs':16} {', '.join(gpus) or 'none'}\n\nOperators")
    for name, state in operators():
        print(f"{name:34} {state}")
    print("\nStudents")
    for name, student in STUDENTS.items():
        print(f"{name:34} {student.about}")
    print(f"{'hf:FOLDER, hf:NAME':34} any detector of Hugging Face transformers with a Hungarian matcher")
    print("\nDistillers")
    for name, settings in DISTILLERS.items():
        about = (settings.__doc__ or "").partition("\n")[0]
        print(f"{name:34} {about}")
    print("\nRecipes")
    recipes()
