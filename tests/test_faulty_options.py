"""Options that would quietly mean something else: each is refused before anything is trained, or does what it says."""

import dataclasses
import json
import re

import pytest
import torch

pytest.importorskip("jsonargparse")
pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from cls2det.cli import main
from cls2det.commands.options import DistillOptions, TeacherOptions, TrainOptions
from cls2det.commands.parsing import parse_options, parse_words
from cls2det.settings import DISTILLERS
from cls2det.study.plan import load_plan
from cls2det.training.settings import Optim, Run
from rectangles import make_rectangles
from training_cases import train, weights_in

PLACES = {"data_root": "data", "out": "out"}


def recipe(tmp_path, text):
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def of_recipe(tmp_path, text, *words):
    file = recipe(tmp_path, text)
    return parse_words(TrainOptions, ["--data-root", "d", "--out", "o", "--config", str(file), *words], "train", True)


@pytest.mark.parametrize("name", DISTILLERS)
def test_numbers_below_0_and_not_finite_are_refused_by_every_distiller(name):
    kind = DISTILLERS[name]
    numbers = [
        field.name for field in dataclasses.fields(kind) if type(field.default) in (int, float) or field.name == "temperature"
    ]
    assert "warmup_steps" in numbers and len(numbers) >= 2
    for field in numbers:
        for value in (-1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=rf"{name}\.{field} must be .*, got {value}"):
                kind(**{field: value})
        if field in kind.positive:
            with pytest.raises(ValueError, match=rf"{name}\.{field} must be above 0, got 0"):
                kind(**{field: 0})
        elif field not in kind.shares:
            kind(**{field: 0})
    for field in kind.shares:
        with pytest.raises(ValueError, match=rf"{name}\.{field} must be at most 1, got 5"):
            kind(**{field: 5})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": -1.0}, "optim.learning_rate must be at least 0, got -1.0"),
        ({"warmup_steps": -5}, "optim.warmup_steps must be at least 0, got -5"),
        ({"learning_rate": float("inf")}, "optim.learning_rate must be a finite number, got inf"),
        ({"weight_decay": -1.0}, "optim.weight_decay must be at least 0"),
        ({"momentum": 1.0}, "optim.momentum must be below 1"),
        ({"epochs": float("nan")}, "optim.epochs must be a finite number"),
        ({"decay_at": (8.0, 11.0)}, "optim.decay_at takes shares of the run, above 0 and below 1, not epochs; got"),
        ({"decay_at": (0.9, -0.5)}, "optim.decay_at must be at least 0"),
        ({"clip_norm": 0.0}, r"optim.clip_norm must be above 0, got 0.0 \(None is the default, or all\)"),
    ],
)
def test_optimizer_settings_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        Optim(**wrong)


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true", "half"])
def test_a_precision_that_images_do_not_have(precision):
    with pytest.raises(ValueError, match=f"run.precision must be one of 32-true, bf16-mixed, 16-mixed, got '{precision}'"):
        Run(precision=precision)


def test_momentum_is_read_by_sgd_and_one_cycle(tmp_path):
    root = make_rectangles(tmp_path / "data")
    results = []
    for momentum in (0.0, 0.9):
        folder = tmp_path / str(momentum)
        optim = Optim("sgd", 0.01, momentum=momentum, steps=3, batch_size=2)
        train(root, folder, optim=optim, run=Run(device="cpu", checkpoint_every=3))
        results.append(weights_in(folder / "weights.pt"))
    assert any(not torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize(
    "text",
    [
        "optim:\n  steps: 3\n  learning_rate: 0.1\noptim:\n  batch_size: 2\n",
        "seed: 1\nstudent: ssd_compact\nseed: 2\n",
        "optim:\n  steps: 3\n  steps: 4\n",
    ],
)
def test_a_key_that_stands_twice(tmp_path, text):
    with pytest.raises(ValueError, match=r"recipe\.yaml: (optim|seed|steps) stands twice in one group.*line"):
        of_recipe(tmp_path, text)


def test_merge_keys_are_no_second_key(tmp_path):
    options = of_recipe(tmp_path, "optim: &base\n  steps: 3\nrun: {device: cpu}\n")
    assert options.optim.steps == 3
    parsed = of_recipe(tmp_path, "optim:\n  <<: {steps: 3, batch_size: 2}\n  steps: 4\n")
    assert (parsed.optim.steps, parsed.optim.batch_size) == (4, 2)


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("optim:\n  schedule:\n", "optim.schedule"),
        ("optim:\n  optimizer: null\n", "optim.optimizer"),
        ("optim:\n  learning_rate:\n", "optim.learning_rate"),
        ("seed:\n", "seed"),
        ("run:\n  precision: null\n", "run.precision"),
        ("cls_weight: null\n", "cls_weight"),
    ],
)
def test_an_option_without_a_value(tmp_path, text, option):
    with pytest.raises(ValueError, match=rf"{re.escape(option)} has no value; leave it out for its default"):
        of_recipe(tmp_path, text)


def test_a_group_without_its_options(tmp_path):
    for value in ("null", "[1]", "3"):
        with pytest.raises(ValueError, match=r"optim"):
            of_recipe(tmp_path, f"optim: {value}\n")


def test_options_that_may_be_nothing(tmp_path):
    options = of_recipe(tmp_path, "optim:\n  clip_norm: null\n  base_batch:\nimages: null\n")
    assert options.optim.clip_norm is None and options.images is None


@pytest.mark.parametrize(
    ("record", "group"),
    [
        (TeacherOptions, {"margin": float("nan")}),
        (TeacherOptions, {"jitter": float("inf")}),
        (TeacherOptions, {"min_size": float("nan")}),
        (TrainOptions, {"cls_weight": float("nan")}),
        (DistillOptions, {"classifier": {"kd_cls_weight": float("inf")}}),
    ],
)
def test_numbers_in_a_recipe_that_are_not_finite(record, group):
    with pytest.raises(ValueError, match=r"finite number|is not|must be"):
        parse_options(record, PLACES | group)


def test_options_are_not_abbreviated(tmp_path, capsys):
    file = recipe(tmp_path, "seed: 1\n")
    for words in (["--conf", str(file)], ["--optim.step", "4"]):
        assert main(["train", "--data-root", "d", "--out", str(tmp_path / "o"), *words]) == 2
        assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--epochs", "is it --optim.epochs?"),
        ("--imagesize", "is it --image-size?"),
        ("--optim.epoch", "is it --optim.epochs?"),
        ("--xyz", "cls2det train --help lists the options"),
    ],
)
def test_a_word_that_is_no_option(tmp_path, capsys, word, hint):
    assert main(["train", "--data-root", "d", "--out", str(tmp_path / "o"), word, "4"]) == 2
    assert f"unrecognized arguments: {word} 4 ({hint})" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"\xff\xfes\x00e\x00e\x00d\x00", b"a:\n\t- b\n"])
def test_a_recipe_that_cannot_be_read_is_named(tmp_path, content):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"recipe\.yaml: "):
        parse_words(TrainOptions, ["--data-root", "d", "--out", "o", "--config", str(file)], "train", True)


def test_names_with_brackets_in_reports(tmp_path, capsys):
    root = make_rectangles(tmp_path / "data")
    for seed in (1, 2):
        train(
            root,
            tmp_path / f"run [b] {seed}",
            name="x [/bold]",
            val_split="val",
            seed=seed,
            optim=Optim(steps=1, batch_size=2),
            run=Run(device="cpu", checkpoint_every=1),
        )
    words = [
        "report",
        *(str(tmp_path / f"run [b] {seed}") for seed in (1, 2)),
        "--split",
        "val",
        "--out",
        str(tmp_path / "[/r]"),
    ]
    assert main(words) == 0
    assert "x [/bold]" in capsys.readouterr().out
    assert "x [/bold]" in (tmp_path / "[/r]" / "report.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "[/r]" / "report.json").read_text())["runs"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arms: {1: {}}", r"a name in arms must be text, found 1; put it in quotes"),
        ("arms: {no: {}}", r"a name in arms must be text, found False; put it in quotes"),
        ("grid: {cls_weight: 2.0}", r"cls_weight of grid must be a list of values, found 2\.0"),
        ("seeds: [1]", r"seeds stands twice in one group"),
    ],
)
def test_a_sweep_whose_names_or_values_are_of_another_kind(tmp_path, text, message):
    file = recipe(tmp_path, f"seeds: [1]\ntrain: {{student: ssd_compact}}\n{text}\n")
    with pytest.raises(ValueError, match=message):
        load_plan(file)
