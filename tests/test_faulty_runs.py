"""Runs that were wrong without a word: on changed data, with half of a checkpoint, or with losses that are no numbers."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

import cls2det
from cls2det import files
from cls2det.cli import _is_of_a_killed_loader, main
from cls2det.distill import Distillation
from cls2det.models.weights import write_weights
from cls2det.training import fit, guards
from cls2det.training.detector import DetectorTraining
from helpers import default_signal
from rectangles import annotation_file, change_annotations, make_rectangles
from training_cases import weights_in

HERE = Path(__file__).parent
SMALL = [
    "--backbone-weights",
    "none",
    "--image-size",
    "96",
    "--run.device",
    "cpu",
    "--run.cache",
    "true",
    "--run.log-every",
    "1",
]
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(map(str, (HERE, Path(cls2det.__file__).parents[1]))),
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


@pytest.fixture
def rectangles(tmp_path):
    return make_rectangles(tmp_path / "rectangles")


def words(command: str, root: Path, out: Path, *more: str, steps: int = 2, every: int = 1) -> list[str]:
    """Of a short run of train, distill, teacher or pretrain."""
    small = SMALL if command in ("train", "distill") else ["--run.device", "cpu", "--run.log-every", "1"]
    optim = ["--optim.steps", str(steps), "--optim.batch-size", "2", "--run.checkpoint-every", str(every)]
    return [command, "--data-root", str(root), "--out", str(out), *small, *optim, *more]


def teacher_words(root: Path, out: Path, *more: str, **steps: int) -> list[str]:
    return words("teacher", root, out, "--width", "4", "--crop-size", "32", *more, **steps)


def run_fails(arguments: list[str], capsys) -> str:
    """The one line of the error, behind what is said of the data."""
    capsys.readouterr()
    assert main(arguments) == 2
    text = capsys.readouterr().err
    _, start, message = text.rpartition(f"cls2det {arguments[0]}: ")
    assert start and message.count("\n") == 1 and "Traceback" not in text, text
    return start + message


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------- other data or weights under the same --out


def rename_a_class(content):
    content["categories"][0]["name"] = "crimson"


def move_a_box(content):
    content["annotations"][3]["bbox"][0] += 1


def make_a_crowd(content):
    content["annotations"][3]["iscrowd"] = 1


def drop_a_box(content):
    del content["annotations"][3]


def drop_an_image(content):
    del content["images"][0]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 1]


CHANGES = [
    (rename_a_class, r"train have other classes \(3 as then, but others\)"),
    (move_a_box, r"train have other boxes \(24 as then, but others\)"),
    (make_a_crowd, r"train have other boxes \(24 as then, but others\)"),
    (drop_a_box, r"train have other boxes \(24 then, 23 now\)"),
    (drop_an_image, r"train have other images \(12 then, 11 now\), boxes \(24 then, 22 now\)"),
]


def test_data_that_changed_under_the_same_out_are_refused(rectangles, tmp_path, capsys):
    """Of a finished run, whose weights stay as they are."""
    command = words("train", rectangles, tmp_path / "run", steps=1)
    assert main(command) == 0
    before, annotations = files_in(tmp_path / "run"), annotation_file(rectangles, "train").read_bytes()
    for change, text in CHANGES:
        change_annotations(rectangles, "train", change)
        message = run_fails(command, capsys)
        assert re.search(text, message) and "Give another --out" in message, message
        assert files_in(tmp_path / "run") == before
        annotation_file(rectangles, "train").write_bytes(annotations)
    assert main(command) == 0


@pytest.mark.parametrize("command", ["teacher", "train"])
def test_a_half_done_run_does_not_go_on_with_other_labels(rectangles, tmp_path, capsys, command):
    make = teacher_words if command == "teacher" else lambda *arguments, **steps: words("train", *arguments, **steps)
    arguments = make(rectangles, tmp_path / "run", "--val-split", "val", steps=2)
    assert main(arguments) == 0
    (tmp_path / "run" / "weights.pt").unlink()  # as if it had been stopped
    change_annotations(rectangles, "val", drop_a_box)
    assert "the data of val have other boxes (12 then, 11 now)" in run_fails(arguments, capsys)
    assert not (tmp_path / "run" / "weights.pt").exists()


def test_the_same_data_written_otherwise_go_on(rectangles, tmp_path):
    """Other ids of annotations and categories, another order of images, other fields."""
    arguments = words("train", rectangles, tmp_path / "run", steps=1)
    assert main(arguments) == 0

    def write_otherwise(content):
        content["images"].reverse()
        content["info"] = {"description": "again"}
        for entry in (*content["annotations"], *content["categories"]):
            entry["id"] += 100
        for entry in content["annotations"]:
            entry["category_id"] += 100

    change_annotations(rectangles, "train", write_otherwise)
    assert main(arguments) == 0


def test_a_run_of_an_older_version_has_no_fingerprint_and_goes_on(rectangles, tmp_path):
    arguments = words("train", rectangles, tmp_path / "run", steps=1)
    assert main(arguments) == 0
    file = tmp_path / "run" / "options.json"
    record = json.loads(file.read_text())
    assert record.pop("data").keys() == {"train"} and record.pop("weights") == {}
    file.write_text(json.dumps(record))
    change_annotations(rectangles, "train", move_a_box)
    assert main(arguments) == 0 and json.loads(file.read_text()) == record


@pytest.mark.parametrize("option", ["teacher", "start", "detector-teacher"])
def test_weights_that_changed_under_the_same_path_are_refused(rectangles, tmp_path, capsys, option):
    def write(seed):
        make = words if option == "detector-teacher" else teacher_words
        first = ["train"] if make is words else []
        more = [] if make is words else ["--image-size", "96"]
        more += ["--architecture", "compact", "--width", "16"] if option == "start" else []
        out = tmp_path / f"{option}-{seed}"
        assert main(make(*first, rectangles, out, "--seed", str(seed), *more, steps=1)) == 0
        shutil.copy(out / "weights.pt", tmp_path / "given.pt")

    write(1)
    more = ["--distillers", "fkd"] if option == "detector-teacher" else []
    more += ["--allow-poor-teacher"] if option == "teacher" else []
    if option == "start":
        more += ["--classifier.kd-cls-weight", "0", "--classifier.kd-loc-weight", "0", "--classifier.loc-weight", "0"]
    arguments = words("distill", rectangles, tmp_path / "run", f"--{option}", str(tmp_path / "given.pt"), *more, steps=1)
    assert main(arguments) == 0
    assert main(arguments) == 0
    write(2)
    message = run_fails(arguments, capsys)
    assert f"the file of {option.replace('-', '_')} holds other weights than then" in message


def test_images_by_class_that_changed_are_refused(tmp_path, capsys):
    root = make_rectangles(tmp_path / "rectangles", splits={"train": 6})
    for number, file in enumerate(sorted((root / "train").glob("*.png"))):
        (tmp_path / "images" / "train" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "images" / "train" / str(number % 2))
    more = ["--val-split", "null", "--architecture", "resnet18", "--width", "4", "--image-size", "32"]
    arguments = words("pretrain", tmp_path / "images", tmp_path / "run", *more, steps=1)
    assert main(arguments) == 0
    assert main(arguments) == 0
    next((tmp_path / "images" / "train" / "0").iterdir()).unlink()
    assert "the data of train have other images (6 then, 5 now)" in run_fails(arguments, capsys)


def test_a_sweep_whose_data_changed_is_refused(rectangles, tmp_path, capsys):
    """One that is done, and whose trainings would have been skipped."""
    config = tmp_path / "sweep.yaml"
    optim = {"optim": {"steps": 1, "batch_size": 2}, "run": {"checkpoint_every": 1}}
    train = {"backbone_weights": "none", "image_size": 96, **optim}
    config.write_text(json.dumps({"train": train, "arms": {"baseline": {}}, "seeds": [1], "split": "val"}))
    arguments = ["sweep", "--config", str(config), "--data-root", str(rectangles), "--out", str(tmp_path / "sweep")]
    arguments += ["--device", "cpu", "--workers", "1"]
    assert main(arguments) == 0
    assert main(arguments) == 0
    for split, text in (("val", "evaluation.json is of other data: val has other boxes"), ("train", "the data of train have")):
        change_annotations(rectangles, split, move_a_box)
        assert text in run_fails(arguments, capsys)


def test_a_run_among_its_data_is_refused(rectangles, capsys):
    for out in (rectangles, rectangles / "train" / "run", rectangles / "annotations"):
        assert "lies among the data of" in run_fails(words("train", rectangles, out), capsys)
    assert not (rectangles / "options.json").exists()


# ---------------------------------------------------------------- checkpoints and other files, whole or absent


def other_disk(tmp_path) -> Path:
    """A folder on another file system than ``tmp_path``, which is where TMPDIR is."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    return Path(tempfile.mkdtemp(dir=memory))


@pytest.mark.slow
@pytest.mark.parametrize("disks", ["one", "two"])
def test_a_run_that_is_killed_again_and_again_ends_with_the_weights_of_an_unbroken_one(rectangles, tmp_path, request, disks):
    """SIGKILL at random moments; with TMPDIR on the disk of --out, and on another one. ``--kills 50`` kills it fifty times."""
    kills = request.config.getoption("--kills")
    folder = tmp_path / "runs" if disks == "one" else other_disk(tmp_path)
    try:
        results = {}
        for name, count in (("unbroken", 0), ("killed", kills)):
            arguments = words("train", rectangles, folder / name, steps=40 + 6 * kills)
            command = [sys.executable, str(HERE / "killed_run.py"), str(count), "0", "2", *arguments]
            done = subprocess.run(command, env=ENVIRONMENT | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            results[name] = json.loads(done.stdout.splitlines()[-1])
        print(disks, results)
        assert results["killed"]["kills"] == kills and results["killed"]["status"] == 0
        assert results["killed"]["after a checkpoint"] >= kills // 2
        assert same(*(weights_in(folder / name / "weights.pt") for name in results))
        assert not list(folder.rglob("*.part"))
    finally:
        if disks == "two":
            shutil.rmtree(folder)


class Killed(BaseException):
    pass


def test_a_checkpoint_is_written_beside_the_old_one_and_renamed(rectangles, tmp_path, monkeypatch):
    """A kill in the middle of the second: the first is there, and the restart takes it, whatever disk TMPDIR is on."""
    folder = other_disk(tmp_path)
    arguments = words("train", rectangles, folder / "run", steps=2)
    try:
        write, written = Path.write_bytes, []

        def stop_halfway(path, content):
            write(path, content[: len(content) // 2] if written else content)
            written.append(path)
            if len(written) == 2:
                os.replace(path, f"{path}.kept")  # an exception would tidy up, a kill does not
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", stop_halfway)
            with pytest.raises(Killed):
                main(arguments)
        assert [path.name for path in written] == ["last.ckpt.part"] * 2
        assert torch.load(folder / "run" / "last.ckpt", weights_only=True)["global_step"] == 1
        os.replace(f"{written[0]}.kept", written[0])
        assert main(arguments) == 0 and not list(folder.rglob("*.part"))
        assert main(words("train", rectangles, tmp_path / "unbroken", steps=2)) == 0
        assert same(*(weights_in(place / "weights.pt") for place in (folder / "run", tmp_path / "unbroken")))
    finally:
        shutil.rmtree(folder)


def test_a_disk_too_small_for_the_checkpoint_is_named(rectangles, tmp_path, capsys):
    """A limit on the size of files stands for it: the system refuses the bytes in the middle of the write."""
    arguments = words("train", rectangles, tmp_path / "run", steps=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        message = run_fails(arguments, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{tmp_path / 'run' / 'last.ckpt'} cannot be written: File too large (its disk has " in message
    assert not list((tmp_path / "run").glob("last.ckpt*"))
    assert main(arguments) == 0


@pytest.mark.parametrize(
    "name", ["last.ckpt", "weights.pt", "report.json", "detections.json", "evaluation.json", "options.json"]
)
def test_a_full_disk_leaves_the_old_file_and_is_named(rectangles, tmp_path, capsys, monkeypatch, name):
    arguments = words("train", rectangles, tmp_path / "run", "--val-split", "val", steps=1)
    flush = files._flush

    def full(path):
        if path.name == f"{name}.part":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_flush", full)
        message = run_fails(arguments, capsys)
    assert f"{name} cannot be written: No space left on device (its disk has " in message
    assert not list((tmp_path / "run").rglob(f"{name}*"))
    assert main(arguments) == 0 and list((tmp_path / "run").rglob(name))


def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(rectangles, tmp_path, capsys, monkeypatch):
    """For every command that writes one: below a file, where a file is, and where the system lets nobody write."""
    assert main(words("train", rectangles, tmp_path / "run", "--val-split", "val", steps=1)) == 0
    weights = str(tmp_path / "run" / "weights.pt")
    (tmp_path / "images" / "train" / "a").mkdir(parents=True)
    shutil.copy(rectangles / "train" / "001.png", tmp_path / "images" / "train" / "a")
    config = tmp_path / "sweep.yaml"
    config.write_text(json.dumps({"train": {}, "arms": {"baseline": {}}, "seeds": [1], "split": "val"}))
    monkeypatch.setattr(fit, "fit", lambda *_, **__: pytest.fail("it trained"))
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/cls2det")):
        commands = [
            words("train", rectangles, out),
            teacher_words(rectangles, out),
            words("distill", rectangles, out, "--distillers", "fkd", "--detector-teacher", weights),
            words("pretrain", tmp_path / "images", out, "--val-split", "null", "--width", "4"),
            ["evaluate", "--weights", weights, "--data-root", str(rectangles), "--out", str(out)],
            ["predict", "--weights", weights, "--images", str(rectangles / "val"), "--out", str(out)],
            ["export", "--weights", weights, "--out", str(out)],
            ["report", str(tmp_path / "run"), "--split", "val", "--out", str(out)],
            ["sweep", "--config", str(config), "--data-root", str(rectangles), "--out", str(out), "--device", "cpu"],
            ["demo", "--quick", "--out", str(out), "--device", "cpu"],
        ]
        for command in commands:
            message = run_fails(command, capsys)
            assert f"{out} is a file" in message or f"nothing can be written to the folder {out}" in message, message
    assert (tmp_path / "file").read_text() == "kept"


def test_a_run_that_goes_on_where_it_may_no_longer_write_is_stopped_at_once(rectangles, tmp_path, capsys, monkeypatch):
    arguments = words("train", rectangles, tmp_path / "run", steps=1)
    assert main(arguments) == 0

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # the tests may run as root, whom nothing stops
    message = run_fails(arguments, capsys)
    assert f"nothing can be written to the folder {tmp_path / 'run'}: Permission denied" in message


# ---------------------------------------------------------------- losses, weights and numbers that are none

TOO_FAST = ["--optim.optimizer", "sgd", "--optim.learning-rate", "1e12", "--optim.schedule", "constant"]


@pytest.mark.parametrize("command", ["train", "teacher"])
def test_a_training_stops_at_the_first_loss_that_is_not_finite(rectangles, tmp_path, capsys, command):
    """With the checkpoint from before it, and no weights. Started again, it says the same."""
    make = teacher_words if command == "teacher" else lambda *arguments, **steps: words("train", *arguments, **steps)
    arguments = make(rectangles, tmp_path / "run", *TOO_FAST, "--optim.clip-norm", "null", steps=20)
    for _ in range(2):
        message = run_fails(arguments, capsys)
        step = int(re.search(r"stopped at step (\d+): not finite: ", message)[1])
        assert 0 < step < 10 and ("loss (" if command == "teacher" else "bbox_regression (") in message, message
        assert "--optim.learning-rate" in message and "give another --out" in message and "last.ckpt is from before" in message
        checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == step and not files.not_finite(checkpoint["state_dict"])
        assert not {"weights.pt", "report.json"} & set(os.listdir(tmp_path / "run"))


def test_a_term_that_is_not_finite_is_named(rectangles, tmp_path, capsys, monkeypatch):
    assert main(teacher_words(rectangles, tmp_path / "teacher", "--image-size", "96", steps=1)) == 0
    forward = Distillation.forward

    def spoilt(self, student, step, *losses):
        terms = forward(self, student, step, *losses)
        return terms | ({"kd_cls": terms["kd_cls"] * float("nan")} if step == 2 else {})

    monkeypatch.setattr(Distillation, "forward", spoilt)
    more = ["--teacher", str(tmp_path / "teacher" / "weights.pt"), "--allow-poor-teacher"]
    message = run_fails(words("distill", rectangles, tmp_path / "run", *more, steps=4), capsys)
    assert "stopped at step 2: not finite: kd_cls (nan). " in message


def test_a_gradient_that_is_not_finite_costs_no_checkpoint(rectangles, tmp_path, capsys, monkeypatch):
    """In the last step, after whose update no loss is computed."""

    def spoil(module, _optimizer):
        if module.global_step == 1:
            next(module.parameters()).grad.fill_(float("inf"))

    monkeypatch.setattr(DetectorTraining, "on_before_optimizer_step", spoil)
    arguments = words("train", rectangles, tmp_path / "run", "--optim.clip-norm", "null", steps=2)
    message = run_fails(arguments, capsys)
    assert "stopped after step 1: the loss was finite, but these weights are not: " in message
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 1
    assert not (tmp_path / "run" / "weights.pt").exists()


def test_weights_that_are_not_finite_are_neither_read_nor_written(rectangles, tmp_path, capsys):
    assert main(words("train", rectangles, tmp_path / "run", steps=1)) == 0
    assert main(teacher_words(rectangles, tmp_path / "teacher", "--image-size", "96", steps=1)) == 0

    def spoil(folder):
        content = torch.load(tmp_path / folder / "weights.pt", weights_only=True)
        name = next(name for name, value in content["weights"].items() if value.is_floating_point())
        content["weights"][name].flatten()[0] = float("nan")
        torch.save(content, tmp_path / f"{folder}.pt")
        return str(tmp_path / f"{folder}.pt"), name

    student, weight = spoil("run")
    teacher, weight_of_teacher = spoil("teacher")
    out = tmp_path / "out"
    for command in (
        ["evaluate", "--weights", student, "--data-root", str(rectangles)],
        ["predict", "--weights", student, "--images", str(rectangles / "val"), "--out", str(out)],
        ["export", "--weights", student, "--out", str(out)],
        words("distill", rectangles, out, "--distillers", "fkd", "--detector-teacher", student),
        words("distill", rectangles, out, "--teacher", teacher),
        words("train", rectangles, out, "--start", teacher),
    ):
        message = run_fails(command, capsys)
        name = weight_of_teacher if teacher in command else weight
        assert f" holds weights that are not finite ({name})" in message, message
    with pytest.raises(ValueError, match=r"weights.pt is not written: these weights are not finite: a"):
        write_weights(tmp_path / "weights.pt", "student", {}, {"a": torch.tensor([1.0, torch.inf]), "b": torch.ones(2)})
    assert not (tmp_path / "weights.pt").exists()
    last = tmp_path / "run" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    next(iter(content["state_dict"].values())).fill_(torch.nan)
    torch.save(content, last)
    assert "last.ckpt holds weights that are not finite" in run_fails(
        words("train", rectangles, tmp_path / "run", steps=1), capsys
    )


def test_json_files_hold_no_nan(tmp_path):
    files.write_json(tmp_path / "a.json", {"ece": 1.0})
    for content, place in (({"ece": float("nan")}, "ece is nan"), ({"a": {"b": [0.0, float("inf")]}}, r"a.b\[1\] is inf")):
        with pytest.raises(ValueError, match=rf"a.json is not written: {place}"):
            files.write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text()) == {"ece": 1.0}


# ---------------------------------------------------------------- what else ends a run


def test_two_commands_at_once_in_one_folder(rectangles, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(guards, "PATIENCE", 0.2)
    arguments = words("train", rectangles, tmp_path / "run", steps=1)
    with guards.alone_in(tmp_path / "run"):
        assert "another command trains in" in run_fails(arguments, capsys)
    assert main(arguments) == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_run_as_ctrl_c_does(rectangles, tmp_path, name):
    command = [sys.executable, "-m", "cls2det", *words("train", rectangles, tmp_path / "run", steps=5000)]
    with default_signal(getattr(signal, name)):
        process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait_for(tmp_path / "run" / "last.ckpt", process)
    process.send_signal(getattr(signal, name))
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + getattr(signal, name), message
    assert f"Stopped by {name}. The same command goes on from the last checkpoint." in message and "Traceback" not in message
    assert not list((tmp_path / "run").rglob("*.part"))


def test_a_loader_process_that_is_killed_is_named(rectangles, tmp_path):
    """As the system does where memory runs out."""
    more = ["--run.loader-workers", "1", "--run.cache", "false"]
    command = [sys.executable, "-m", "cls2det", *words("train", rectangles, tmp_path / "run", *more, steps=5000)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait_for(tmp_path / "run" / "last.ckpt", process)
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    for child in {int(child) for task in tasks for child in (task / "children").read_text().split()}:
        os.kill(child, signal.SIGKILL)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Traceback" not in message, message
    assert "cls2det train: a process that loads images was killed" in message and "--run.loader-workers" in message


@pytest.mark.parametrize(
    "error", [EOFError(), ConnectionResetError(104, "reset"), FileNotFoundError(2, "no socket"), BrokenPipeError()]
)
def test_a_loader_process_that_is_killed_before_its_tensors_are_fetched(error, tmp_path, monkeypatch, capsys):
    """The connection to it then ends, with an error whose kind depends on the moment."""

    def fails_in(file: str, call):
        names = {"call": call}
        exec(compile("def function(*_): call()", f"/lib/{file}.py", "exec"), names)
        return names["function"]

    def fail():
        raise error

    monkeypatch.setattr("cls2det.commands.recipes.recipes", fails_in("dataloader", fails_in("resource_sharer", fail)))
    assert main(["recipes"]) == 1
    assert "a process that loads images was killed" in capsys.readouterr().err
    assert not any(map(_is_of_a_killed_loader, (EOFError(), OSError("disk full"), RuntimeError("DataLoader"))))


def wait_for(file: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not file.is_file():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"no {file}"
        time.sleep(0.02)


# ---------------------------------------------------------------- several processes


def torchrun(arguments: list[str], *launcher: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "cls2det", *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


GLOO = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")


@pytest.mark.slow
@GLOO
def test_two_processes_stop_together_at_a_loss_that_is_not_finite(rectangles, tmp_path):
    more = [*TOO_FAST, "--optim.clip-norm", "null", "--run.devices", "2"]
    arguments = words("train", rectangles, tmp_path / "run", *more, steps=20)
    process = torchrun(arguments, "--standalone", "--nproc-per-node", "2")
    _, message = process.communicate(timeout=240)
    assert process.returncode != 0 and "stopped at step" in message and "bbox_regression (" in message, message[-3000:]
    assert not files.not_finite(torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"])
    assert not (tmp_path / "run" / "weights.pt").exists()


@pytest.mark.slow
@GLOO
def test_two_nodes_of_one_process_give_the_weights_of_two_processes_on_one(rectangles, tmp_path):
    """Two agents of torchrun on this machine stand for the nodes. The run is begun by them, and gone on with after an end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, options in (("nodes", ["--run.num-nodes", "2"]), ("devices", ["--run.devices", "2"])):
        arguments = words("train", rectangles, tmp_path / name, "--val-split", "val", *options, steps=4, every=2)
        if name == "devices":
            agents = [torchrun(arguments, "--standalone", "--nproc-per-node", "2")]
        else:
            place = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
            agents = [torchrun(arguments, *place, "--node-rank", str(rank)) for rank in range(2)]
        outputs = [agent.communicate(timeout=240) for agent in agents]
        assert not any(agent.returncode for agent in agents), [error[-3000:] for _, error in outputs]
        assert "".join(output for output, _ in outputs).count("parameters") == 1  # one of them prints
    assert same(*(weights_in(tmp_path / name / "weights.pt") for name in ("nodes", "devices")))
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("nodes", "devices")]
    assert all(report.pop("seconds") > 0 for report in reports) and reports[0] == reports[1]
