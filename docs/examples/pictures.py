"""Pictures and a classifier of their objects, for the examples beside this file. Your data and your classifier replace them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.io import write_png
from torchvision.ops import box_convert

CLASSES = ["red", "green", "blue"]
COLOURS = torch.tensor([[0.9, 0.2, 0.2], [0.2, 0.8, 0.2], [0.2, 0.3, 0.9]])
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the classifier's crops
CROP = 32  # pixels, side of the classifier's crops


def make_pictures(count: int = 8, size: int = 96, seed: int = 0) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Pictures (3, size, size) in [0, 1] with two rectangles each; their boxes (2, 4), xyxy in pixels; their labels (2,), from 1."""
    random = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(count):
        picture = 0.4 + 0.2 * torch.rand(3, size, size, generator=random)
        sides = torch.randint(size // 4, size // 2, (2, 2), generator=random)
        left = torch.randint(0, size // 2, (2,), generator=random).minimum(size - sides[:, 0])
        top = torch.tensor([0, size // 2])  # one in each half
        boxes = torch.stack([left, top, left + sides[:, 0], top + sides[:, 1]], 1)
        labels = torch.randint(1, len(CLASSES) + 1, (2,), generator=random)
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            shade = torch.linspace(0.3, 1, y2 - y1)[:, None] + torch.linspace(
                0, 0.4, x2 - x1
            )  # so that a part is not like the whole
            picture[:, y1:y2, x1:x2] = COLOURS[label - 1][:, None, None] * shade / 1.4
        result.append((picture, boxes.float(), labels))
    return result


def make_crops(seed: int = 1, size: int = CROP) -> tuple[Tensor, Tensor]:
    """Crops (N, 3, size, size) of the objects of other pictures, normalised; their classes (N,), from 0."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    crops, classes = [], []
    for picture, boxes, labels in make_pictures(32, seed=seed):
        for x1, y1, x2, y2 in boxes.int().tolist():
            crops.append(F.interpolate(((picture - mean) / std)[None, :, y1:y2, x1:x2], (size, size), mode="bilinear"))
        classes.append(labels - 1)
    return torch.cat(crops), torch.cat(classes)


def train_classifier(
    network: nn.Module | None = None,
    *,
    sigmoid: bool = False,
    steps: int = 30,
    rename: Callable[[Tensor], Tensor] | None = None,
) -> nn.Module:
    """A classifier of the crops, with a softmax or a sigmoid per class; ``network`` gives logits (N, 3), or more if ``rename``
    makes finer classes (N,) of the three."""
    torch.manual_seed(0)
    if network is None:
        network = nn.Sequential()
        network.conv1 = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        network.maxpool = nn.MaxPool2d(2)  # the layer that KD-loc compares by default, as of a ResNet
        network.conv2 = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        network.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, len(CLASSES)))
    crops, classes = make_crops()
    classes = classes if rename is None else rename(classes)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 0.01)
    for _ in range(steps):
        logits = network(crops)
        logits = getattr(logits, "logits", logits)
        one_hot = F.one_hot(classes, logits.shape[1]).float()
        loss = F.binary_cross_entropy_with_logits(logits, one_hot) if sigmoid else F.cross_entropy(logits, classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.optim.swa_utils.update_bn([crops], network)  # so few steps leave batch norms behind
    return network.eval()


def write_yolo(folder: Path, count: int = 4, size: int = 96) -> Path:
    """The pictures as files, with labels in YOLO's layout; returns the file that describes them."""
    for place in ("images", "labels"):
        (folder / place).mkdir(parents=True)
    for number, (picture, boxes, labels) in enumerate(make_pictures(count, size)):
        write_png((picture * 255).byte(), str(folder / "images" / f"{number}.png"))
        rows = torch.cat([labels[:, None] - 1, box_convert(boxes, "xyxy", "cxcywh") / size], 1).tolist()
        lines = [f"{int(label)} {x} {y} {w} {h}" for label, x, y, w, h in rows]
        (folder / "labels" / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    content = f"path: {folder}\ntrain: images\nval: images\nnc: {len(CLASSES)}\nnames: {CLASSES}\n"
    (folder / "data.yaml").write_text(content, encoding="utf-8")
    return folder / "data.yaml"


def show(step: int, losses: dict[str, Tensor], every: int = 5) -> dict[str, float]:
    """The losses as numbers; of every fifth step they are printed."""
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    if step % every == 0:
        print(f"step {step:3}  " + "  ".join(f"{name} {value:.4f}" for name, value in values.items()))
    return values
