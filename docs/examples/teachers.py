"""Teachers of other libraries, in one detector: classifiers, an encoder with a linear probe, a second stage, a CLIP as it is.

Each function below gives a teacher. Its lines that end in "# distil" are what it takes. Needs: pip install timm transformers
Run: python teachers.py [torchvision] [timm] [transformers] [linear_probe] [second_stage] [zero_shot]
"""

from __future__ import annotations

import sys
import tempfile

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


def of_a_second_stage():
    """A classifier of finer classes that runs on a detector's boxes today: its probabilities are added up for the detector's."""
    names = ["dark red", "green", "blue", "light red", "nothing"]
    network = train_classifier(resnet18(num_classes=len(names)), steps=6, rename=split_reds)
    teacher = teacher_from(network, names, CROP, mean=MEAN, std=STD)  # distil
    table = {"dark red": "red", "light red": "red", "nothing": None}  # distil
    return teacher.for_classes(CLASSES, table), "maxpool"  # distil


def split_reds(classes: torch.Tensor) -> torch.Tensor:
    """Every second red object is light red, the fourth class."""
    light = (classes == 0) & (torch.arange(len(classes)) % 2 == 1)
    return torch.where(light, 3, classes)


def of_zero_shot(folder: str | None = None):
    """A CLIP or SigLIP, not trained at all: a name of the hub or a folder. A tiny CLIP of random weights stands in here."""
    from cls2det.teachers.zero_shot import zero_shot_teacher  # distil

    with tempfile.TemporaryDirectory() as made:
        source = folder or make_clip(made)
        teacher = zero_shot_teacher(source, CLASSES, ["a photo of a {} thing."], crop_size=CROP)  # distil
    return teacher, None  # KD-cls alone


def make_clip(folder: str) -> str:
    """A CLIP as ``save_pretrained`` writes it, with a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    words = ["<pad>", "<end>", "<unknown>", "a", "photo", "of", "thing.", *CLASSES]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    texts = {**small, "vocab_size": len(words), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    CLIPModel(CLIPConfig(vision_config={**small, "image_size": CROP, "patch_size": 8}, text_config=texts)).save_pretrained(
        folder
    )
    CLIPImageProcessor(size={"shortest_edge": CROP}, crop_size=CROP).save_pretrained(folder)
    return folder


TEACHERS = {
    "torchvision": of_torchvision,
    "timm": of_timm,
    "transformers": of_transformers,
    "linear_probe": of_a_linear_probe,
    "second_stage": of_a_second_stage,
    "zero_shot": of_zero_shot,
}


def train(teacher, layer: str | None, steps: int) -> list[dict[str, float]]:
    torch.manual_seed(0)
    model = build_student("ssd_compact", len(CLASSES), 96).train()  # a small SSD; any other detector will do
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    pictures = make_pictures(4)
    targets = [{"boxes": boxes, "labels": labels} for _, boxes, labels in pictures]
    tap = PositiveTap(model)
    of_layers = {"kd_loc_weight": 2.0, "feature_layers": (layer,), "feature_pools": (4,)} if layer else {}
    settings = ClassifierSettings(loc_weight=2.0, **of_layers)
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
