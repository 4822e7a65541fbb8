"""Commands take the files of version 0.1: recipes, weights, runs and sweeps with old names of options. (test_old_runs.py: the
weights and checkpoints themselves.)"""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from cls2det.cli import main
from cls2det.commands.renamed import present
from cls2det.study import sweep as sweep_module
from cls2det.study.options import ReportOptions
from cls2det.study.plan import load_plan
from cls2det.study.report import report

DISTILL = ["--teacher", "teacher/weights.pt", "--detector-teacher", "baseline/weights.pt", "--allow-poor-teacher"]
DATA = ["--data-root", "data", "--val-split", "val"]


@pytest.fixture
def old(old_runs, tmp_path, monkeypatch):
    """The folder with the old files, as the current folder: their paths are relative."""
    shutil.copytree(old_runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options_of(folder):
    return json.loads((Path(folder) / "options.json").read_text())


def test_an_old_recipe_trains_and_is_warned_of(old):
    with pytest.warns(
        UserWarning, match=r"old\.yaml has options of version 0\.1, .*write classifier in place of distill"
    ) as all_:
        assert main(["distill", "--config", "old.yaml", *DATA, *DISTILL, "--out", "new", "--term-weights", "fixed"]) == 0
    assert sum("version 0.1" in str(warning.message) for warning in all_) == 1
    options = options_of("new")
    assert options["classifier"]["temperature"] == 1.5 and "distill" not in options and options["image_size"] is None
    # The report takes the old run and the new one for the same arm: with the same seed, for the same run twice.
    with pytest.raises(ValueError, match=r"distilled and new are both ssd_compact, \+ KD-cls \+ KD-loc \+ FKD, seed 0"):
        report(ReportOptions([Path("distilled"), Path("new")], Path("report")))
    options["seed"] = 1
    Path("new/options.json").write_text(json.dumps(options))
    content = report(ReportOptions([Path("baseline"), Path("distilled"), Path("new")], Path("report")))
    table = content["students"]["ssd_compact"]["table"]
    assert {arm: row["seeds"] for arm, row in table.items()} == {"baseline": [0], "+ KD-cls + KD-loc + FKD": [0, 1]}
    assert not any("differ in" in note for note in content["notes"]), content["notes"]


def test_old_methods_have_their_new_names(old):
    command = ["distill", "--config", "old-two-stage.yaml", "--data-root", "data", "--out", "chen", "--detector-teacher"]
    assert main(["train", "--config", "old-two-stage.yaml", "--data-root", "data", "--out", "teaching"]) == 0
    with pytest.warns(UserWarning, match="chen in place of kd"):
        assert main([*command, "teaching/weights.pt"]) == 0
    options = options_of("chen")
    assert options["distillers"] == ["chen"] and options["chen"]["soft_weight"] == 0.3 and options["chen"]["weight"] == 0.5
    assert "chen_soft" in Path("chen/log/metrics.csv").read_text()


@pytest.mark.parametrize("command", ["teacher", "pretrain", "train", "distill"])
def test_a_finished_old_run_is_resumed_by_its_old_command(old, command, capsys):
    quick = ["--optim.batch_size", "2", "--optim.optimizer", "sgd", "--optim.momentum", "0", "--optim.learning_rate", "0.01"]
    quick += ["--run.device", "cpu", "--run.log_every", "1"]
    teacher = ["--architecture", "resnet18", "--width", "4", "--crop-size", "32", "--loss", "joint", "--image-size", "0"]
    words, folder = {
        "teacher": ([*DATA, *teacher, "--optim.steps", "4", "--run.checkpoint_every", "2", *quick], "teacher"),
        "pretrain": (["--data-root", "crops", *teacher[:4], "--image-size", "32", "--optim.steps", "2", *quick], "pretrained"),
        "train": (["--config", "old.yaml", *DATA], "baseline"),
        "distill": (["--config", "old.yaml", *DATA, *DISTILL], "distilled"),
    }[command]
    before = torch.load(f"{folder}/weights.pt", weights_only=True)["weights"]
    assert main([command, *words, "--out", folder]) == 0, capsys.readouterr().err
    after = torch.load(f"{folder}/weights.pt", weights_only=True)["weights"]  # written anew, from the checkpoint
    assert len(after) == len(before)
    for name, value in before.items():
        assert torch.equal(after[name.removeprefix("detector.").removeprefix("network.")], value), name
    assert main([command, *words, "--out", folder, "--seed", "7"]) == 2
    assert "holds a run with other options (seed)" in capsys.readouterr().err


def test_old_weights_are_read(old, capsys):
    assert main(["evaluate", "--weights", "distilled/weights.pt", "--data-root", "data", "--out", "again"]) == 0
    before, after = (json.loads((Path(place) / "evaluation.json").read_text()) for place in ("distilled/val", "again"))
    assert before.keys() | {"annotations", "AP by class", "objects by class"} == after.keys() and after["class acc"] > 0
    assert main(["predict", "--weights", "distilled/weights.pt", "--images", "data/val", "--out", "found"]) == 0
    assert len(json.loads(Path("found/predictions.json").read_text())["images"]) == 2
    assert main(["export", "--weights", "distilled/weights.pt", "--formats", "state_dict", "--out", "exported"]) == 0
    start = ["train", "--data-root", "data", "--start", "pretrained/weights.pt", "--optim.steps", "1", "--run.device", "cpu"]
    assert main([*start, "--optim.batch-size", "2", "--out", "other"]) == 2  # it is read, and is of another body
    assert "the ResNet does not fit the student's backbone" in capsys.readouterr().err


def test_old_words_on_the_command_line(old):
    words = ["--data-root", "data", "--teacher", "teacher/weights.pt", "--allow-poor-teacher", "--backbone-weights", "none"]
    words += ["--distill.temperature", "3", "--distill.pixel-size=0", "--distillers", "classifier", "--images", "0"]
    words += ["--optim.steps", "1", "--optim.batch-size", "2", "--optim.clip_norm", "0", "--run.device", "cpu"]
    with pytest.warns(UserWarning, match=r"--classifier\.temperature in place of --distill\.temperature"):
        assert main(["distill", *words, "--out", "new"]) == 0
    options = options_of("new")
    assert options["classifier"]["temperature"] == 3 and options["classifier"]["pixel_size"] is None
    assert options["images"] is None and options["optim"]["clip_norm"] is None


def test_an_old_sweep_goes_on(old, monkeypatch, capsys):
    """Its file has the old names, in options and in paths of a grid, and so has the sweep.json in its folder."""
    plan = {
        "train": {"images": 0, "name": "", "distill": {"temperature": 2.0}, "optim": {"steps": 1, "batch_size": 2}},
        "arms": {"baseline": None, "Chen": {"distillers": ["kd"], "kd": {"weight": 2.0}, "detector_teacher": "x.pt"}},
        "grid": {"distill.loc_weight": [1.0, 2.0]},
        "seeds": [5],
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(plan))
    with pytest.warns(UserWarning, match=r"sweep\.yaml has options of version 0\.1"):
        loaded = load_plan("sweep.yaml")
    assert loaded.train["classifier"] == {"temperature": 2.0} and loaded.train["images"] is None
    assert loaded.arms["Chen"] == {"distillers": ["chen"], "chen": {"weight": 2.0}, "detector_teacher": "x.pt"}
    assert loaded.arms["loc_weight=2.0"] == {"classifier": {"loc_weight": 2.0}}
    monkeypatch.setattr(sweep_module, "run_jobs", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    out = Path("swept")
    out.mkdir()
    old_stamp = {"teachers": {}, "detectors": {}, "train": plan["train"]}
    (out / "sweep.json").write_text(json.dumps(old_stamp))
    words = ["sweep", "--config", "sweep.yaml", "--out", str(out), "--data-root", "data", "--arms", "baseline"]
    assert main(words) == 130  # it came to the first training
    (out / "sweep.json").write_text(json.dumps(old_stamp | {"train": {"distill": {"temperature": 3.0}}}))
    assert main(words) == 2 and "holds a sweep with other settings" in capsys.readouterr().err


def test_present_options_are_not_warned_of(old):
    shutil.copy("old.yaml", "present.yaml")
    text = Path("present.yaml").read_text().replace("distill:", "classifier:")
    Path("present.yaml").write_text(text)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*version 0.1")
        with pytest.raises(SystemExit):
            main(["distill", "--config", "present.yaml", *DATA, "--out", "x", "--print_config"])


def test_both_names_of_a_group_are_refused():
    with pytest.raises(ValueError, match="distill is the old name of classifier, and both are there"):
        present({"distill": {"temperature": 3}, "classifier": {"chunk": 4}}, "mine.yaml")
