"""What lies around a run: variables of a shell or a scheduler, closed pipes, folders of runs that never began, lost bits."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

import cls2det
from cls2det.cli import main
from cls2det.commands.options import TrainOptions
from cls2det.commands.parsing import parse_words
from cls2det.data.dataset import DetectionData
from cls2det.evaluation.coco import coco_table
from cls2det.models.students import load_student
from cls2det.training.settings import Optim, Run
from rectangles import change_annotations, make_rectangles
from training_cases import train

ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(cls2det.__file__).parents[1]),
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1"},
        {"LOCAL_RANK": "1"},
        {
            "SLURM_PROCID": "1",
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_JOB_NAME": "bash",
            "SLURM_JOB_ID": "1",
        },
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "x", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
        {"RANK": "abc", "TORCHELASTIC_RUN_ID": "x"},
    ],
    ids=lambda variables: "-".join(f"{name}={value}" for name, value in variables.items())[:40],
)
def test_variables_that_a_shell_has_left_do_not_lose_the_results(tmp_path, monkeypatch, variables):
    """A command that runs alone writes its files, whatever rank its environment names."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    root = make_rectangles(tmp_path / "data")
    words = ["--data-root", str(root), "--out", str(tmp_path / "run"), "--val-split", "val", "--backbone-weights", "none"]
    words += ["--optim.steps", "2", "--optim.batch-size", "2", "--run.device", "cpu"]
    assert main(["train", *words]) == 0
    for name in ("options.json", "weights.pt", "report.json", "val/evaluation.json", "last.ckpt"):
        assert (tmp_path / "run" / name).is_file(), name


def test_a_wrong_option_does_not_take_the_folder(tmp_path):
    root = make_rectangles(tmp_path / "data")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "options.json").write_text('{"command": "train", "seed": 99}')  # of a run that ended before its first checkpoint
    train(root, folder, optim=Optim(steps=1, batch_size=2), run=Run(device="cpu", checkpoint_every=1))
    assert json.loads((folder / "options.json").read_text())["seed"] == 0
    with pytest.raises(FileExistsError, match="other options"):
        train(root, folder, seed=5, optim=Optim(steps=1, batch_size=2), run=Run(device="cpu", checkpoint_every=1))


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)


def test_a_file_with_a_lost_bit_is_refused(tmp_path):
    """torch.load reads it without a word, as another network."""
    root, optim = make_rectangles(tmp_path / "data"), Optim(steps=4, batch_size=2)
    train(root, tmp_path / "run", optim=optim, run=Run(device="cpu", checkpoint_every=2))
    weights, checkpoint = tmp_path / "run" / "weights.pt", tmp_path / "run" / "last.ckpt"
    load_student(weights)
    flip_a_bit(weights)
    with pytest.raises(ValueError, match=r"weights\.pt does not load.*damaged: its part .* checksum"):
        load_student(weights)
    flip_a_bit(checkpoint)
    with pytest.raises(ValueError, match=r"last\.ckpt does not load as a checkpoint.*damaged"):
        train(root, tmp_path / "run", optim=optim, run=Run(device="cpu", checkpoint_every=2))


def test_a_screen_that_nobody_reads_does_not_end_a_training(tmp_path):
    root = make_rectangles(tmp_path / "data")
    words = [sys.executable, "-m", "cls2det", "train", "--data-root", str(root), "--out", str(tmp_path / "run")]
    words += ["--backbone-weights", "none", "--optim.steps", "12", "--optim.batch-size", "2", "--run.device", "cpu"]
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait(timeout=60)
    done = subprocess.run(words, stdout=reader.stdin, stderr=subprocess.PIPE, text=True, timeout=240, env=ENVIRONMENT)
    assert (tmp_path / "run" / "weights.pt").is_file() and (tmp_path / "run" / "report.json").is_file(), done.stderr
    assert "Traceback" not in done.stderr, done.stderr


def test_a_pipe_that_is_closed_ends_a_listing_quietly():
    words = f"{sys.executable} -m cls2det recipes --name ssd300 | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert done.stdout.strip() in ("0", "141") and not done.stderr, done.stderr  # 0: it was quicker


def test_a_detector_that_would_learn_nothing(tmp_path):
    root = make_rectangles(tmp_path / "data")
    with pytest.raises(ValueError, match="both 0, and nothing is distilled"):
        train(root, tmp_path / "run", cls_weight=0.0, box_weight=0.0)


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = parse_words(TrainOptions, ["--data-root=~/coco", "--out=~/runs/a"], "train", True)
    assert (options.data_root, options.out) == (tmp_path / "coco", tmp_path / "runs" / "a")


@pytest.mark.parametrize("field", ["category_id", "image_id"])
def test_true_is_no_number(tmp_path, field):
    root = make_rectangles(tmp_path / "data")
    change_annotations(root, "train", lambda content: content["annotations"][0].update({field: True}))
    if field == "category_id":
        with pytest.raises(ValueError, match="category True, which is not listed"):
            DetectionData(root, "train")
    else:
        with pytest.warns(UserWarning, match=r"of an image that is not listed: .*image True"):
            assert sum(len(target["labels"]) for target in DetectionData(root, "train").targets) == 23


def test_positions_of_images_are_numbers_and_in_range(tmp_path):
    root = make_rectangles(tmp_path / "data")
    assert [int(target["image_id"]) for target in DetectionData(root, "train", keep=[3, 1]).targets] == [4, 2]
    with pytest.raises(TypeError, match=r"keep must be positions of images, int64 \(n,\); found torch.bool"):
        DetectionData(root, "train", keep=torch.tensor([False] * 11 + [True]))
    with pytest.raises(IndexError, match="keep must be positions from 0 to 11"):
        DetectionData(root, "train", keep=torch.tensor([12]))


def test_a_deep_copy_can_be_evaluated_on(tmp_path):
    data = DetectionData(make_rectangles(tmp_path / "data"), "val")
    copied = copy.deepcopy(data)
    copied.targets[0]["labels"].zero_()
    assert data.targets[0]["labels"].all() and coco_table(copied, []) == coco_table(data, [])
