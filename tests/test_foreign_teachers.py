"""Teachers of timm, transformers and zero-shot models by the commands: trained or probed, saved whole, read by ``distill``."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")
pytest.importorskip("timm")
pytest.importorskip("transformers")

import transformers

from cls2det.cli import main
from cls2det.commands.identity import weights_of
from cls2det.commands.options import DistillOptions
from cls2det.commands.parsing import parse_words
from cls2det.data.dataset import DetectionData
from cls2det.data.loader import collate, test_loader
from cls2det.distill import BoxDistiller, ClassifierSettings
from cls2det.models.backbones import load_classifier
from cls2det.models.students import build_student
from cls2det.models.zero_shot import ZeroShotClassifier, load_zero_shot
from cls2det.teachers.accuracy import crop_logits
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.teachers.network import BoxTeacher
from cls2det.teachers.reader import as_map
from cls2det.teachers.zero_shot import zero_shot_teacher
from cls2det.training.classifier import ClassifierTraining
from cls2det.training.settings import Optim, TeacherRun
from foreign_networks import PROCESSOR, SIZE, hf_folder, hf_model, timm_file
from rectangles import COLOURS, make_rectangles
from training_cases import distill, logged, train_teacher

test_loader.__test__ = False  # a function of the package, not a test
CLASSES = list(COLOURS)
SHORT = {"width": 64, "crop_size": 32, "optim": Optim(steps=4, batch_size=4), "augmentation": "none"}
ARCHITECTURES = ("timm:test_resnet", "timm:test_vit", "hf:vit", "hf:clip", "hf:dinov3", "hf:resnet")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_rectangles(tmp_path_factory.mktemp("data"))


@pytest.fixture
def folder_of(tmp_path):
    """Makes a folder with a model of transformers, by "hf:KIND", and gives its name; others are left as they are."""

    def make(architecture):
        if not architecture.startswith("hf:"):
            return architecture
        return f"hf:{hf_folder(tmp_path / 'model', architecture.removeprefix('hf:'))}"

    return make


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_teacher_is_whole_without_its_folder(root, tmp_path, folder_of, architecture):
    weights = "pretrained" if architecture.startswith("hf:") else "none"
    options = {**SHORT, "architecture": folder_of(architecture), "backbone_weights": weights, "val_split": "val"}
    file = train_teacher(root, tmp_path / "run", loss="joint", **options)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["started from"] == (options["architecture"] if weights == "pretrained" else "random weights")
    shutil.rmtree(tmp_path / "model", ignore_errors=True)
    teacher = CropClassifier.load(file)
    logits, classes = crop_logits(teacher, test_loader(DetectionData(root, "val")))
    assert report["accuracy"] == pytest.approx(100 * (logits.argmax(1) == classes).float().mean().item())
    assert isinstance(teacher, BoxTeacher) and logits.shape[1] == len(CLASSES)
    turned = teacher.for_classes(CLASSES[::-1])
    crops = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(turned(crops), teacher(crops).flip(1))
    torch.testing.assert_close(turned.reader([], True)(crops)["logits"], turned(crops), rtol=1e-3, atol=1e-4)


def test_crops_are_in_the_networks_own_normalisation(root, folder_of):
    """Of a student that scales otherwise: the same picture in the network's mean and deviation."""
    name = folder_of("hf:vit")
    teacher = CropClassifier(CLASSES, architecture=name, backbone_weights="pretrained", crop_size=32)
    assert list(teacher.mean) == PROCESSOR["image_mean"] and list(teacher.std) == PROCESSOR["image_std"]
    data = DetectionData(root, "train")
    images, targets = collate([data[0, 0], data[1, 1]])
    crops, _ = teacher.crops_of_batch((images, targets))
    transform = build_student("ssd_compact", 3).transform
    inputs, resized = transform([image / 255 for image in images], targets)
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.image_mean, transform.image_std))
    own_mean, own_std = (torch.tensor(values)[:, None, None] for values in PROCESSOR.values() if isinstance(values, list))
    pictures = (inputs.tensors * std + mean - own_mean) / own_std
    boxes = torch.cat([target["boxes"] for target in resized])
    index = torch.tensor([0] * len(resized[0]["boxes"]) + [1] * len(resized[1]["boxes"]))
    torch.testing.assert_close(crops, teacher.crop(pictures, boxes, index), rtol=1e-4, atol=1e-4)


def test_a_probe_trains_the_last_layer_alone(root, tmp_path):
    file = timm_file(tmp_path / "resnet.safetensors", "test_resnet")
    start = CropClassifier(CLASSES, architecture="timm:test_resnet", backbone_weights=file).network.state_dict()
    words = ["--architecture", "timm:test_resnet", "--backbone-weights", str(file), "--freeze-body", "--crop-size", "32"]
    optim = ["--optim.steps", "6", "--optim.batch-size", "4", "--run.device", "cpu", "--run.checkpoint-every", "3"]
    data = ["--data-root", str(root), "--out", str(tmp_path / "run")]
    assert main(["teacher", *data, *words, *optim]) == 0
    saved = CropClassifier.load(tmp_path / "run" / "weights.pt").network.state_dict()
    changed = {name for name in start if not torch.equal(start[name], saved[name])}
    assert changed == {"fc.weight", "fc.bias"}  # no mean of a batch norm either
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["trained parameters"] == sum(saved[name].numel() for name in changed) < report["parameters"]
    assert main(["teacher", *data, *words, *optim]) == 0  # a restart goes on, and ends where it was
    again = CropClassifier.load(tmp_path / "run" / "weights.pt").network.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in saved.items())


def test_a_probe_keeps_its_body_in_eval_mode():
    training = ClassifierTraining(CropClassifier(CLASSES, architecture="timm:test_resnet"), freeze_body=True).train()
    network = training.classifier.network
    assert training.training and not network.bn1.training and network.fc.training


def test_a_probe_of_random_weights_is_refused(root, tmp_path):
    for architecture in ("timm:test_resnet", "resnet18"):
        with pytest.raises(ValueError, match=rf"the body of {architecture} has random weights.*--backbone-weights pretrained"):
            train_teacher(root, tmp_path / "run", **SHORT, architecture=architecture, freeze_body=True)
    assert not (tmp_path / "run").exists()


def test_a_foreign_teacher_goes_on_from_its_checkpoint(root, tmp_path, folder_of, monkeypatch):
    options = {**SHORT, "architecture": folder_of("hf:vit"), "backbone_weights": "pretrained"}
    run = TeacherRun(device="cpu", checkpoint_every=2)
    whole = torch.load(train_teacher(root, tmp_path / "whole", **options, run=run), weights_only=True)["weights"]
    step = ClassifierTraining.training_step

    def stop(self, batch, index):
        if self.global_step == 3:
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(ClassifierTraining, "training_step", stop)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_teacher(root, tmp_path / "parts", **options, run=run)
    monkeypatch.setattr(ClassifierTraining, "training_step", step)
    parts = torch.load(train_teacher(root, tmp_path / "parts", **options, run=run), weights_only=True)["weights"]
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [("timm:test_resnet", "layer1"), ("timm:test_vit", "blocks.0"), ("hf:vit", "vit.layers.0"), ("hf:dinov3", None)],
)
def test_distill_reads_it(root, tmp_path, folder_of, architecture, layer):
    """KD-cls and KD-loc; a layer that the network lacks is an error that names others."""
    weights = "pretrained" if architecture.startswith("hf:") else "none"
    CropClassifier(CLASSES, architecture=folder_of(architecture), crop_size=32, backbone_weights=weights).save(
        tmp_path / "teacher.pt"
    )
    wrong = ClassifierSettings(kd_loc_weight=2.0, feature_layers=("layre",))
    with pytest.raises(
        ValueError, match=rf"no layer layre in {architecture[:3]}.*; there are .*and layers within these"
    ) as error:
        distill(root, tmp_path / "wrong", tmp_path / "teacher.pt", classifier=wrong)
    layer = layer or next(name for name in str(error.value).split("there are ")[1].split(", ") if "layer" in name)
    settings = ClassifierSettings(kd_loc_weight=2.0, loc_weight=2.0, feature_layers=(layer,), feature_pools=(2,))
    distill(root, tmp_path / "run", tmp_path / "teacher.pt", classifier=settings)
    for term in ("kd_cls", "kd_loc", "loc"):
        values = [float(row[f"train/{term}"] if f"train/{term}" in row else row[term]) for row in logged(tmp_path / "run")]
        assert all(0 < value < float("inf") for value in values)
    with pytest.raises(ValueError, match="a student starts from a compact, ResNet or MobileNetV2 classifier"):
        load_classifier(tmp_path / "teacher.pt")


def test_a_table_of_classes_in_a_recipe(root, tmp_path):
    """A teacher of other classes is refused without a table, and learnt from with it."""
    known = ["crimson", "scarlet", "green", "navy"]
    CropClassifier(known, architecture="compact", crop_size=32, loss="joint", student="ssd_compact").save(tmp_path / "t.pt")
    with pytest.raises(ValueError, match=r"of other names: .*which of its classes stand for which \(class_mapping\)"):
        distill(root, tmp_path / "refused", tmp_path / "t.pt")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data_root: {root}\nteacher: {tmp_path / 't.pt'}\nallow_poor_teacher: true\nbackbone_weights: none\n"
        "class_mapping:\n  crimson: red\n  scarlet: red\n  navy: [blue]\n"
        "classifier: {kd_loc_weight: 0}\noptim: {steps: 2, batch_size: 2}\nrun: {device: cpu, loader_workers: 0}\n"
    )
    assert main(["distill", "--config", str(recipe), "--out", str(tmp_path / "run")]) == 0
    options = json.loads((tmp_path / "run" / "options.json").read_text())
    assert options["class_mapping"] == {"crimson": "red", "scarlet": "red", "navy": ["blue"]}
    words = ["--data-root", "d", "--out", "o", "--class-mapping", "{crimson: red, navy: null}"]
    assert parse_words(DistillOptions, words, "distill").class_mapping == {"crimson": "red", "navy": None}


@pytest.fixture(scope="module")
def zero_shot(tmp_path_factory):
    root = tmp_path_factory.mktemp("zero-shot")
    return {kind: hf_folder(root / kind, kind) for kind in ("clip", "siglip", "vit")}


PROMPTS = ["a photo of a {}.", "the {}"]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_zero_shot_teacher_scores_the_names_of_classes(zero_shot, kind):
    """As transformers itself does, texts and images by the model's own forward."""
    from transformers import AutoTokenizer

    classes, model = ["red", "traffic_light"], hf_model(kind).eval()
    tokenizer, images = AutoTokenizer.from_pretrained(zero_shot[kind]), torch.randn(3, 3, SIZE, SIZE)
    padding = {"padding": "max_length", "max_length": 16} if kind == "siglip" else {"padding": True}
    tokens = tokenizer(["a photo of a red.", "a photo of a traffic light."], return_tensors="pt", **padding)
    mask = {} if kind == "siglip" else {"attention_mask": tokens["attention_mask"]}
    with torch.no_grad():
        expected = model(pixel_values=images, input_ids=tokens["input_ids"], **mask).logits_per_image
        ours = zero_shot_teacher(str(zero_shot[kind]), classes)
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-4)
        averaged = zero_shot_teacher(str(zero_shot[kind]), classes, PROMPTS).network.texts
        alone = [
            F.normalize(load_zero_shot(str(zero_shot[kind]), classes, [prompt])[0].module.texts, dim=1) for prompt in PROMPTS
        ]
    torch.testing.assert_close(averaged, F.normalize(sum(alone), dim=1))
    assert ours.crop_size == SIZE and list(ours.mean) == PROCESSOR["image_mean"]
    assert not any("text" in name for name, _ in ours.named_parameters())  # encoded once, and gone
    smaller = zero_shot_teacher(str(zero_shot[kind]), classes, crop_size=32)
    assert smaller(torch.randn(2, 3, 32, 32)).shape == (2, 2)


def test_what_a_zero_shot_teacher_cannot_be(zero_shot, tmp_path):
    with pytest.raises(ValueError, match=r"a prompt has \{\} in the place of a class's name, found 'a photo'"):
        zero_shot_teacher(str(zero_shot["clip"]), CLASSES, ["a photo"])
    with pytest.raises(ValueError, match="which knows no texts; expected a CLIP or SigLIP"):
        zero_shot_teacher(str(zero_shot["vit"]), CLASSES)
    with pytest.raises(ValueError, match="the tokenizer makes the same of 'mauve' and 'beige': it knows neither"):
        zero_shot_teacher(str(zero_shot["clip"]), ["red", "mauve", "beige"])
    shutil.copytree(zero_shot["clip"], tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"the tokenizer of .* knows 2 words, and the model 13: its files are missing"):
        zero_shot_teacher(str(tmp_path), CLASSES)


@pytest.mark.parametrize(
    ("kind", "student", "fits"),
    [
        ("clip", "ssd_compact", True),
        ("siglip", "ssd_compact", True),
        ("clip", "fcos_compact", False),
        ("siglip", "fcos_compact", True),
    ],
)
def test_distill_with_a_zero_shot_teacher(root, tmp_path, zero_shot, monkeypatch, kind, student, fits):
    """It is tried as every teacher is; a CLIP's logits are refused for sigmoids."""
    options = {"student": student, "prompts": PROMPTS, "teacher_crop_size": 32, "image_size": 96}
    settings, tried = ClassifierSettings(loc_weight=2.0), []
    monkeypatch.setattr("cls2det.commands.distill.check_not_at_chance", lambda teacher, *_: tried.append(teacher))
    run = {**options, "classifier": settings, "allow_poor_teacher": False}
    if not fits:
        with pytest.raises(ValueError, match=r"was trained with a softmax alone: its logits have no zero. Take a SigLIP"):
            distill(root, tmp_path / "run", f"zero-shot:{zero_shot[kind]}", **run)
        return
    distill(root, tmp_path / "run", f"zero-shot:{zero_shot[kind]}", **run)
    assert logged(tmp_path / "run") and [teacher.classes for teacher in tried] == [CLASSES]
    logits, _ = crop_logits(tried[0], test_loader(DetectionData(root, "val")))
    assert logits.shape[1] == len(CLASSES) and tried[0].crop_size == 32


def test_options_of_another_teacher_are_told(root, tmp_path, zero_shot):
    CropClassifier(CLASSES, architecture="compact", student="ssd_compact").save(tmp_path / "t.pt")
    with pytest.raises(
        ValueError, match=r"prompts and teacher_crop_size are for a teacher zero-shot:NAME; found teacher .*t\.pt"
    ):
        distill(root, tmp_path / "a", tmp_path / "t.pt", prompts=PROMPTS)
    with pytest.raises(ValueError, match="class_mapping is for a trained teacher"):
        distill(root, tmp_path / "b", f"zero-shot:{zero_shot['clip']}", class_mapping={"red": "red"})
    pixels = ClassifierSettings(kd_cls_weight=0.0, loc_weight=2.0)
    with pytest.warns(UserWarning, match=r"class_mapping is of a teacher, and there is none"):
        distill(root, tmp_path / "c", None, classifier=pixels, class_mapping={"red": "red"})


def test_a_zero_shot_teacher_in_a_loop_of_ones_own(zero_shot):
    teacher = zero_shot_teacher(str(zero_shot["clip"]), CLASSES, crop_size=32)
    with pytest.raises(ValueError, match=r"no layer maxpool in ZeroShotClassifier; there are .*encoder"):
        BoxDistiller(teacher, ClassifierSettings(kd_loc_weight=2.0), image_mean=(0, 0, 0), image_std=(1, 1, 1))


def test_tokens_of_pictures_that_are_not_square_are_no_map():
    assert as_map(torch.zeros(2, 1 + 64, 8)).shape == (2, 8, 8, 8)
    with pytest.raises(ValueError, match=r"97 tokens, expected a square of them.*feature_mode crop"):
        as_map(torch.zeros(2, 1 + 96, 8))


def test_a_zero_shot_teacher_is_as_sure_under_mixed_precision():
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 16))
    classifier = ZeroShotClassifier(encoder, torch.nn.functional.normalize(torch.randn(3, 16), dim=1), 100.0, 0.0)
    embeddings = encoder(torch.randn(5, 3, 2, 2)).bfloat16().float()
    classifier.encoder = torch.nn.Identity()
    with torch.autocast("cpu", torch.bfloat16):
        ours = classifier(embeddings)
    torch.testing.assert_close(ours, classifier(embeddings), rtol=0, atol=1e-4)


def test_a_teacher_of_an_hf_student_needs_no_folder(tmp_path):
    config = transformers.DetrConfig(
        backbone_config=transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"]
        ),
        use_timm_backbone=False,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    folder = tmp_path / "detr"
    transformers.DetrForObjectDetection(config).save_pretrained(folder)
    teacher = CropClassifier(["a", "b"], width=8, student=f"hf:{folder}", image_size=64)
    teacher.save(tmp_path / "weights.pt")
    shutil.rmtree(folder)
    loaded = CropClassifier.load(tmp_path / "weights.pt")
    assert (loaded.mean, loaded.std) == (teacher.mean, teacher.std) and list(loaded.transform.min_size) == [64]


def test_weights_in_folders_of_other_libraries_are_part_of_a_run(tmp_path):
    folder = hf_folder(tmp_path / "clip", "clip")
    options = DistillOptions(tmp_path, tmp_path / "run", teacher=f"zero-shot:{folder}", encoder=f"hf:{folder}")
    before = weights_of(options)
    assert set(before) == {"teacher", "encoder"} and weights_of(options) == before
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    after = weights_of(options)
    assert after["teacher"] != before["teacher"] and after["encoder"] != before["encoder"]
