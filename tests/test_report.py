"""The report: numbers that were worked out by hand, from folders made up as the commands leave them."""

import csv
import io
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from PIL import Image
from rich.console import Console
from torch import nn
from torchvision.models.detection import FCOS, SSD300_VGG16_Weights
from torchvision.models.detection.anchor_utils import AnchorGenerator

from cls2det.data.dataset import DetectionData
from cls2det.data.layouts import load_truth
from cls2det.evaluation import coco as evaluate
from cls2det.models.students import build_student
from cls2det.settings import DISTILLERS
from cls2det.study.options import ReportOptions
from cls2det.study.report import paper, report, summarise, tables, tide
from cls2det.study.report.plots import read_curves
from cls2det.study.report.runs import arm_name, find_runs, natural
from coco_cases import detections_of, truth_of

COCO_NAMES = [
    name for name in dict.fromkeys(SSD300_VGG16_Weights.COCO_V1.meta["categories"]) if name not in ("N/A", "__background__")
]
SHARES = np.linspace(1.4, 0.2, 10)  # AP by IoU of a made-up run, in shares of its mAP


def make_data(root, names=("cat", "dog"), split="val"):
    """Two images with two objects, categories 2, 5, 8 …; returns the root."""
    (root / "annotations").mkdir(parents=True)
    (root / split).mkdir()
    boxes = [([0, 0, 40, 40], 2), ([50, 50, 30, 30], 5)]
    notes = [
        {"id": 10 * image + number, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3]}
        for image in (1, 2)
        for number, (box, category) in enumerate(boxes)
    ]
    content = {
        "images": [{"id": image, "file_name": f"{image}.jpg", "width": 100, "height": 100} for image in (1, 2)],
        "annotations": [{**note, "iscrowd": 0} for note in notes],
        "categories": [{"id": 3 * number + 2, "name": name} for number, name in enumerate(names)],
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    for image in (1, 2):
        Image.new("RGB", (100, 100), (90, 120, 60)).save(root / split / f"{image}.jpg")
    return root


def make_run(folder, root, mAP, seed=1, name=None, student="ssd_compact", split="val", weights=(0, 0, 0), **options):
    """A run's folder; its columns are mAP plus what tells them apart, its detections are the ground truth's first object."""
    command = "distill" if any(weights) else "train"
    weights = dict(zip(("kd_cls_weight", "loc_weight", "kd_loc_weight"), weights, strict=True))
    options = {
        "command": command,
        "name": name,
        "student": student,
        "seed": seed,
        "data_root": str(root),
        "teacher": "teacher.pt" if command == "distill" else None,
        "classifier": weights,
    } | options
    columns = {column: mAP + number for number, column in enumerate(evaluate.COCO_COLUMNS)} | {"APl": None}
    columns |= {"class acc": 60.0, "mean IoU": 70.0, "AP by IoU": [mAP * share for share in SHARES]}
    (folder / split).mkdir(parents=True)
    (folder / "log").mkdir()
    write(folder / "options.json", options)
    write(folder / "report.json", {"seconds": 100.0 + seed, "images": 8, "steps": 20, "parameters": 1234})
    write(folder / split / "evaluation.json", columns | {"data_root": str(root), "split": split})
    results = [{"image_id": image, "category_id": 2, "bbox": [0, 0, 40, 40], "score": 0.9} for image in (1, 2)]
    write(folder / split / "detections.json", results)
    (folder / "log" / "metrics.csv").write_text(
        "epoch,gradient_ratio/kd_cls,kd_cls,loss,lr-AdamW,step,val/mAP\n0,0.1,1.5,3.0,0.1,9,\n0,,,,,9,12.5\n1,0.1,1.0,2.0,0.1,19,\n"
    )
    return folder


def write(file, content):
    file.write_text(json.dumps(content))


def rows_of(file):
    return list(csv.DictReader(file.open(newline="")))


def quietly(folders, out, **options):
    screen = io.StringIO()
    content = report(ReportOptions(folders, out, **options), Console(file=screen, width=150))
    return content, (out / "report.md").read_text(), screen.getvalue()


@pytest.fixture
def runs(tmp_path):
    """Two arms, three seeds; the paired gains of + KD-cls are 1, 2 and 6."""
    root = make_data(tmp_path / "data")
    for seed, (before, after) in enumerate([(10.0, 11.0), (20.0, 22.0), (12.0, 18.0)], start=1):
        make_run(tmp_path / "runs" / f"base{seed}", root, before, seed)
        make_run(tmp_path / "runs" / f"cls{seed}", root, after, seed, weights=(0.4, 0, 0))
    return tmp_path / "runs"


def test_means_errors_and_paired_gains(runs, tmp_path):
    content, text, screen = quietly([runs], tmp_path / "out", notes=["the teacher knows more"], title="My study")
    table = content["students"]["ssd_compact"]["table"]
    assert list(table) == ["baseline", "+ KD-cls"]
    row = table["+ KD-cls"]
    assert row["mAP"] == pytest.approx(17.0) and row["AP50"] == pytest.approx(18.0) and row["ARl"] == pytest.approx(26.0)
    assert row["gain"] == pytest.approx(3.0) and row["seconds"] == pytest.approx(102.0) and row["APl"] is None
    assert row["standard error"] == pytest.approx(math.sqrt(7) / math.sqrt(3))  # of 1, 2, 6: variance 14/2
    assert row["mAP standard error"] == pytest.approx(math.sqrt(31) / math.sqrt(3))  # of 11, 22, 18: variance 62/2
    assert table["baseline"]["gain"] is None
    assert row["gain by IoU"] == pytest.approx([3 * share for share in SHARES])
    assert row["AP by IoU"] == pytest.approx([17 * share for share in SHARES])
    arms = {row["arm"]: row for row in rows_of(tmp_path / "out" / "arms.csv")}
    assert float(arms["+ KD-cls"]["gain"]) == pytest.approx(3.0) and float(arms["+ KD-cls"]["mAR"]) == pytest.approx(23.0)
    assert arms["baseline"]["gain"] == "" and arms["baseline"]["APl"] == "" and arms["baseline"]["seeds"] == "3"
    assert "| **+ KD-cls** | 3 | **17.0 ± 3.21** | 18.0 |" in text and "+3.00 ± 1.53" in text
    assert text.startswith("# My study\n") and "- the teacher knows more" in text and "Reported on" in text
    assert "+3.00 ± 1.53" in screen and "the teacher knows more" in screen and "mean of 3 seeds" in text
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == content
    record = {(row["arm"], row["seed"]): row for row in rows_of(tmp_path / "out" / "runs.csv")}
    assert (
        len(record) == 6 and float(record["+ KD-cls", "3"]["mAP"]) == 18.0 and record["baseline", "1"]["parameters"] == "1234"
    )
    assert float(record["baseline", "2"]["AP95"]) == pytest.approx(20 * SHARES[9])
    iou = [row for row in rows_of(tmp_path / "out" / "iou.csv") if row["arm"] == "+ KD-cls"]
    assert float(iou[0]["AP70"]) == pytest.approx(17 * SHARES[4])
    for name in ("gain", "ap-by-iou", "ap-by-size", "errors", "training", "detections"):
        assert Image.open(tmp_path / "out" / f"{name}.png").size[0] > 300 and f"({name}.png)" in text
    assert content["left out"] == []


def test_ap_by_class_is_in_the_report(runs, tmp_path):
    """Mean over seeds by arm; a class that one seed lacks, or that has no object, has none. Older runs have no such table."""
    _, text, screen = quietly([runs], tmp_path / "old")
    assert "AP by class" not in text + screen and rows_of(tmp_path / "old" / "classes.csv") == []
    for name, shift in (("base", 0.0), ("cls", 4.0)):
        for seed in (1, 2, 3):
            file = runs / f"{name}{seed}" / "val" / "evaluation.json"
            by_class = {"cat": 10.0 * seed + shift, "d|g": None if (name, seed) == ("base", 2) else 5.0, "bird": None}
            counts = {"cat": 7, "d|g": 2, "bird": 0}
            write(file, json.loads(file.read_text()) | {"AP by class": by_class, "objects by class": counts})
    _, text, screen = quietly([runs], tmp_path / "out")
    assert "### AP by class, percent on val (1 without an object)" in text
    assert "| class | objects | baseline | + KD-cls |" in text and "| cat | 7 | 20.0 | 24.0 |" in text
    assert "| d\\|g | 2 | - | 5.0 |" in text and "| bird | 0 | - | - |" in text
    assert re.search(r"cat +7 +20\.0 +24\.0 +\+4\.0", screen) and "percent on val, seconds of training" in screen
    rows = rows_of(tmp_path / "out" / "classes.csv")
    assert [row["AP"] for row in rows if row["class"] == "cat"] == ["20.0", "24.0"] and len(rows) == 6
    write(file, json.loads(file.read_text()) | {"AP by class": {"cat": math.nan}})
    with pytest.raises(ValueError, match="AP by class is "):
        quietly([runs], tmp_path / "nan")


def test_gains_where_seeds_do_not_match():
    def result(mAP):
        return {"mAP": mAP, "AP by IoU": [mAP] * 10}

    base = {("baseline", 1): result(10.0), ("baseline", 2): result(14.0)}
    partly = summarise(base | {("a", 2): result(15.0), ("a", 9): result(99.0)})["a"]
    assert partly["gain"] == 1.0 and partly["standard error"] is None and partly["paired seeds"] == [2]
    apart = summarise(base | {("a", 8): result(15.0), ("a", 9): result(21.0)})["a"]
    assert apart["gain"] == 6.0 and apart["standard error"] == pytest.approx(math.hypot(2.0, 3.0))
    assert apart["gain by IoU"] == [6.0] * 10 and apart["paired seeds"] == []
    alone = summarise({("a", 1): result(15.0)})["a"]
    assert alone["gain"] is None and alone["mAP standard error"] is None and alone["gain by IoU"] == [None] * 10
    other = summarise(base | {("tuned", 1): result(9.0)}, baseline="tuned")
    assert other["baseline"]["gain"] == 1.0 and other["tuned"]["gain"] is None


def test_report_says_what_is_not_paired(tmp_path):
    root = make_data(tmp_path / "data")
    make_run(tmp_path / "runs" / "a", root, 10.0, seed=1)
    make_run(tmp_path / "runs" / "b", root, 11.0, seed=2, name="mine")
    assert "ssd_compact, mine: **not paired**" in quietly([tmp_path / "runs"], tmp_path / "out")[1]
    content, text, _ = quietly([tmp_path / "runs"], tmp_path / "out", baseline="yours")
    assert "no arm 'yours'" in text and content["students"]["ssd_compact"]["table"]["mine"]["gain"] is None
    assert "one seed gives no error bar" in text


def test_difference_to_the_paper_on_coco(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "IMAGES", 2)
    root = make_data(tmp_path / "coco", COCO_NAMES, "val2017")
    student = {"student": "ssd300_vgg16", "split": "val2017"}
    make_run(tmp_path / "runs" / "a", root, 25.0, **student)
    make_run(tmp_path / "runs" / "b", root, 26.5, weights=(0.4, 0, 0), **student)
    make_run(tmp_path / "runs" / "c", root, 28.4, weights=(0.4, 0.15, 0.15), **student)
    content, text, _ = quietly([tmp_path / "runs"], tmp_path / "out", split="val2017")
    arms = {(row["arm"], row["source"]): row for row in rows_of(tmp_path / "out" / "arms.csv")}
    assert list(content["students"]["ssd300_vgg16"]["table"]) == ["baseline", "+ KD-cls", "+ all"]
    assert float(arms["+ KD-cls", "paper"]["AP50"]) == 45.2
    assert float(arms["+ KD-cls", "difference"]["mAP"]) == pytest.approx(26.5 - 26.3)
    assert float(arms["+ KD-cls", "difference"]["gain"]) == pytest.approx(1.5 - 0.7)
    assert float(arms["+ all", "difference"]["ARl"]) == pytest.approx(28.4 + 9 - 61.4)
    assert arms["+ all", "difference"]["APl"] == "" and ("+ loc", "difference") not in arms and ("+ loc", "paper") in arms
    iou = {(row["arm"], row["source"]): row for row in rows_of(tmp_path / "out" / "iou.csv")}
    assert float(iou["+ all", "difference"]["AP80"]) == pytest.approx(28.4 * SHARES[6] - 23.9)
    assert "Difference, runs - paper:" in text and "not comparable" not in text and "Table 3a" not in text
    assert "| + KD-cls | +0.2 |" in text


def test_coco_is_val2017_and_all_of_it():
    def why(split, images, names=COCO_NAMES):
        classes = [{"name": name} for name in names]
        return paper.why_not_comparable(SimpleNamespace(dataset={"images": range(images), "categories": classes}), split)

    assert why("val2017", 5000) == ""
    assert "of val2017, 4952 images in place of 5000: **not comparable**" in why("val2017", 4952)
    assert "of train2017, 5000 images" in why("train2017", 5000)
    assert "of other data" in why("val2017", 5000, COCO_NAMES[1:])


def test_other_data_show_the_paper_without_a_difference(tmp_path):
    root = make_data(tmp_path / "data")
    for name, student in (("a", "ssd512_vgg16"), ("b", "ssd300_vgg16")):
        make_run(tmp_path / "runs" / name, root, 25.0, student=student)
    make_run(tmp_path / "runs" / "c", root, 26.0, student="ssd512_vgg16", weights=(0.4, 2.0, 2.0))
    make_run(tmp_path / "runs" / "d", root, 27.0, student="ssd300_vgg16", name="kd_cls_weight=0.4, temperature=2")
    content, text, screen = quietly([tmp_path / "runs"], tmp_path / "out")
    sources = {(row["student"], row["source"]) for row in rows_of(tmp_path / "out" / "arms.csv")}
    students = ("ssd512_vgg16", "ssd300_vgg16")
    assert sources == {(student, source) for student in students for source in ("runs", "paper")}
    assert "**not comparable**" in text and "Difference" not in text
    assert set(content["students"]) == set(students) and f": {students[1]}" in screen
    for student in students:
        assert (tmp_path / "out" / f"{student}-gain.png").is_file() and f"({student}-errors.png)" in text
    methods = {(row["student"], row["method"]): row for row in rows_of(tmp_path / "out" / "methods.csv")}
    ours = methods["ssd512_vgg16", "ours"]
    assert (ours["mAP"], ours["APm"], ours["paper mAP"], ours["difference"]) == ("26.0", "30.0", "32.1", "")
    assert methods["ssd512_vgg16", "FKD"]["mAP"] == "" and methods["ssd512_vgg16", "FKD"]["paper APl"] == "46.2"
    assert methods["ssd300_vgg16", "baseline"]["mAP"] == "25.0"
    assert "Table 3a" in text and "Table 4a" not in text  # the arm's name carries options of the first alone


@pytest.mark.parametrize(
    ("gone", "without", "message"),
    [
        ("data/annotations/instances_val.json", ["errors.png", "detections.png"], "no annotation file"),
        ("runs/cls1/val/detections.json", ["detections.png"], "errors of ssd_compact, + KD-cls, seed 1"),
        ("data/val/1.jpg", ["detections.png"], "1.jpg"),
    ],
)
def test_what_is_missing_is_left_out_and_the_rest_written(runs, tmp_path, gone, without, message):
    names = ("gain", "ap-by-iou", "ap-by-size", "training", "errors", "detections")
    (tmp_path / "out").mkdir()
    for name in names:  # of an earlier report
        (tmp_path / "out" / f"{name}.png").touch()
    (tmp_path / gone).unlink()
    content, text, _ = quietly([runs], tmp_path / "out")
    assert "Left out: " in text and message in text and content["left out"]
    for name in names:
        assert (tmp_path / "out" / f"{name}.png").is_file() == (f"{name}.png" not in without)
        assert (f"({name}.png)" in text) == (f"{name}.png" not in without)
    assert float(rows_of(tmp_path / "out" / "arms.csv")[1]["gain"]) == pytest.approx(3.0)


def test_without_logs_and_training_reports(runs, tmp_path):
    for file in [*runs.glob("*/log/metrics.csv"), *runs.glob("*/report.json")]:
        file.unlink()
    content, text, _ = quietly([runs], tmp_path / "out")
    assert "training.png (no run has a log/metrics.csv" in text and not (tmp_path / "out" / "training.png").exists()
    assert content["students"]["ssd_compact"]["table"]["baseline"]["seconds"] is None


def test_clear_errors(runs, tmp_path):
    with pytest.raises(ValueError, match="at least one folder"):
        report(ReportOptions([]))
    with pytest.raises(FileNotFoundError, match="no folder"):
        find_runs([tmp_path / "nowhere"], "val")
    with pytest.raises(ValueError, match=r"no run in .*data: looked, at every depth, .*test/evaluation.json$"):
        find_runs([tmp_path / "data"], "test")
    with pytest.raises(ValueError, match=r"6 trained but not evaluated on test, such as .*base1 \(there is: val\)"):
        find_runs([runs], "test")
    with pytest.raises(ValueError, match="base1 holds a run"):
        report(ReportOptions([runs], runs / "base1"))
    root = make_data(tmp_path / "other")
    make_run(runs / "zelse", root, 10.0, seed=9)
    with pytest.raises(ValueError, match=r"base1 was evaluated on val of .*data, .*zelse on that of .*other"):
        find_runs([runs], "val")
    make_run(tmp_path / "again", tmp_path / "data", 10.0, seed=1)
    with pytest.raises(ValueError, match=r"base1 and .*again are both ssd_compact, baseline, seed 1: train with --name"):
        find_runs([runs / "base1", tmp_path / "again"], "val")
    write(tmp_path / "again" / "val" / "evaluation.json", {"mAP": float("nan")})
    with pytest.raises(ValueError, match=r"again: mAP is nan"):
        find_runs([tmp_path / "again"], "val")
    (tmp_path / "again" / "val" / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match=r"evaluation.json is not json"):
        find_runs([tmp_path / "again"], "val")


def test_what_is_no_run_is_passed_over(runs, tmp_path):
    (runs / "teacher").mkdir()
    write(runs / "teacher" / "options.json", {"command": "teacher", "seed": 0})
    (runs / "base2" / "val" / "evaluation.json").unlink()
    results, notes = find_runs([runs, runs / "base1"], "val")  # a folder given twice counts once
    assert len(results) == 5 and any("1 trained run" in note and "base2" in note for note in notes)


def test_arms_without_a_name_are_named_after_what_is_distilled():
    def arm(cls, loc, features, **options):
        weights = {"kd_cls_weight": cls, "loc_weight": loc, "kd_loc_weight": features}
        return arm_name({"command": "distill", "teacher": "t.pt", "classifier": weights, "name": None} | options)

    assert arm(0, 0, 0) == arm(0.4, 1, 1, command="train", teacher=None) == "baseline"
    assert arm(0.4, 0, 0) == "+ KD-cls" and arm(0, 1, 0) == arm(0, 1, 0, teacher=None) == "+ loc"
    assert arm(0, 1, 2) == "+ loc + KD-loc" and arm(0.4, 1, 2) == "+ all" and arm(0.4, 0, 2) == "+ KD-cls + KD-loc"
    assert arm(0.4, 1, 2, name="mine") == "mine"
    assert arm(0.4, 1, 2, distillers=["fkd"]) == "+ FKD"  # the classifier's weights are not used
    assert arm(0.4, 1, 2, distillers=["classifier", "fkd"]) == "+ all + FKD"
    assert arm(0.4, 0, 0, distillers=["classifier", "fgfi", "cwd"]) == "+ KD-cls + FGFI + CWD"
    assert arm(0.4, 1, 2, distillers=[]) == "baseline"
    assert arm_name({"command": "distill", "teacher": "t", "classifier": {"kd_cls_weight": 1, "control": "one_hot"}}).endswith(
        "one_hot"
    )
    assert sorted(["size=112", "size=14", "size=9"], key=natural) == ["size=9", "size=14", "size=112"]


def test_every_method_has_a_row_in_the_table_of_methods():
    """Under the name that its arm has by itself."""
    names = {"chen": "KD", "harmony": "harmony", "regions": "regions"}  # KD: the paper's word
    for method in list(DISTILLERS)[1:]:
        arm = arm_name({"command": "distill", "distillers": [method]})
        rows = tables.method_rows("student", {arm: dict.fromkeys(tables.METHOD_SIZES, 1.0)}, {}, False)
        assert [row["method"] for row in rows] == [names.get(method, method.upper())]


def test_unlike_runs_are_not_averaged_in_silence(tmp_path):
    root = make_data(tmp_path / "data")
    make_run(tmp_path / "runs" / "a", root, 10.0, seed=1, weights=(0.2, 0, 0))
    make_run(tmp_path / "runs" / "b", root, 11.0, seed=2, weights=(0.4, 0, 0))
    make_run(tmp_path / "runs" / "c", root, 12.0, seed=1, run={"device": "cuda"}, teacher="other.pt")
    results, _ = find_runs([tmp_path / "runs"], "val")
    assert [run.arm for run in results] == ["baseline", "+ KD-cls (kd_cls_weight=0.2)", "+ KD-cls (kd_cls_weight=0.4)"]
    for number, rate in enumerate((0.1, 0.2)):
        make_run(tmp_path / "more" / str(number), root, 10.0, seed=number, name="tuned", optim={"learning_rate": rate})
    _, notes = find_runs([tmp_path / "runs", tmp_path / "more"], "val")
    assert any("tuned differ in optim.learning_rate" in note for note in notes)
    assert any("Arms of ssd_compact differ in more than what is distilled: optim.learning_rate" in note for note in notes)
    for seed, precision in enumerate(("32-true", "bf16-mixed")):
        run = {"precision": precision, "checkpoint_every": 100 + seed}
        make_run(tmp_path / "mixed" / precision, root, 10.0, seed=seed, run=run)
    results, notes = find_runs([tmp_path / "mixed"], "val")
    assert [run.arm for run in results] == ["baseline", "baseline"]
    assert any("baseline differ in run.precision**" in note for note in notes)


def test_short_runs_are_called_short(tmp_path):
    root = make_data(tmp_path / "data")
    for seed, steps in enumerate((20, 499, 500)):
        make_run(tmp_path / "runs" / str(seed), root, 10.0, seed=seed)
        report = tmp_path / "runs" / str(seed) / "report.json"
        write(report, {**json.loads(report.read_text()), "steps": steps})
    _, notes = find_runs([tmp_path / "runs"], "val")
    assert any("2 run(s) had 20 to 499 steps" in note for note in notes)
    _, notes = find_runs([tmp_path / "runs" / "2"], "val")
    assert not any("steps" in note for note in notes)


def test_order_of_arms(tmp_path):
    root = make_data(tmp_path / "data")
    weights = {"all": (1, 1, 1), "base": (0, 0, 0), "cls": (1, 0, 0), "loc": (0, 1, 1)}
    folders = {name: make_run(tmp_path / "runs" / name, root, 10.0, weights=weight) for name, weight in weights.items()}
    results, _ = find_runs([tmp_path / "runs"], "val")
    assert [run.arm for run in results] == ["baseline", "+ KD-cls", "+ loc + KD-loc", "+ all"]
    results, _ = find_runs([folders[name] for name in ("loc", "all", "base", "cls")], "val")
    assert [run.arm for run in results] == ["baseline", "+ loc + KD-loc", "+ all", "+ KD-cls"]


def test_training_curves(runs):
    curves = read_curves(runs / "cls1" / "log" / "metrics.csv")
    assert list(curves) == ["loss", "val/mAP", "kd_cls"]  # neither rates nor ratios
    assert curves["loss"] == ([9.0, 19.0], [3.0, 2.0]) and curves["val/mAP"] == ([9.0], [12.5])


def test_quick_is_said_and_many_arms_are_drawn(tmp_path):
    root = make_data(tmp_path / "data")
    for number in range(12):
        make_run(tmp_path / "runs" / str(number), root, 10.0 + number, name=f"temperature={number}" if number else "baseline")
    content, text, screen = quietly([tmp_path / "runs"], tmp_path / "out", quick=True)
    assert "Too short to show the gain" in text and "Too short" in screen and content["quick"]
    assert list(content["students"]["ssd_compact"]["table"])[:3] == ["baseline", "temperature=1", "temperature=2"]


# The paper's numbers


def test_paper_numbers_agree_with_each_other():
    arms, iou, methods = (paper.paper()[table] for table in ("arms", "iou", "methods"))
    for name, values in iou["ssd300_vgg16"].items():
        mAP, AP50, AP75 = arms["ssd300_vgg16"][name][:3]
        assert len(values) == 10 and values == sorted(values, reverse=True)
        assert abs(sum(values) / 10 - mAP) <= 0.25 and (values[0], values[5]) == (AP50, AP75)
    for student, table in arms.items():
        if student == "columns":
            continue
        assert list(table) == ["baseline", "+ KD-cls", "+ loc", "+ loc + KD-loc", "+ all"]
        assert max(table, key=lambda arm: table[arm][0]) == "+ all" and min(table, key=lambda arm: table[arm][0]) == "baseline"
        for mAP, AP50, AP75, small, medium, large, mAR, *_ in table.values():
            assert AP75 < AP50 and mAP < AP50 and small < medium < large and mAP < mAR
        sizes = [table["baseline"][0], *table["baseline"][3:6]], [table["+ all"][0], *table["+ all"][3:6]]
        if student in methods:
            assert (methods[student]["baseline"], methods[student]["ours"]) == sizes
    assert len(arms) == 5 and len(methods) == 6
    for student, table in methods.items():
        assert student == "columns" or max(table, key=lambda method: table[method][0]) == "ours + FKD" or "qr50" in student
    tables = paper.paper()["ablations"]
    base, best = arms["ssd300_vgg16"]["baseline"][0], arms["ssd300_vgg16"]["+ KD-cls"][0]
    assert tables["3a"]["mAP"]["baseline"] == base and max(tables["3a"]["mAP"].values()) == best
    assert tables["4c"]["mAP"]["pixels"] == arms["ssd300_vgg16"]["+ loc"][0]


# Evaluation


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return DetectionData(make_data(tmp_path_factory.mktemp("evaluated") / "data"), "val")


def compact():
    torch.manual_seed(0)
    return build_student("ssd_compact", 2, 96)


def fcos():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 256, 8, 8))
    backbone.out_channels = 256
    return FCOS(backbone, 3, min_size=96, max_size=96, anchor_generator=AnchorGenerator(((8,),), ((1.0,),)), score_thresh=0.0)


def test_columns_of_an_ssd_and_of_a_detector_without_default_boxes(data):
    table = evaluate.evaluate_detector(compact(), data)
    assert set(evaluate.COCO_COLUMNS) < set(table) and 0 <= table["class acc"] <= 100 and 0 < table["mean IoU"] <= 100
    table = evaluate.evaluate_detector(fcos(), data)
    assert table["class acc"] is None and table["mean IoU"] is None and table["detections"] and table["mAR"] is not None


def test_recall_is_pycocotools_own(data):
    """Of the cat (medium, 1600 px) both are found, of the dog (small, 900 px) one of two."""
    notes = data.coco.dataset["annotations"]
    subset = [{key: note[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5} for note in notes[:3]]
    table = evaluate.coco_table(data, subset)
    assert (table["mAR"], table["ARs"], table["ARm"], table["ARl"]) == pytest.approx((75.0, 50.0, 100.0, None))
    assert table["APm"] == pytest.approx(100.0) and table["APs"] == pytest.approx(100 * 51 / 101)
    nothing = evaluate.coco_table(data, [])
    assert nothing["mAP"] == nothing["ARs"] == 0 and nothing["APl"] is None and nothing["AP by IoU"] == [0.0] * 10


def test_ap_by_class_is_pycocotools_own(tmp_path):
    """Its mean over the classes with an object is mAP; of a class without one there is none; crowds are no objects."""
    data = DetectionData(make_data(tmp_path / "data", ("cat", "dog", "bird")), "val")
    notes = data.coco.dataset["annotations"]
    subset = [{key: note[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5} for note in notes[:3]]
    table = evaluate.coco_table(data, subset)
    assert table["AP by class"] == {"cat": pytest.approx(100), "dog": pytest.approx(100 * 51 / 101), "bird": None}
    assert table["mAP"] == pytest.approx((100 + 100 * 51 / 101) / 2)
    assert table["objects by class"] == {"cat": 2, "dog": 2, "bird": 0}
    notes[3]["iscrowd"] = 1
    table = evaluate.coco_table(data, subset)
    assert table["objects by class"]["dog"] == 1 and table["AP by class"]["dog"] == pytest.approx(100)
    one = SimpleNamespace(coco=data.coco, targets=data.targets[:1])  # of the images that are looked at
    assert evaluate.coco_table(one, subset[:1])["objects by class"] == {"cat": 1, "dog": 1, "bird": 0}


def test_recall_counts_100_detections_of_an_image():
    boxes = [[20 * number, 0, 15, 15] for number in range(20)]
    coco = truth_of([(0, 1, box) for box in boxes], categories=1)
    table = evaluate.coco_table(
        SimpleNamespace(coco=coco, targets=[{"image_id": 0}]), detections_of(*((1, box, 0.5) for box in boxes))
    )
    assert table["mAR"] == table["ARs"] == pytest.approx(100.0)  # not the 50 of ten detections


def test_a_diverged_model_is_refused(data):
    broken = compact()
    with torch.no_grad():
        next(broken.head.parameters())[:] = float("nan")
    with pytest.raises(ValueError, match=r"1 of the model's tensors hold NaN or infinity \(head.*its training diverged"):
        evaluate.evaluate_detector(broken, data)
    overflows = compact()
    with torch.no_grad():
        next(overflows.head.parameters())[:] = 3e38  # finite, unlike what comes out
    with pytest.raises(ValueError, match="the model's head gave NaN or infinity"):
        evaluate.evaluate_detector(overflows, data)

    class Outputs(nn.Module):
        def forward(self, images):
            box = torch.tensor([[0.0, 0.0, float("nan"), 9.0]])
            return [{"boxes": box, "labels": torch.ones(1, dtype=torch.int64), "scores": torch.ones(1)} for _ in images]

    with pytest.raises(ValueError, match="gave image 1 a box or a score that is NaN"):
        evaluate.evaluate_detector(Outputs(), data)
    assert not any(module._forward_hooks for module in overflows.modules()), "the checks stay on the model"


def test_load_truth_and_evaluation_see_the_same_objects(data):
    """Errors use the ground truth as it stands, like pycocotools: a perfect set has none, by both."""
    coco = load_truth(data.folder.parent, "val")
    perfect = [
        {"image_id": note["image_id"], "category_id": note["category_id"], "bbox": note["bbox"], "score": 1.0}
        for note in coco.dataset["annotations"]
    ]
    assert evaluate.coco_table(SimpleNamespace(coco=coco, targets=data.targets), perfect)["mAP"] == pytest.approx(100)
    gains = tide.error_gains(tide.match(coco, perfect))
    assert gains.pop("AP") == pytest.approx([100] * 10) and all(values == [0] * 10 for values in gains.values())
