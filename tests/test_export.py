"""What is exported finds what the trained student finds, in every format, also in images of another size and in empty ones."""

import json
import re
import sys
import tempfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

from cls2det import cli
from cls2det.commands import export
from cls2det.models.students import STUDENTS, build_student
from cls2det.training.detector import DetectorTraining

CLASSES = ["cat", "dog", "owl"]
COMPACT = ["ssd_compact", "fasterrcnn_compact", "retinanet_compact", "fcos_compact", "detr_compact"]
PUBLISHED = [name for name in STUDENTS if "compact" not in name]
LAST_LAYERS = re.compile(r"(cls_logits|cls_score|class_labels_classifier|classification_head\.module_list\.\d+(\.1)?)$")


def training(student: str, image_size: int = 96) -> DetectorTraining:
    """Untrained, but sure of many things: scores differ and pass the threshold.

    Batch norm has the statistics of a smooth and of a rough picture, in which the last layers' logits have a deviation of 1:
    larger ones end in scores of exactly 1, and with them in ties.
    """
    if student.startswith("detr"):
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = DetectorTraining(CLASSES, student=student, image_size=image_size).eval()
    side = image_size or STUDENTS[student].size
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.weight.uniform_(0.5, 1.5)
            norm.train()
        pictures = [picture(side, side), torch.rand(3, side, side)]
        model.detector(pictures)
        for norm in norms:
            norm.eval()
        hooks = {}

        def spread(layer, _inputs, logits):
            hooks.pop(layer).remove()  # of the finest map, where a layer sees several
            layer.weight.div_(logits.std())

        for name, layer in model.named_modules():
            if LAST_LAYERS.search(name) and isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                layer.weight.normal_()
                layer.bias.fill_(0.1)
                hooks[layer] = layer.register_forward_hook(spread)
        model.detector(pictures)
    assert not hooks
    return model


def picture(height: int, width: int, seed: int = 3) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 9, 9, generator=draws)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)


@pytest.fixture(scope="module", params=COMPACT)
def exported(request, tmp_path_factory):
    """The trained student, the folder and the report of its export, which passed its own check."""
    folder = tmp_path_factory.mktemp(request.param)
    model = training(request.param)
    model.save(folder / "weights.pt")
    return model, folder, export.export(folder / "weights.pt", folder / "export")


def load(folder, name: str, entry: dict):
    """As a user would, without cls2det: a function from one image to boxes, labels and scores."""
    file = str(folder / "export" / entry["file"])
    if name == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return lambda image: [torch.from_numpy(output) for output in session.run(None, {"image": image.numpy()})]
    if name == "torch_export":
        return torch.export.load(file).module()
    scripted = torch.jit.load(file)
    if entry["inputs"].startswith("a list"):
        return lambda image: [scripted([image])[1][0][key] for key in ("boxes", "labels", "scores")]
    return scripted


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["torchscript", "torch_export", "onnx"])
def test_finds_what_the_trained_student_finds(exported, name):
    model, folder, report = exported
    if name == "onnx":
        pytest.importorskip("onnxscript")
    entry = report["formats"][name]
    assert "fails" not in entry, entry
    student = load(folder, name, entry)
    sizes = [(96, 96), (48, 64), (288, 192)] if entry["sizes"] == "any" else [(96, 96)]
    with torch.no_grad():
        for image in [picture(*size) for size in sizes]:
            wanted = model.detector([image])[0]
            assert len(wanted["scores"]) >= 5
            found = dict(zip(("boxes", "labels", "scores"), student(image), strict=True))
            box, score = export._difference(found, wanted, side=1.0)
            assert box < 5e-3 and score < 5e-5  # pixels


def test_which_formats_take_which_sizes(exported):
    """The table in export.py."""
    model, _, report = exported
    check_sizes(model.hparams["student"], report)


def check_sizes(student: str, report: dict) -> None:
    sizes = {name: entry["sizes"] for name, entry in report["formats"].items() if name != "onnx" or "sizes" in entry}
    assert sizes["state_dict"] == "any"
    assert sizes["torch_export"] == ("any" if student.startswith("ssd") else "fixed")
    assert (
        sizes["torchscript"] == sizes.get("onnx", sizes["torchscript"]) == ("fixed" if student.startswith("detr") else "any")
    )


def test_the_check_compared_something(exported):
    check_compared(exported[2])


def check_compared(report: dict) -> None:
    for entry in report["formats"].values():
        assert "fails" not in entry, entry
        if "check" in entry and "skipped" not in entry["check"]:
            assert entry["check"]["detections"] >= 5
            assert entry["check"]["box difference"] <= export.BOX_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("student", PUBLISHED)
def test_published_student(student):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model = training(student, 0 if STUDENTS[student].fixed_size else 96)
    with tempfile.TemporaryDirectory() as folder:  # pytest would keep some gigabytes
        model.save(Path(folder, "weights.pt"))
        report = export.export(Path(folder, "weights.pt"), Path(folder, "export"))
        state_dict_of(model, Path(folder))
    check_compared(report)
    check_sizes(student, report)


def state_dict_of(model: DetectorTraining, folder: Path) -> torch.nn.Module:
    """The student that the exported state dict was loaded into."""
    state = torch.load(folder / "export" / "student.state_dict.pt", weights_only=True)
    student = build_student(model.hparams["student"], len(CLASSES), model.hparams["image_size"])
    assert state.keys() == student.state_dict().keys()  # no teacher, no prefix
    student.load_state_dict(state)
    return student


def test_state_dict_is_the_student_alone(exported):
    model, folder, _ = exported
    student = state_dict_of(model, folder)
    pixels = (picture(80, 120) * 255).to(torch.uint8)
    with torch.no_grad():
        found, wanted = student.eval()([pixels.float() / 255])[0], model([pixels])[0]
    assert len(wanted["scores"]) >= 5
    assert all(torch.equal(found[name], wanted[name]) for name in ("boxes", "labels", "scores"))


def test_report_says_how_to_use_it(exported):
    model, folder, report = exported
    assert json.loads((folder / "export" / "export.json").read_text()) == report
    assert report["classes"] == CLASSES and report["student"] == model.hparams["student"]
    assert report["mean"] == list(model.detector.transform.image_mean)
    for entry in report["formats"].values():
        assert (folder / "export" / entry["file"]).is_file() and "float32" in entry["inputs"] and entry["outputs"]


@pytest.fixture(scope="module")
def ssd(tmp_path_factory):
    path = tmp_path_factory.mktemp("ssd") / "weights.pt"
    training("ssd_compact").save(path)
    return path


@pytest.mark.parametrize("student", ["ssd_compact", "fasterrcnn_compact"])
def test_exported_program_runs_where_nothing_is_found(student):
    """torch.export fixes what it believes of the number of boxes; none must do."""
    detector = training(student).detector
    images = [picture(96, 96), torch.zeros(3, 96, 96)]
    with torch.no_grad():
        best = [detector([image])[0]["scores"].max().item() for image in images]
        assert best[0] != best[1]
        getattr(detector, "roi_heads", detector).score_thresh = sum(best) / 2
        module = export._program(detector, images[0])[0].module()
        counts = []
        for image in images:
            wanted = detector([image])[0]
            assert all(torch.equal(output, wanted[name]) for output, name in zip(module(image), export.OUTPUTS, strict=True))
            counts.append(len(wanted["scores"]))
    assert min(counts) == 0 < max(counts)


def test_torchvision_is_left_as_it_was():
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.ops import boxes

    before = boxes.batched_nms, BoxCoder.decode
    with pytest.raises(RuntimeError, match="stop"), export._exportable():
        assert boxes.batched_nms is not before[0]
        raise RuntimeError("stop")
    assert (boxes.batched_nms, BoxCoder.decode) == before


def test_nms_is_torchvisions():
    from torchvision.ops import batched_nms

    draws = torch.Generator().manual_seed(0)
    for count in (0, 1, 2, 60):
        corners = torch.rand(count, 4, generator=draws) * 50
        boxes = torch.cat((corners[:, :2], corners[:, :2] + corners[:, 2:]), 1)
        scores, labels = torch.rand(count, generator=draws), torch.randint(0, 3, (count,), generator=draws)
        assert torch.equal(export._batched_nms(boxes, scores, labels, 0.3), batched_nms(boxes, scores, labels, 0.3))


def test_a_wrong_file_is_an_error_and_does_not_stay(ssd, tmp_path, monkeypatch):
    def wrong(model, image, file):
        other = DetectorTraining.load(ssd)
        with torch.no_grad():
            other.detector.head.classification_head.module_list[0].bias.add_(0.01 * torch.arange(16))
        return state_dict(other, image, file)

    state_dict = export.EXPORTERS["state_dict"]
    monkeypatch.setitem(export.EXPORTERS, "state_dict", wrong)
    with pytest.raises(ValueError, match=r"state_dict: .*differs from the trained student: .*(up to|in place of|missing)"):
        export.export(ssd, tmp_path, ["state_dict", "torchscript"])
    assert not (tmp_path / "student.state_dict.pt").exists() and (tmp_path / "student.torchscript.pt").exists()
    entries = json.loads((tmp_path / "export.json").read_text())["formats"]
    assert "differs" in entries["state_dict"]["fails"] and "check" in entries["torchscript"]


def test_a_format_that_fails_does_not_fail_the_others(ssd, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    report = export.export(ssd, tmp_path, ["onnx", "state_dict"])
    assert "pip install 'cls2det[onnx]'" in report["formats"]["onnx"]["fails"]
    assert (tmp_path / "student.state_dict.pt").is_file() and "cls2det[onnx]" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"onnx: ImportError: ONNX needs onnx"):
        export.export(ssd, tmp_path, ["onnx"])


def test_onnx_without_onnxruntime_is_not_checked(ssd, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    entry = export.export(ssd, tmp_path, ["onnx"])["formats"]["onnx"]
    assert "onnxruntime" in entry["check"]["skipped"] and (tmp_path / entry["file"]).is_file()


def detections(boxes, labels, scores):
    return {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels), "scores": torch.tensor(scores)}


def test_difference():
    first, second = [0.0, 0, 10, 10], [5.0, 5, 20, 20]
    there = detections([first, second], [1, 2], [0.5, 0.5])
    assert export._difference(detections([second, first], [2, 1], [0.5, 0.5]), there, 100) == (0, 0)  # in another order
    box, score = export._difference(detections([first, [5.0, 5, 21, 20]], [1, 2], [0.5, 0.25]), there, 100)
    assert box == pytest.approx(0.01) and score == pytest.approx(0.25)
    with pytest.raises(export._Differs, match=r"label 2 with score 0\.5000 is missing from 2"):
        export._difference(detections([first, second], [1, 1], [0.5, 0.5]), there, 100)
    with pytest.raises(export._Differs, match="1 detections in place of 2"):
        export._difference(detections([first], [1], [0.5]), there, 100)
    twice = detections([first, first], [1, 1], [0.5, 0.5])
    assert export._difference(detections([first, second], [1, 1], [0.5, 0.5]), twice, 100)[0] == pytest.approx(
        0.1
    )  # each once
    nan = export._difference(detections([first, [float("nan")] * 4], [1, 2], [0.5, 0.5]), there, 100)
    assert not nan[0] <= 1


@pytest.mark.parametrize("steady", [True, False])
def test_images_in_which_rounding_decides_are_used_only_if_there_are_no_others(steady):
    """This detector finds most in rough images, at places that rounding moves; and nothing in the smoothest."""

    def roughness(image):
        return image.diff(dim=2).abs().sum(2).mean().item()  # ups and downs along a row

    def detector(images):
        rough = roughness(images[0])
        count, place = (9, images[0].double().sum() * 1e5 % 50) if rough > 7 else (5 * (steady and rough > 1), 1.0)
        return [{"boxes": torch.ones(count, 4) * place, "labels": torch.ones(count), "scores": torch.arange(count) / 9}]

    for image in export._probes(detector, 96):
        assert len(detector([image])[0]["scores"]) == (5 if steady else 9)


def test_not_a_number_fails_the_check(ssd):
    model = DetectorTraining.load(ssd)
    image = picture(96, 96)
    with torch.no_grad():
        wanted = model.detector([image])[0]
        broken = {**wanted, "scores": wanted["scores"] * float("nan")}
        with pytest.raises(export._Differs, match="nan"):
            export._compare(lambda: lambda _: broken, model.detector, [image])


def test_command(ssd, tmp_path, capsys):
    assert cli.main(["export", "--weights", str(ssd), "--out", str(tmp_path), "--formats", "state_dict"]) == 0
    assert "state_dict: " in capsys.readouterr().out and (tmp_path / "student.state_dict.pt").is_file()
    assert cli.main(["export", "--weights", str(tmp_path / "none.pt"), "--out", str(tmp_path)]) == 2
    with pytest.raises(ValueError, match="formats: expected some of state_dict"):
        export.export(ssd, tmp_path, [])
