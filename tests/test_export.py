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
from cls2det.commands.export import BOX_TOLERANCE, EXPORTERS, DetectionsDiffer, largest_differences, probes
from cls2det.commands.export import export as run_export
from cls2det.commands.options import ExportOptions
from cls2det.models.students import STUDENTS, TrainedStudent, build_student, load_student, save_student

CLASSES = ["cat", "dog", "owl"]
COMPACT = [
    "ssd_compact",
    "fasterrcnn_compact",
    "retinanet_compact",
    "detr_compact",
    "rtdetr_v2_compact",
]  # of the others, the slow tests
PUBLISHED = [name for name in STUDENTS if "compact" not in name]
LAST_LAYERS = re.compile(
    r"(cls_logits|cls_score|class_labels_classifier|decoder\.class_embed\.\d+|classification_head\.module_list\.\d+(\.1)?)$"
)


def export(weights: Path, out: Path, *formats: str) -> dict:
    return run_export(ExportOptions(weights, out, **({"formats": list(formats)} if formats else {})))


def trained(name: str, image_size: int | None = 96) -> TrainedStudent:
    """Untrained, but sure of many things: scores differ and pass the threshold.

    Batch norm has the statistics of a smooth and of a rough picture, in which the last layers' logits have a deviation of 1:
    larger ones end in scores of exactly 1, and with them in ties.
    """
    if name.startswith(("detr", "rtdetr", "dfine")):
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    detector = build_student(name, len(CLASSES), image_size).eval()
    side = image_size or STUDENTS[name].size
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.weight.uniform_(0.5, 1.5)
            norm.train()
        pictures = [picture(side, side), torch.rand(3, side, side)]
        detector(pictures)
        for norm in norms:
            norm.eval()
        hooks = {}

        def spread(layer, _inputs, logits):
            hooks.pop(layer).remove()  # of the finest map, where a layer sees several
            layer.weight.div_(logits.std())

        for layer_name, layer in detector.named_modules():
            if LAST_LAYERS.search(layer_name) and isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                layer.weight.normal_()
                layer.bias.fill_(0.1)
                hooks[layer] = layer.register_forward_hook(spread)
        detector(pictures)
    assert not hooks or name.startswith("dfine")  # of which intermediate layers give no scores in eval mode
    return TrainedStudent(detector, name, CLASSES, image_size)


def save(student: TrainedStudent, path: Path) -> Path:
    save_student(path, student.detector, name=student.name, classes=student.classes, image_size=student.image_size)
    return path


def picture(height: int, width: int, seed: int = 3) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 9, 9, generator=draws)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)


@pytest.fixture(scope="module", params=COMPACT)
def exported(request, tmp_path_factory):
    """The trained student, the folder and the report of its export, which passed its own check."""
    folder = tmp_path_factory.mktemp(request.param)
    student = trained(request.param)
    return student, folder, export(save(student, folder / "weights.pt"), folder / "export")


def load(folder, name: str, entry: dict):
    """As a user would, without cls2det: a function from one image to boxes, labels and scores."""
    file = str(folder / "export" / entry["file"])
    if name == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return lambda image: [torch.from_numpy(output) for output in session.run(None, {"image": image.numpy()})]
    return torch.export.load(file).module()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["torch_export", "onnx"])
def test_finds_what_the_trained_student_finds(exported, name):
    student, folder, report = exported
    if name == "onnx":
        pytest.importorskip("onnxscript")
    entry = report["formats"][name]
    assert "fails" not in entry, entry
    detect = load(folder, name, entry)
    sizes = [(96, 96), (48, 64), (288, 192)] if entry["sizes"] == "any" else [(96, 96)]
    with torch.no_grad():
        for image in [picture(*size) for size in sizes]:
            expected = student.detector([image])[0]
            assert len(expected["scores"]) >= 5
            result = dict(zip(("boxes", "labels", "scores"), detect(image), strict=True))
            box, score = largest_differences(result, expected, side=1.0)
            assert box < 5e-3 and score < 5e-5  # pixels


def test_which_formats_take_which_sizes(exported):
    """The table in export.py."""
    student, _, report = exported
    check_sizes(student.name, report)


def check_sizes(student: str, report: dict) -> None:
    sizes = {name: entry["sizes"] for name, entry in report["formats"].items() if name != "onnx" or "sizes" in entry}
    assert sizes["state_dict"] == "any"
    assert sizes["torch_export"] == ("any" if student.startswith(("ssd", "rtdetr", "dfine")) else "fixed")
    assert sizes.get("onnx") in (None, "fixed" if student.startswith("detr") else "any")


def test_the_check_compared_something(exported):
    check_compared(exported[2])


def check_compared(report: dict) -> None:
    for entry in report["formats"].values():
        assert "fails" not in entry, entry
        if "check" in entry and "skipped" not in entry["check"]:
            assert entry["check"]["detections"] >= 5
            assert entry["check"]["box difference"] <= BOX_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_student(name):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    student = trained(name, None if STUDENTS[name].fixed_size else 96)
    with tempfile.TemporaryDirectory() as folder:  # pytest would keep some gigabytes
        report = export(save(student, Path(folder, "weights.pt")), Path(folder, "export"))
        state_dict_of(student, Path(folder))
    check_compared(report)
    check_sizes(name, report)


def state_dict_of(student: TrainedStudent, folder: Path) -> torch.nn.Module:
    """The detector that the exported state dict was loaded into."""
    state = torch.load(folder / "export" / "student.state_dict.pt", weights_only=True)
    detector = build_student(student.name, len(CLASSES), student.image_size)
    assert state.keys() == detector.state_dict().keys()  # no teacher, no prefix
    detector.load_state_dict(state)
    return detector


def test_state_dict_is_the_student_alone(exported):
    student, folder, _ = exported
    detector = state_dict_of(student, folder).eval()
    image = picture(80, 120)
    with torch.no_grad():
        result, expected = detector([image])[0], student.detector([image])[0]
    assert len(expected["scores"]) >= 5
    assert all(torch.equal(result[name], expected[name]) for name in ("boxes", "labels", "scores"))


def test_report_says_how_to_use_it(exported):
    student, folder, report = exported
    assert json.loads((folder / "export" / "export.json").read_text()) == report
    assert report["classes"] == CLASSES and report["student"] == student.name
    assert report["mean"] == list(student.detector.transform.image_mean)
    for entry in report["formats"].values():
        assert (folder / "export" / entry["file"]).is_file() and "float32" in entry["inputs"] and entry["outputs"]


@pytest.fixture(scope="module")
def ssd(tmp_path_factory):
    return save(trained("ssd_compact"), tmp_path_factory.mktemp("ssd") / "weights.pt")


@pytest.mark.parametrize("name", ["ssd_compact", "fasterrcnn_compact"])
def test_exported_program_runs_where_nothing_is_found(name, tmp_path):
    """torch.export fixes what it believes of the number of boxes; none must do."""
    student = trained(name)
    images = [picture(96, 96), torch.zeros(3, 96, 96)]
    with torch.no_grad():
        layers = [layer for layer_name, layer in student.detector.named_modules() if LAST_LAYERS.search(layer_name)]
        biases = [layer.bias.view(-1, len(CLASSES) + 1) for layer in layers if layer.bias.numel() % (len(CLASSES) + 1) == 0]
        low, high = 0.0, 64.0  # of the background: how likely it must be for one of the images alone to hold nothing
        for _ in range(40):
            for bias in biases:
                bias[:, 0] = (low + high) / 2
            counts = [len(student.detector([image])[0]["scores"]) for image in images]
            if min(counts) == 0 < max(counts):
                break
            low, high = (low, (low + high) / 2) if max(counts) == 0 else ((low + high) / 2, high)
        assert min(counts) == 0 < max(counts)
        options = ExportOptions(save(student, tmp_path / "weights.pt"), tmp_path / "export", ["torch_export"], check=False)
        detect = load(tmp_path, "torch_export", run_export(options)["formats"]["torch_export"])
        for image in images:
            expected = student.detector([image])[0]
            assert all(map(torch.equal, detect(image), (expected[key] for key in ("boxes", "labels", "scores"))))


def test_torchvision_is_left_as_it_was(ssd, tmp_path, monkeypatch):
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.ops import boxes

    before, replaced = (boxes.batched_nms, BoxCoder.decode), []

    def stop(*_args, **_options):
        replaced.append((boxes.batched_nms, BoxCoder.decode) != before)
        raise RuntimeError("stop")

    monkeypatch.setattr(torch.export, "export", stop)
    with pytest.raises(ValueError, match="torch_export: RuntimeError: stop"):
        export(ssd, tmp_path, "torch_export")
    assert replaced == [True] and (boxes.batched_nms, BoxCoder.decode) == before


@pytest.mark.parametrize("change", ["weights", "nan"])
def test_a_wrong_file_is_an_error_and_does_not_stay(ssd, tmp_path, monkeypatch, change):
    state_dict = EXPORTERS["state_dict"]

    def wrong(student, image, file):
        other = load_student(ssd)
        with torch.no_grad():
            other.detector.head.classification_head.module_list[0].bias.add_(0.01 * torch.arange(16))
        return state_dict(other, image, file)

    def not_a_number(student, image, file):
        entry, _ = state_dict(student, image, file)
        expected = student.detector([image])[0]
        return entry | {"sizes": "fixed"}, lambda: lambda _: expected | {"scores": expected["scores"] * float("nan")}

    monkeypatch.setitem(EXPORTERS, "state_dict", wrong if change == "weights" else not_a_number)
    monkeypatch.setitem(EXPORTERS, "onnx", state_dict)  # is right
    with pytest.raises(ValueError, match=r"state_dict: .*differs from the trained student: .*(up to|in place of|missing)"):
        export(ssd, tmp_path, "state_dict", "onnx")
    assert not (tmp_path / "student.state_dict.pt").exists() and (tmp_path / "student.onnx").exists()
    entries = json.loads((tmp_path / "export.json").read_text())["formats"]
    assert "differs" in entries["state_dict"]["fails"] and "check" in entries["onnx"]


def test_a_format_that_fails_does_not_fail_the_others(ssd, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    report = export(ssd, tmp_path, "onnx", "state_dict")
    assert "pip install 'cls2det[onnx]'" in report["formats"]["onnx"]["fails"]
    assert (tmp_path / "student.state_dict.pt").is_file() and "cls2det[onnx]" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"onnx: ImportError: ONNX needs onnx"):
        export(ssd, tmp_path, "onnx")


def test_onnx_without_onnxruntime_is_not_checked(ssd, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    entry = export(ssd, tmp_path, "onnx")["formats"]["onnx"]
    assert "onnxruntime" in entry["check"]["skipped"] and (tmp_path / entry["file"]).is_file()


def detections(boxes, labels, scores):
    return {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels), "scores": torch.tensor(scores)}


def test_difference():
    first, second = [0.0, 0, 10, 10], [5.0, 5, 20, 20]
    there = detections([first, second], [1, 2], [0.5, 0.5])
    assert largest_differences(detections([second, first], [2, 1], [0.5, 0.5]), there, 100) == (0, 0)  # in another order
    box, score = largest_differences(detections([first, [5.0, 5, 21, 20]], [1, 2], [0.5, 0.25]), there, 100)
    assert box == pytest.approx(0.01) and score == pytest.approx(0.25)
    with pytest.raises(DetectionsDiffer, match=r"label 2 with score 0\.5000 is missing from 2"):
        largest_differences(detections([first, second], [1, 1], [0.5, 0.5]), there, 100)
    with pytest.raises(DetectionsDiffer, match="1 detections in place of 2"):
        largest_differences(detections([first], [1], [0.5]), there, 100)
    twice = detections([first, first], [1, 1], [0.5, 0.5])
    assert largest_differences(detections([first, second], [1, 1], [0.5, 0.5]), twice, 100)[0] == pytest.approx(
        0.1
    )  # each once
    nan = largest_differences(detections([first, [float("nan")] * 4], [1, 2], [0.5, 0.5]), there, 100)
    assert not nan[0] <= 1


class KeepsByNoise(torch.nn.Module):
    """Four boxes, of which one jumps with the last digits of a fine image; in a smooth image three that stay."""

    def forward(self, images):
        return [self.detections(image) for image in images]

    def detections(self, image):
        is_smooth = bool(image.diff(dim=2).abs().mean() < 0.02)
        boxes = torch.tensor([[0.0, 0, 9, 9]]).repeat(3 if is_smooth else 4, 1)
        boxes[0] += 0 if is_smooth else image.double().sum() * 1e6 % 20
        return {"boxes": boxes, "scores": torch.full((len(boxes),), 0.5), "labels": torch.ones(len(boxes))}


def test_images_of_the_check_are_those_where_noise_decides_nothing():
    detector = KeepsByNoise()
    for image in probes(detector, 96):
        first, again = detector([image, image + 1e-6 * torch.randn(image.shape)])
        assert torch.equal(first["boxes"], again["boxes"])


def test_command(ssd, tmp_path, capsys):
    assert cli.main(["export", "--weights", str(ssd), "--out", str(tmp_path), "--formats", "state_dict"]) == 0
    assert "state_dict: " in capsys.readouterr().out and (tmp_path / "student.state_dict.pt").is_file()
    assert cli.main(["export", "--weights", str(tmp_path / "none.pt"), "--out", str(tmp_path)]) == 2
    assert cli.main(["export", "--weights", str(ssd), "--out", str(tmp_path), "--formats", "torchscript"]) == 2
    assert "take torch_export or onnx" in capsys.readouterr().err
    with pytest.raises(ValueError, match="formats: expected one or more of state_dict"):
        run_export(ExportOptions(ssd, tmp_path, []))
