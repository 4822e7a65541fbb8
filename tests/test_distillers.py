"""Detector-to-detector methods in training: which students they fit, what they train, what reaches the files, what they refuse."""

import json
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou, clip_boxes_to_image, generalized_box_iou

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from cls2det.cli import main
from cls2det.commands.export import export
from cls2det.commands.options import ExportOptions
from cls2det.distill import (
    DETECTOR_METHODS,
    ClassifierDistiller,
    ClassifierSettings,
    DetectorTeacher,
    Distillation,
    HarmonySettings,
)
from cls2det.distill.balance import gradient_ratios
from cls2det.distill.fgfi import FGFISettings
from cls2det.distill.fkd import PRESETS, FKDSettings, NonLocal
from cls2det.distill.gid import GIDSettings, fcos_places, select_instances
from cls2det.models.students import build_student
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.teachers.detector import TeacherOutputs, check_same_grid, rescaled
from cls2det.training.detector import DetectorTraining
from cls2det.training.settings import Optim, Run
from training_cases import ALL_TERMS, DIGITS, FITS, batch, distill, logged, plain_training, untrained_student, weights_in

# RetinaNet and FCOS have the feature pyramid of Faster R-CNN: what compares its maps alone is trained on that one.
PYRAMIDS = ("retinanet_compact", "fcos_compact")
PAIRS = [
    (student, method)
    for student, methods in FITS.items()
    for method in methods
    if student not in PYRAMIDS or method not in ("fkd", "fgd", "pkd", "cwd")
]
HERE = Run(device="cpu", cache=True, checkpoint_every=2, log_every=1, ratio_every=2)


def wide(student: str) -> str:
    return student if "detr" in student else f"{student}_wide"


def model_of(
    student: str, *methods: str, teacher: torch.nn.Module | None = None, classifier=None, **settings
) -> DetectorTraining:
    """A student with these methods and an untrained teacher of twice its width."""
    torch.manual_seed(1)
    detector = teacher or build_student(wide(student), 10)

    chosen = {name: settings.get(name) or DETECTOR_METHODS[name][1](warmup_steps=0) for name in methods}
    torch.manual_seed(0)
    built = build_student(student, 10)
    distiller = classifier and ClassifierDistiller(classifier, ALL_TERMS, DIGITS, built.transform)
    distillation = Distillation(built, distiller, DetectorTeacher(detector, DIGITS, range(1, 11)), chosen)
    return DetectorTraining(built, DIGITS, distillation=distillation).train()


@pytest.fixture(scope="module")
def detector_weights(tmp_path_factory):
    """weights.pt of an untrained detector, by student."""
    folder = tmp_path_factory.mktemp("detectors")

    def write(student: str, classes=DIGITS):
        path = folder / f"{student}-{len(classes)}.pt"
        if not path.exists():
            untrained_student(path, student, list(classes))
        return path

    return write


@pytest.mark.parametrize("student, method", PAIRS)
def test_method_trains_student(scenes, student, method):
    """On its terms alone, over and over on one batch: they fall, and every adapter and the student's body move."""
    # Boxes of an untrained FCOS are a few pixels large.
    model = model_of(student, method, gid=GIDSettings(min_size=0.0))
    pictures, history = batch(scenes, 2), []
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(10):
        torch.manual_seed(step)  # of the proposals that Faster R-CNN samples
        losses, terms = model.losses(*pictures)
        assert all(term.isfinite() for term in terms.values())
        history.append({name: term.item() for name, term in terms.items()})
        loss = sum(terms.values())
        if step == 0:  # with the detector's own loss, as under DDP: nothing that trains is left without a gradient
            (loss + sum(losses.values())).backward(retain_graph=True)
            assert [name for name, value in model.named_parameters() if value.grad is None] == []
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert any(value > 0 for value in history[0].values()), history[0]
    total = [sum(row.values()) for row in history]
    assert sum(total[-3:]) / 3 < 0.97 * sum(total[:2]) / 2, [round(value, 4) for value in total]
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert any(name.startswith("detector.") for name in changed)
    unchanged = [name for name in before if name.startswith("distillation.") and name not in changed]
    # A convolution in front of a norm that starts at 0, or of a softmax that no constant changes, may rest for a while.
    assert all(name.endswith("bias") or "relations" in name or "context" in name for name in unchanged), unchanged


@pytest.mark.parametrize("student", FITS)
def test_other_methods_are_refused_with_the_reason(student):
    for method in DETECTOR_METHODS:
        if method not in FITS[student]:
            with pytest.raises(ValueError, match=f"^{method} "):
                model_of(student, method)


@pytest.mark.parametrize("student", ["ssd_compact", "fasterrcnn_compact", "retinanet_compact"])
def test_the_detectors_own_loss_is_untouched(scenes, student):
    """To the bit: taps and distillers only look."""
    model = model_of(student, *FITS[student])
    images, targets = batch(scenes, 4)
    torch.manual_seed(3)
    losses, _ = model.losses(images, targets)
    torch.manual_seed(0)
    plain = plain_training(student)
    torch.manual_seed(3)
    plain_losses, _ = plain.losses(images, targets)
    assert losses.keys() == plain_losses.keys() and all(torch.equal(losses[name], plain_losses[name]) for name in losses)


def test_teacher_is_frozen_and_runs_no_further_than_is_read(scenes):
    """Features only for FKD; the RPN's head for GID; the box head for Chen's; never its losses, proposals or NMS."""
    teacher = build_student("fasterrcnn_compact_wide", 10)
    ran = []
    for name in ("rpn", "rpn.head", "roi_heads", "roi_heads.box_head"):
        teacher.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    teacher.backbone.register_forward_hook(lambda *_: ran.append("backbone"))
    for methods, expected in (
        (("fkd", "fgfi"), ["backbone"]),
        (("gid",), ["backbone", "rpn.head"]),
        (("chen", "fkd"), ["backbone", "roi_heads.box_head", "rpn.head"]),
    ):
        model = model_of("fasterrcnn_compact", *methods, teacher=teacher)
        ran.clear()
        _, terms = model.losses(*batch(scenes, 2))
        assert sorted(ran) == sorted(expected)  # once each, however many methods read it
        sum(terms.values()).backward()
    assert not teacher.training and not any(value.requires_grad or value.grad is not None for value in teacher.parameters())
    assert not {id(value) for value in model.parameters()} & {id(value) for value in teacher.parameters()}


def test_sum_is_of_the_parts(scenes, teacher_weights):
    """classifier + fkd + pkd: each term is what it is alone, with its own weight and name."""

    classifier = CropClassifier.load(teacher_weights)
    pictures = batch(scenes, 4)
    parts = {}
    for methods, distiller in (((), classifier), (("fkd",), None), (("pkd",), None)):
        parts |= model_of("ssd_compact", *methods, classifier=distiller).losses(*pictures)[1]
    model = model_of("ssd_compact", "fkd", "pkd", classifier=classifier)
    adapters = model_of("ssd_compact", "fkd").distillation.methods["fkd"].state_dict()
    model.distillation.methods["fkd"].load_state_dict(adapters)
    model.distillation.methods["pkd"].load_state_dict(model_of("ssd_compact", "pkd").distillation.methods["pkd"].state_dict())
    together = model.losses(*pictures)[1]
    assert set(together) == {"kd_cls", "kd_loc", "loc", "fkd_attention", "fkd_transfer", "fkd_nonlocal", "pkd"}
    for name, term in together.items():
        torch.testing.assert_close(term, parts[name], rtol=1e-5, atol=1e-7)


def test_weight_and_warmup(scenes):
    model = model_of("ssd_compact", "fgfi", fgfi=FGFISettings(weight=0.5, warmup_steps=10))
    full = model_of("ssd_compact", "fgfi", fgfi=FGFISettings(weight=1.0, warmup_steps=0)).losses(*batch(scenes, 2))[1]["fgfi"]
    with model.tap:
        model.detector([image.float() / 255 for image in batch(scenes, 2)[0]], batch(scenes, 2)[1])
    for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (99, 1.0)):
        torch.testing.assert_close(model.distillation(model.tap.student_outputs, step)["fgfi"], 0.5 * share * full)


def test_gradient_ratio_of_a_term_on_maps_is_taken_there(scenes):
    model = model_of("ssd_compact", "fkd")
    losses, terms = model.losses(*batch(scenes, 2))
    detection = sum(losses.values())
    ratios = gradient_ratios(detection, terms, model.tap.outputs, model.tap.maps)

    def norm(loss):
        gradients = torch.autograd.grad(loss, model.tap.maps, retain_graph=True)
        return torch.cat([gradient.flatten() for gradient in gradients]).norm()

    for name, term in terms.items():
        torch.testing.assert_close(ratios[name], norm(term) / norm(detection))
        assert ratios[name] > 0


@pytest.mark.parametrize("student", FITS)
def test_under_autocast(scenes, student):
    """The classifier's terms and every method that fits, in the autocast that Lightning trains under: close to float32."""
    classifier = CropClassifier(DIGITS, width=16, crop_size=32, loss="joint")
    model = model_of(student, *FITS[student], classifier=classifier)
    pictures = batch(scenes, 4)
    torch.manual_seed(5)
    exact = model.losses(*pictures)[1]
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(5)
        losses, terms = model.losses(*pictures)
    by_scores = ("gid", "chen_", *(("kd_", "loc") if student == "fasterrcnn_compact" else ()))  # other boxes may be chosen
    for name, term in terms.items():
        assert term.dtype == torch.float32 and term.isfinite(), name
        if not name.startswith(by_scores):
            torch.testing.assert_close(term, exact[name], rtol=0.1, atol=1e-3)
    sum((losses | terms).values()).backward()
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)


def test_adapters_are_in_the_checkpoint_and_in_no_file_of_weights(scenes, detector_weights, tmp_path):
    """Stopped and started again, a run with adapters makes the steps of the unbroken one; what it writes is the student."""

    def run(out, steps):
        distill(
            scenes,
            out,
            optim=Optim(steps=steps, batch_size=2, schedule="constant"),
            run=HERE,
            detector_teacher=str(detector_weights("ssd_compact_wide")),
            distillers=["fkd", "fgfi"],
        )

    run(tmp_path / "whole", 4)
    run(tmp_path / "two", 2)
    options = tmp_path / "two" / "options.json"
    options.write_text(options.read_text().replace('"steps": 2', '"steps": 4'))
    for file in (tmp_path / "two").glob("*.pt"):
        file.unlink()
    run(tmp_path / "two", 4)
    weights, resumed = (weights_in(tmp_path / name / "weights.pt") for name in ("whole", "two"))
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert not any("distillation" in name or "adapt" in name for name in weights)
    assert set(weights) == set(build_student("ssd_compact", 10).state_dict())
    checkpoint = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)["state_dict"]
    trained = [name for name in checkpoint if name.startswith("distillation.methods.fkd")]
    assert trained and not any("teacher.detector" in name for name in checkpoint)
    rows = logged(tmp_path / "whole")
    for column in ("fkd_attention", "fkd_transfer", "fkd_nonlocal", "fgfi", "gradient_ratio/fkd_attention"):
        assert any(float(row[column] or 0) > 0 for row in rows), column
    exported = tmp_path / "exported"
    export(ExportOptions(tmp_path / "whole" / "weights.pt", exported, formats=["state_dict"]))
    assert json.loads((tmp_path / "whole" / "report.json").read_text())["parameters"] == sum(
        value.numel() for value in build_student("ssd_compact", 10).parameters()
    )


def test_averaged_weights_with_adapters(scenes, detector_weights, tmp_path):
    """A moving average copies the module: teachers are shared, adapters are not."""
    distill(
        scenes,
        tmp_path / "run",
        optim=Optim(steps=2, batch_size=2),
        run=Run(device="cpu", checkpoint_every=2, ema=0.9, ratio_every=None),
        detector_teacher=str(detector_weights("ssd_compact_wide")),
        distillers=["pkd"],
    )
    assert set(weights_in(tmp_path / "run" / "weights.pt")) == set(build_student("ssd_compact", 10).state_dict())


def test_recipe_with_a_list_of_distillers(scenes, detector_weights, teacher_weights, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"distillers: [classifier, fkd]\nfkd: {{weight: 3.0, preset: one-stage}}\nclassifier: {{warmup_steps: 2}}\n"
        f"detector_teacher: {detector_weights('ssd_compact_wide')}\nteacher: {teacher_weights}\nimages: 8\n"
        "backbone_weights: none\noptim: {steps: 2, batch_size: 2}\nrun: {device: cpu, checkpoint_every: 2, log_every: 1}\n"
    )
    command = [
        "distill",
        "--config",
        str(recipe),
        "--data-root",
        str(scenes),
        "--out",
        str(tmp_path / "run"),
        "--allow-poor-teacher",
    ]
    assert main(command) == 0
    options = json.loads((tmp_path / "run" / "options.json").read_text())
    assert options["command"] == "distill" and options["distillers"] == ["classifier", "fkd"]
    assert options["fkd"]["weight"] == 3.0 and options["fkd"]["preset"] == "one-stage"
    rows = logged(tmp_path / "run")
    assert all(float(row["fkd_attention"]) > 0 for row in rows)
    assert float(rows[0]["kd_cls"]) == 0 < float(rows[1]["kd_cls"])
    assert main(["train", *command[1:6], str(tmp_path / "plain"), "--allow-poor-teacher"]) == 0
    assert json.loads((tmp_path / "plain" / "options.json").read_text())["command"] == "train"
    capsys.readouterr()
    assert main([*command[:6], str(tmp_path / "wrong"), "--distillers", "fkt"]) == 2
    assert "no distiller fkt; there are classifier, regions, chen" in capsys.readouterr().err
    assert main([*command[:1], *command[3:6], str(tmp_path / "none"), "--distillers", "fkd"]) == 2
    assert "give --detector-teacher" in capsys.readouterr().err


def shapes_of(student: str) -> torch.nn.Module:
    """The student on the meta device, which has shapes and no numbers and is built at once."""
    with torch.device("meta"):
        return build_student(student, 10)


def test_teachers_that_do_not_fit_are_refused(detector_weights, teacher_weights):
    with pytest.raises(ValueError, match=r"fkd: the detector teacher does not take the student's images of .96, 96"):
        model_of("ssd_compact", "fkd", teacher=shapes_of("ssd300_vgg16"))
    with pytest.raises(
        ValueError, match=r"fkd compares feature maps.*12x12, 6x6, 3x3, the .* teacher 12x12, 6x6, 3x3, 2x2, 1x1"
    ):
        model_of("ssd_compact", "fkd", teacher=shapes_of("retinanet_resnet50_fpn"))
    with pytest.raises(ValueError, match=r"gid compares predictions.*a RetinaNet, the detector teacher a FasterRCNN"):
        model_of("retinanet_compact", "gid", teacher=build_student("fasterrcnn_compact", 10))
    detector = build_student("retinanet_compact", 10)
    detector.anchor_generator = AnchorGenerator(((10, 15, 19), (24, 30, 38), (48, 60, 76)), ((0.5, 1.0, 2.0),) * 3)
    with pytest.raises(ValueError, match=r"anchor by anchor: the student's 12096 .* not the same"):
        check_same_grid("gid", build_student("retinanet_compact", 10), detector)
    with pytest.raises(ValueError, match="holds a crop_classifier, expected a student"):
        DetectorTeacher.load(str(teacher_weights), DIGITS)
    with pytest.raises(FileNotFoundError):
        DetectorTeacher.load("nowhere.pt", DIGITS)
    with pytest.raises(ValueError, match="no detector 'resnet18'"):
        DetectorTeacher.load("torchvision:resnet18", DIGITS)


def test_columns_are_found_by_the_names_of_classes(scenes, detector_weights):
    """A teacher that knows other classes, in another order, teaches those that the student has; scores of a class that it
    lacks cannot be read, and its maps can."""
    classes = [*reversed(DIGITS), "dog"]
    teacher = DetectorTeacher.load(str(detector_weights("fasterrcnn_compact_wide", classes)), DIGITS)
    assert teacher.columns("chen") == [0, *range(10, 0, -1)]
    narrower = DetectorTeacher.load(str(detector_weights("fasterrcnn_compact_wide", DIGITS[:4])), DIGITS)
    with pytest.raises(
        ValueError, match="chen reads the detector teacher's scores, and it does not know '4', '5', '6' and 3 more"
    ):
        narrower.columns("chen")
    student = build_student("fasterrcnn_compact", 10)
    Distillation(student, None, narrower, {"fkd": FKDSettings()})
    Distillation(student, None, teacher, {"chen": DETECTOR_METHODS["chen"][1]()})


def test_torchvisions_detectors_know_the_classes_of_coco(monkeypatch):
    """As fetched, but for the values of the weights."""
    fetch = torchvision.models.get_model

    def without_network(name, weights, **options):
        if name == "retinanet_resnet50_fpn":
            raise URLError("no network")
        return fetch(name, weights=None, num_classes=len(weights.meta["categories"]), **options)

    monkeypatch.setattr(torchvision.models, "get_model", without_network)
    monkeypatch.setattr("cls2det.teachers.detector.load_into_cache", lambda _weights: None)
    teacher = DetectorTeacher.load("torchvision:ssdlite320_mobilenet_v3_large", ["dog", "person"])
    assert teacher.columns("gid") == [0, 18, 1]
    with pytest.raises(ConnectionError, match="COCO weights of retinanet_resnet50_fpn cannot be fetched"):
        DetectorTeacher.load("torchvision:retinanet_resnet50_fpn", ["dog"])


def test_images_are_rescaled_to_the_teachers_normalisation():
    student, teacher = shapes_of("ssd_compact").transform, shapes_of("ssd300_vgg16").transform
    pixels = torch.rand(2, 3, 8, 8)

    def normalised(transform):
        mean, std = (torch.tensor(getattr(transform, name))[:, None, None] for name in ("image_mean", "image_std"))
        return (pixels - mean) / std

    torch.testing.assert_close(rescaled(normalised(student), student, teacher), normalised(teacher), rtol=1e-4, atol=1e-3)
    assert rescaled(pixels, student, student) is pixels


def test_fkd_terms_again_from_their_formulas(scenes):
    """With the adapters' own weights, the non-local block written out as a sum over places."""
    model = model_of("ssd_compact", "fkd", fkd=FKDSettings(preset="one-stage", per_image=True))
    distiller = model.distillation.methods["fkd"]
    for level in distiller.levels:
        for block in (level.student_relations, level.teacher_relations):
            block.norm.weight.data.fill_(0.7)  # 0 at first: then the block is the identity and shows nothing
    model.eval()
    model.detector.train()
    model.losses(*batch(scenes, 2))
    student_outputs = model.tap.student_outputs
    teacher_outputs = TeacherOutputs(model.distillation.teacher, student_outputs, model.detector.transform)
    terms = distiller(student_outputs, teacher_outputs)
    weights = PRESETS["one-stage"][:3]
    expected = [0.0, 0.0, 0.0]
    for level, student, teacher in zip(
        distiller.levels, student_outputs.features.values(), teacher_outputs.features.values(), strict=True
    ):
        soft = [F.softmax(feature.abs().mean(1).flatten(1) / 0.1, 1) * feature[0, 0].numel() for feature in (student, teacher)]
        spatial = ((soft[0] + soft[1]) / 2).view(len(student), 1, *student.shape[2:])
        channel = F.softmax(teacher.abs().mean((2, 3)) / 0.1, 1) * teacher.shape[1]  # the student has half the channels
        square = (level.adapt(student) - teacher) ** 2 * spatial * channel[:, :, None, None]
        expected[0] += square.sum((1, 2, 3)).sqrt().mean()
        at = level.adapt_spatial(student.mean(1, keepdim=True)) - teacher.mean(1, keepdim=True)
        expected[1] += at.flatten(1).norm(dim=1).mean()
        expected[1] += (level.adapt_channel(student.mean((2, 3))) - teacher.mean((2, 3))).norm(dim=1).mean()
        blocks = [_written_out(level.student_relations, student), _written_out(level.teacher_relations, teacher)]
        expected[2] += (level.adapt_relations(blocks[0]) - blocks[1]).flatten(1).norm(dim=1).mean()
    for term, weight, value in zip(terms.values(), weights, expected, strict=True):
        torch.testing.assert_close(term, weight * value, rtol=1e-4, atol=1e-6)


def _written_out(block: NonLocal, x: torch.Tensor) -> torch.Tensor:
    theta = block.theta(x).flatten(2).mT
    pool = min(block.pool, *x.shape[2:])
    phi, g = (F.max_pool2d(conv(x), pool).flatten(2).mT for conv in (block.phi, block.g))
    y = (theta @ phi.mT / phi.shape[1]) @ g
    return block.norm(block.out(y.mT.reshape(len(x), -1, *x.shape[2:]))) + x


def test_fkd_in_16_bits_takes_features_as_large_as_vggs():
    """Products of such features overflow float16; a map of one value has no batch statistics."""
    block = NonLocal(512, 64, 8)
    block.norm.weight.data.fill_(0.5)
    x = 150 * torch.randn(1, 512, 64, 64).relu()
    with torch.autocast("cpu", torch.float16):
        value = block(x.half())
    assert value.dtype == torch.float32 and value.isfinite().all()
    torch.testing.assert_close(value, block(x.half().float()), rtol=1e-3, atol=1e-2)
    small = torch.randn(1, 512, 1, 1, requires_grad=True)
    block(small).sum().backward()
    assert small.grad.isfinite().all() and all(parameter.grad is not None for parameter in block.parameters())


def test_chen_looks_at_the_samples_that_the_detectors_loss_looks_at(scenes):
    """Soft labels of the RPN over its sampled anchors; bounded boxes over all sampled proposals, as the box loss."""
    model = model_of("fasterrcnn_compact", "chen")
    _, terms = model.losses(*batch(scenes, 2))
    student_outputs, rpn = model.tap.student_outputs, model.detector.rpn
    in_loss = student_outputs.grid.labels >= 0
    assert in_loss.sum(1).tolist() == [rpn.fg_bg_sampler.batch_size_per_image] * 2
    assert (student_outputs.grid.labels > 0).any() and type(rpn.fg_bg_sampler).__name__ == "BalancedPositiveNegativeSampler"
    teacher_outputs = TeacherOutputs(model.distillation.teacher, student_outputs, model.detector.transform)
    logits, regression = teacher_outputs.regions(student_outputs.regions.proposals)
    log_probabilities = student_outputs.regions.logits.log_softmax(1)
    weight = torch.ones(11)
    weight[0] = 1.5
    soft = -(weight * logits.softmax(1) * log_probabilities).sum(1).mean()
    anchors = F.binary_cross_entropy_with_logits(
        student_outputs.grid.logits[in_loss][:, 0], teacher_outputs.grid[0][in_loss][:, 0].sigmoid()
    )
    torch.testing.assert_close(terms["chen_soft"], 0.25 * (soft + anchors), rtol=1e-4, atol=1e-6)
    total = 0.0
    for row in torch.where(student_outputs.regions.labels > 0)[0].tolist():
        label = student_outputs.regions.labels[row].item()
        student_codes, teacher_codes = (
            codes[row, 4 * label : 4 * label + 4] for codes in (student_outputs.regions.regression, regression)
        )
        student_codes, teacher_codes = (
            (codes - student_outputs.regions.targets[row]).square().sum() for codes in (student_codes, teacher_codes)
        )
        total += student_codes.item() if student_codes > teacher_codes else 0.0
    assert terms["chen_bounded"].item() == pytest.approx(0.5 * total / len(student_outputs.regions.labels), rel=1e-4)


@pytest.mark.parametrize("student", ["retinanet_compact", "fcos_compact"])
def test_harmony_terms_again_from_their_formulas(scenes, student):
    """With weights of their own, a teacher of another order of classes, and places found by the centres of the anchors."""
    settings = HarmonySettings(warmup_steps=0, cls_weight=0.7, box_weight=3.0, feature_weight=5.0, balance=0.2)
    model = model_of(student, "harmony", harmony=settings)
    distiller, count, columns = model.distillation.methods["harmony"], 0, list(range(10, 0, -1))
    distiller.columns = columns
    model.losses(*batch(scenes, 2))
    student_outputs = model.tap.student_outputs
    teacher_outputs = TeacherOutputs(model.distillation.teacher, student_outputs, model.detector.transform)
    grid, positives = student_outputs.grid, student_outputs.positives
    logits, regression = teacher_outputs.grid[0][..., columns], teacher_outputs.grid[1]
    masks = [[torch.zeros(2, *values.shape[2:]) for values in student_outputs.features.values()] for _ in range(2)]
    expected, matches = [0.0, 0.0, 0.0], iter(positives.matched_idxs.tolist())
    for image in range(2):
        for index, anchor in enumerate(grid.anchors):
            level = next(level for level in range(3) if index < sum(grid.level_sizes[: level + 1]))
            stride = student_outputs.images.shape[-1] / masks[0][level].shape[-1]
            x, y = (int(side.item() // stride) for side in (anchor[:2] + anchor[2:]) / 2)
            scores, overlap = logits[image, index].sigmoid(), 0.0
            if grid.labels[image, index] > 0:
                match = next(matches)
                student_box, teacher_box = (
                    grid.decode(codes[image, index][None], anchor[None]) for codes in (grid.regression, regression)
                )
                overlap = box_iou(teacher_box, positives.target_boxes[match][None]).item()
                harmony = overlap * scores[positives.target_labels[match] - 1].item()
                student_logits = grid.logits[image, index, 1:]
                expected[0] += harmony * F.binary_cross_entropy_with_logits(student_logits, scores, reduction="sum")
                if harmony > 0:  # an untrained FCOS has points, of which the library's GIoU is 0 / 0
                    expected[1] += harmony * (1 - generalized_box_iou(student_box, teacher_box))[0, 0]
                count += 1
            for mask, value in zip(masks, (scores.max().item(), overlap), strict=True):
                mask[level][image, y, x] = max(mask[level][image, y, x].item(), value)
    for level, pair in enumerate(
        zip(distiller.adapters, student_outputs.features.values(), teacher_outputs.features.values(), strict=True)
    ):
        square = (pair[0](pair[1]) - pair[2]).square().mean(1)
        for mask, share in zip(masks, (0.2, 0.8), strict=True):
            total = sum(values.flatten(1).sum(1) for values in mask)
            expected[2] += share * (mask[level] / total[:, None, None] * square).sum() / 2
    assert count == len(positives) > 5
    expected = (0.7 * expected[0] / count, 3.0 * expected[1] / count, 5.0 * expected[2])
    for term, value in zip(distiller(student_outputs, teacher_outputs).values(), expected, strict=True):
        torch.testing.assert_close(term, value, rtol=1e-4, atol=1e-6)
        assert value > 0


def test_gid_marks_the_places_that_fcos_calls_positive(scenes):
    """Against torchvision's own assignment, with the ground truths as instances."""
    model = model_of("fcos_compact", "gid")
    images, targets = batch(scenes, 4)
    model.losses(images, targets)
    grid, positives = model.tap.student_outputs.grid, model.tap.positives
    for image in range(4):
        boxes = positives.target_boxes[positives.target_image_index == image]
        marked = fcos_places(grid.anchors, grid.level_sizes, boxes, model.detector.center_sampling_radius)
        assert torch.equal(marked, grid.labels[image] > 0) and marked.any() == bool(len(boxes))


def test_a_teacher_that_nothing_reads_is_said(scenes, detector_weights, tmp_path):
    with pytest.warns(UserWarning, match="detector_teacher .* is read by none of the distillers classifier"):
        distill(
            scenes,
            tmp_path / "run",
            optim=Optim(steps=1, batch_size=2),
            detector_teacher=str(detector_weights("ssd_compact_wide")),
            classifier=ClassifierSettings(kd_cls_weight=0.0, loc_weight=2.0),
        )


def test_gid_selection_by_a_loop():
    """The release's order of things, box by box."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        count = 300
        scores = torch.rand(2, count, 4, generator=generator)
        corner, sides = (
            90 * torch.rand(2, count, 2, generator=generator) - 5,
            50 * torch.rand(2, count, 2, generator=generator),
        )
        boxes = torch.cat([corner, corner + sides], 2)
        instances = select_instances(*scores, *boxes, (80, 96), instances=10, candidates=200, nms_threshold=0.3, min_size=10.0)
        order = sorted(range(count), key=lambda n: -max(abs(a - b) for a, b in zip(*scores[:, n].tolist(), strict=True)))
        expected = []
        for n in order[:200]:
            net = 1 if max(scores[1, n].tolist()) > max(scores[0, n].tolist()) else 0
            box = clip_boxes_to_image(boxes[net, n], (80, 96))
            if min(box[2] - box[0], box[3] - box[1]) < 10:
                continue
            if all(box_iou(box[None], earlier[None]) <= 0.3 for earlier in expected):
                expected.append(box)
        torch.testing.assert_close(instances, torch.stack(expected[:10]))
        assert len(instances) == 10


def test_gid_without_disagreement_has_no_instances(scenes):
    """A teacher that is the student: nothing is small enough to differ, nothing is NaN."""
    model = model_of("retinanet_compact", "gid")
    images, targets = batch(scenes, 2)
    empty = [{**target, "boxes": target["boxes"][:0], "labels": target["labels"][:0]} for target in targets]
    for truths in (targets, empty):
        losses, terms = model.losses(images, truths)
        assert all(term.isfinite() for term in terms.values())
        sum((losses | terms).values()).backward()


@pytest.mark.parametrize("student", FITS)
def test_images_without_objects(scenes, student):
    model = model_of(student, *FITS[student])
    images, targets = batch(scenes, 2)
    targets = [{**target, "boxes": target["boxes"][:0], "labels": target["labels"][:0]} for target in targets]
    losses, terms = model.losses(images, targets)
    assert all(term.isfinite() and term.requires_grad for term in terms.values())
    sum((losses | terms).values()).backward()
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)
