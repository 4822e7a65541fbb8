"""Teachers of other libraries, in one detector: a classifier of torchvision, timm or transformers, or an encoder with a linear probe.

Each function below gives a teacher. Its lines that end in "# distil" are what it takes. Needs: pip install timm transformers
Run: python teachers.py [torchvision] [timm] [transformers] [linear_probe]
"""

from __future__ import annotations

import sys

import torch
from pictures import CLASSES, CROP, MEAN, STD, make_crops, make_pictures, show, train_classifier
from torch import nn
from torchvision.models import resnet18

from cls2det.distill import BoxDistiller, ClassifierSettings, PositiveTap, teacher_from  # distil
from cls2det.models.students import build_student


def of_torchvision():
    """Any classifier of torchvision, with your weights: ``network.load_state_dict(torch.load(file, weights_only=True))``."""
    network = train_classifier(resnet18(num_classes=len(CLASSES)), steps=6)
    return teacher_from(network, CLASSES, CROP, mean=MEAN, std=STD), "maxpool"  # distil


def of_timm():
    """Any classifier of timm; its data configuration knows how crops are normalised, and how large they should be."""
    import timm

    network = timm.create_model("test_resnet", pretrained=False, num_classes=len(CLASSES))
    data = timm.data.resolve_model_data_config(network)  # distil
    train_classifier(network)
    return teacher_from(network, CLASSES, CROP, mean=data["mean"], std=data["std"]), "layer1"  # distil


def of_transformers():
    """Any …ForImageClassification; its image processor knows mean and deviation. The tokens of a block become a map."""
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    network = ViTForImageClassification(ViTConfig(**small, image_size=CROP, patch_size=8, num_labels=len(CLASSES)))
    train_classifier(network)
    return teacher_from(network, CLASSES, CROP, mean=MEAN, std=STD), "vit.layers.0"  # distil


def of_a_linear_probe():
    """A frozen encoder of images, of which only a last layer is trained: here on features that are computed once."""
    encoder = resnet18()  # load its weights here
    encoder.fc = nn.Identity()
    encoder.eval().requires_grad_(False)  # distil
    crops, classes = make_crops()  # of ground-truth boxes
    with torch.no_grad():  # distil
        features = encoder(crops)  # distil
    probe = nn.Linear(features.shape[1], len(CLASSES))  # distil
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=50)  # distil

    def closure():  # distil
        optimizer.zero_grad()  # distil
        loss = nn.functional.cross_entropy(probe(features), classes) + 1e-3 * probe.weight.square().sum()  # distil
        loss.backward()  # distil
        return loss  # distil

    optimizer.step(closure)  # distil
    network = nn.Sequential(encoder, probe)  # distil
    return teacher_from(network, CLASSES, CROP, mean=MEAN, std=STD), "0.maxpool"  # distil


TEACHERS = {
    "torchvision": of_torchvision,
    "timm": of_timm,
    "transformers": of_transformers,
    "linear_probe": of_a_linear_probe,
}


def train(teacher, layer: str, steps: int) -> list[dict[str, float]]:
    torch.manual_seed(0)
    model = build_student("ssd_compact", len(CLASSES), 96).train()  # a small SSD; any other detector will do
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    pictures = make_pictures(4)
    targets = [{"boxes": boxes, "labels": labels} for _, boxes, labels in pictures]
    tap = PositiveTap(model)
    settings = ClassifierSettings(feature_layers=(layer,), feature_pools=(4,))
    distiller, history = BoxDistiller(teacher, settings, **tap.normalisation), []
    for step in range(steps):
        with tap:
            losses = model([picture for picture, _, _ in pictures], targets)
        terms = distiller(tap.positives)
        optimizer.zero_grad()
        (sum(losses.values()) + sum(terms.values())).backward()
        optimizer.step()
        history.append(show(step, terms | {"accuracy": distiller.accuracy}))
    return history


def main(names: list[str] | None = None, steps: int = 20) -> dict[str, list[dict[str, float]]]:
    histories = {}
    for name in names or TEACHERS:
        print(f"a teacher of {name}")
        torch.manual_seed(0)
        histories[name] = train(*TEACHERS[name](), steps)
    return histories


if __name__ == "__main__":
    main(sys.argv[1:])
