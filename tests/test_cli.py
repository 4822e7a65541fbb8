"""The command line: help, recipes, errors in one line."""

import dataclasses
import importlib
import json
import re
import subprocess
import sys

import docstring_parser
import pytest
import torch
import torchvision
import yaml
from torchvision.models.detection.ssd import SSD

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from cls2det.cli import COMMANDS, main
from cls2det.commands.options import DistillOptions, TrainOptions
from training_cases import coco_layout


def test_an_installation_of_the_operators_alone_says_what_the_command_needs():
    child = "import runpy, sys; sys.modules['yaml'] = None; runpy.run_module('cls2det', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=False)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("cls2det: no module yaml. ") and "pip install 'cls2det[train]'" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_option(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and max(map(len, text.splitlines())) <= 100
    record = COMMANDS[command].options
    for entry in docstring_parser.parse(record.__doc__).params:
        start = " ".join(entry.description.split()[:3])
        assert start in " ".join(text.split()), entry.arg_name
    names = [field.name for field in dataclasses.fields(record)]
    assert all(f"--{name.replace('_', '-')}" in text or name == "runs" for name in names)


def test_help_of_train_leaves_the_teachers_out(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    teaching = {field.name for field in dataclasses.fields(DistillOptions)} - {
        field.name for field in dataclasses.fields(TrainOptions)
    }
    assert len(teaching) > 10
    assert not any(re.search(rf"--{name.replace('_', '-')}\b", text) for name in teaching)


def test_the_list_of_commands(capsys):
    for words in (["--help"], []):
        with pytest.raises(SystemExit):
            main(words)
        text = " ".join(capsys.readouterr().out.split())
        assert all(f"{name} {command.options.__doc__.splitlines()[0]}" in text for name, command in COMMANDS.items())
    with pytest.raises(SystemExit) as stop:
        main(["distil"])
    assert stop.value.code == 2 and "invalid choice: 'distil'" in capsys.readouterr().err


def test_a_help_text_needs_no_torch():
    """It comes at once."""
    for words in (["--help"], ["distill", "--help"], ["sweep", "--help"]):
        program = f"import sys; sys.modules['torch'] = None; from cls2det.cli import main; main({words!r})"
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert result.returncode == 0 and "usage: cls2det" in result.stdout, result.stderr


def test_errors_are_one_line(tmp_path, capsys):
    assert main(["evaluate", "--weights", str(tmp_path / "none.pt"), "--data-root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("cls2det evaluate: no weights at")
    assert main(["distill", "--config", "ssd3000", "--data-root", "x", "--out", str(tmp_path)]) == 2
    assert "no file and no recipe ssd3000; recipes: " in capsys.readouterr().err
    assert main(["demo", "--seeds", "-1", "--out", str(tmp_path)]) == 2
    assert "--seeds must be at least 1" in capsys.readouterr().err
    for command in ("train", "distill"):
        words = [command, "--data-root", "x", "--out", str(tmp_path), "--classifier.temprature", "3"]
        assert main(words) == 2
        text = capsys.readouterr().err
        assert text.startswith(f"cls2det {command}: ") and "temprature" in text and text.count("\n") == 1
    (tmp_path / "odd.yaml").write_text("optim: {stps: 3}")
    assert main(["train", "--config", str(tmp_path / "odd.yaml"), "--data-root", "x", "--out", "y"]) == 2
    text = capsys.readouterr().err
    assert "stps" in text and text.count("\n") == 1
    assert main(["train", "--data-root", "x"]) == 2
    assert "required: out" in capsys.readouterr().err


def test_a_stopped_command_says_what_is_kept(tmp_path, monkeypatch, capsys):
    def stopped_at(name: str) -> str:
        def stop(options):
            raise KeyboardInterrupt

        monkeypatch.setattr(importlib.import_module(COMMANDS[name].module), name, stop)
        more = ["--out", str(tmp_path)] if name != "info" else []
        assert main([name, *more, *(["--data-root", "x"] if name in ("train", "look") else [])]) == 130
        return capsys.readouterr().err

    assert stopped_at("train") == "\nStopped. There is no checkpoint yet: the same command begins anew.\n"
    (tmp_path / "last.ckpt").touch()
    assert stopped_at("train") == "\nStopped. The same command goes on from the last checkpoint.\n"
    assert stopped_at("demo") == "\nStopped. The same command goes on from the last checkpoints.\n"
    assert stopped_at("look") == stopped_at("info") == "\nStopped.\n"


def test_a_warning_is_shown_in_words_alone():
    """No file and line of our code, which say nothing to a user."""
    doubt = "import warnings; from cls2det.commands import recipes; recipes.recipes = lambda options: warnings.warn('a doubt')"
    program = f"{doubt}; from cls2det.cli import main; main(['recipes']); warnings.warn('of another')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    first, second = result.stderr.splitlines()[:2]
    assert first == "warning: a doubt" and second == "<string>:1: UserWarning: of another"


@pytest.mark.parametrize("damage", ["truncated", "cut early", "empty", "other", "of another model"])
def test_a_damaged_checkpoint_is_named(scenes, tmp_path, capsys, damage):
    """A run that cannot go on says which file stops it; without that file it starts anew."""
    options = [
        "--images",
        "4",
        "--backbone-weights",
        "none",
        "--optim.steps",
        "2",
        "--optim.batch-size",
        "2",
        "--run.device",
        "cpu",
    ]
    command = ["train", "--data-root", str(scenes), "--out", str(tmp_path), *options]
    assert main(command) == 0
    last = tmp_path / "last.ckpt"
    (tmp_path / "weights.pt").unlink()
    if damage == "other":
        torch.save({"weights": {}}, last)
    elif damage == "of another model":
        checkpoint = torch.load(last, weights_only=True)
        checkpoint["state_dict"]["other.weight"] = checkpoint["state_dict"].pop(next(iter(checkpoint["state_dict"])))
        torch.save(checkpoint | {"global_step": 1}, last)
    else:
        last.write_bytes(last.read_bytes()[: {"truncated": last.stat().st_size // 2, "cut early": 20_000, "empty": 0}[damage]])
    log = tmp_path / "log" / "metrics.csv"
    log.write_text(log.read_text()[:-20])  # a full disk cuts both
    capsys.readouterr()
    assert main(command) == 2
    message = capsys.readouterr().err
    if damage == "of another model":
        assert message.startswith(f"cls2det train: {last} does not fit the model of this run: ") and "other.weight" in message
    else:
        assert message.startswith(f"cls2det train: {last} does not load as a checkpoint: ")
    assert message.count("\n") == 1
    assert message.endswith("Remove it, and the run starts from its first step\n")
    last.unlink()
    assert main(command) == 0 and (tmp_path / "weights.pt").is_file()
    (tmp_path / "options.json").write_text("")
    assert main(command) == 2
    assert f"{tmp_path / 'options.json'} is damaged" in capsys.readouterr().err


def test_a_library_that_a_tap_does_not_fit_is_named(scenes, teacher_weights, tmp_path, monkeypatch, capsys):
    """torchvision's code has changed where positives are taken: one line, with the version, and nothing written."""
    monkeypatch.setattr(SSD, "compute_loss", lambda self, targets, head_outputs, anchors, matches: {})
    command = ["distill", "--data-root", str(scenes), "--teacher", str(teacher_weights), "--allow-poor-teacher"]
    command += ["--backbone-weights", "none", "--run.device", "cpu", "--out", str(tmp_path / "run")]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"cls2det distill: torchvision {torchvision.__version__} (0.29 is known to fit): ")
    assert (
        "compute_loss takes (" in message
        and "Install the version that is known to fit" in message
        and message.count("\n") == 1
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", [["--config", "ssd300"], ["--config=ssd300"]])
def test_an_option_wins_over_the_recipe_wherever_it_stands(recipe, capsys):
    for options in (["--optim.epochs", "24", *recipe], [*recipe, "--optim.epochs", "24"]):
        with pytest.raises(SystemExit):
            main(["train", *options, "--data-root", "coco", "--out", "runs/a", "--print_config"])
        assert "epochs: 24" in capsys.readouterr().out
    assert main(["distill", "--data-root", "a", "--out", "b", "--seed", "1", "--optim.steps", "-4"]) == 2  # YAML types
    assert "optim.steps must be above 0, got -4" in capsys.readouterr().err


def test_what_yaml_knows_and_json_does_not(tmp_path, capsys):
    recipe = tmp_path / "odd.yaml"
    recipe.write_text("name: 2026-01-31\ncls_weight: .inf\noptim: {learning_rate: 1e-3}\n")
    with pytest.raises(SystemExit):
        main(["train", "--config", str(recipe), "--data-root", "coco", "--out", "runs/a", "--print_config"])
    options = yaml.safe_load(capsys.readouterr().out)
    assert (options["name"], options["cls_weight"]) == ("2026-01-31", float("inf"))
    assert float(options["optim"]["learning_rate"]) == 0.001


def test_recipes_and_info(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert main(["recipes", "--name", "ssd300"]) == 0
    assert "student: ssd300_vgg16" in capsys.readouterr().out and "ssd300 " in listed
    assert main(["info"]) == 0
    message = capsys.readouterr().out
    assert "torchvision" in message and "CPU back end" in message and "fasterrcnn_qr50_fpn" in message


def test_the_papers_recipes_on_a_small_coco(scenes, tmp_path):
    """COCO's own layout and names; the recipes as they come, made short: teacher, distillation, evaluation, report."""
    root = coco_layout(scenes, tmp_path / "coco")
    student = "ssdlite320_mobilenet_v3_large"
    short = ["--optim.steps", "2", "--optim.batch-size", "2", "--run.device", "cpu", "--run.checkpoint-every", "2"]
    short += ["--run.loader-workers", "0", "--backbone-weights", "none", "--data-root", str(root)]
    teacher = [
        "--config",
        "teacher-ssd",
        "--architecture",
        "resnet18",
        "--student",
        student,
        "--out",
        str(tmp_path / "teacher"),
    ]
    assert main(["teacher", *teacher, *short]) == 0
    for command in ("train", "distill"):
        more = ["--teacher", str(tmp_path / "teacher" / "weights.pt"), "--allow-poor-teacher"] * (command == "distill")
        out = tmp_path / "runs" / command
        assert main([command, "--config", "ssdlite320", "--out", str(out), *more, *short]) == 0
        assert json.loads((out / "val2017" / "evaluation.json").read_text())["split"] == "val2017"
    log = (tmp_path / "runs" / "distill" / "log" / "metrics.csv").read_text()
    assert all(name in log for name in ("kd_cls", "kd_loc", "loc"))
    assert main(["report", str(tmp_path / "runs"), "--split", "val2017", "--out", str(tmp_path / "report")]) == 0
    message = (tmp_path / "report" / "report.md").read_text()
    assert f"## {student}" in message and "baseline" in message and "+ all" in message


def test_a_recipe_under_options_from_the_command_line(scenes, teacher_weights, tmp_path):
    """A baseline and a distillation from one file, each with its own changes; what is changed wins, what is not stays."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "images: 8\nbackbone_weights: none\naugmentation: jitter\noptim: {steps: 4, batch_size: 2}\n"
        "classifier: {kd_cls_weight: 0.7}\nrun: {device: cpu, checkpoint_every: 2}\n"
    )
    common = ["--config", str(recipe), "--data-root", str(scenes), "--optim.batch-size", "3"]
    assert main(["train", *common, "--out", str(tmp_path / "plain")]) == 0
    more = ["--teacher", str(teacher_weights), "--allow-poor-teacher", "--classifier.temperature", "3"]
    assert main(["distill", *common, *more, "--out", str(tmp_path / "distilled")]) == 0
    plain, distilled = (json.loads((tmp_path / name / "options.json").read_text()) for name in ("plain", "distilled"))
    assert plain["command"] == "train" and "classifier" not in plain and plain["optim"]["batch_size"] == 3
    assert distilled["command"] == "distill" and distilled["classifier"]["kd_cls_weight"] == 0.7
    assert distilled["classifier"]["temperature"] == 3 and distilled["optim"]["batch_size"] == 3
    assert distilled["optim"]["steps"] == 4
