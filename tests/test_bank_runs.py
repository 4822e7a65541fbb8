"""Runs that read a bank, and wrong banks: one error each, before anything is trained."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from bank_cases import CLASSES, KD_CLS, SHORT, data, make, teacher, written
from cls2det.cli import main
from cls2det.distill import ClassifierSettings
from cls2det.models.students import build_student
from cls2det.models.weights import write_weights
from cls2det.teachers import bank_file
from cls2det.teachers.bank import Bank
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.training.settings import Optim
from rectangles import change_annotations
from training_cases import distill, weights_in

# ---- runs


def run(data, out, bank, **options):
    return distill(data, out, None, bank=bank if isinstance(bank, list) else [bank], classifier=KD_CLS, **SHORT | options)


def test_a_run_reads_the_bank_and_resumes_exactly(data, written, tmp_path):
    options = {"augmentation": "ssd", "allow_poor_teacher": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run(data, tmp_path / "whole", written, **options)

    def progress(step, steps, text):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "stopped", written, progress=progress, **options)
    assert not (tmp_path / "stopped" / "weights.pt").exists()
    run(data, tmp_path / "stopped", written, **options)
    whole, resumed = (weights_in(tmp_path / name / "weights.pt") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    inputs = json.loads((tmp_path / "whole" / "options.json").read_text())["weights"]
    assert inputs == {"bank": Bank(written).about["digest"]}


def test_a_run_of_several_banks_beside_a_teacher(data, teacher, written, tmp_path):
    make(data, tmp_path / "one", teacher)
    with pytest.warns(UserWarning, match="holds no mirrored views, and augmentation flip mirrors pictures"):
        distill(
            data,
            tmp_path / "run",
            teacher,
            bank=[written, tmp_path / "one"],
            bank_weights=[1.0, 2.0],
            classifier=ClassifierSettings(kd_loc_weight=2.0, feature_layers=("layer1",)),
            **SHORT | {"augmentation": "flip", "optim": Optim(steps=2, batch_size=4)},
        )


def test_another_bank_under_the_name_is_noticed(data, teacher, written, tmp_path):
    path = tmp_path / "bank"
    shutil.copy(written, path)
    run(data, tmp_path / "run", path)
    path.unlink()
    make(data, path, teacher, flip=True)
    with pytest.raises(FileExistsError, match="the file of bank holds other weights than then"):
        run(data, tmp_path / "run", path)


def test_the_commands(data, teacher, tmp_path, capsys):
    words = ["--data-root", str(data), "--teacher", str(teacher), "--out", str(tmp_path / "bank"), "--device", "cpu"]
    assert main(["bank", *words, "--flip", "true", "--val-split", "val"]) == 0
    assert "crops per second" in capsys.readouterr().out
    assert Bank(tmp_path / "bank").about["calibration"]["split"] == "val"
    words = ["--data-root", str(data), "--bank", str(tmp_path / "bank"), "--out", str(tmp_path / "run")]
    words += ["--run.device", "cpu", "--optim.steps", "2", "--backbone-weights", "none"]
    assert main(["distill", *words, "--classifier.kd-loc-weight", "1"]) == 2
    assert "KD-loc compares layers of a teacher, which a bank does not have" in capsys.readouterr().err
    assert main(["distill", *words]) == 0


# ---- wrong banks: one error each, before anything is trained


def move_a_box(content):
    content["annotations"][3]["bbox"][0] += 1


def rename_a_class(content):
    content["categories"][0]["name"] = "white"


def reorder_classes(content):
    content["categories"][0]["id"], content["categories"][1]["id"] = 2, 1


def swap_two_ids(content):
    first, second = content["annotations"][:2]
    first["id"], second["id"] = second["id"], first["id"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (move_a_box, "was made of other data .* it has other boxes"),
        (rename_a_class, "only .* has 'white'"),
        (reorder_classes, "in another order"),
        (swap_two_ids, r"it has other .*annotation ids \(36 as then, but others\)"),
        (lambda content: content["annotations"].pop(), r"boxes \(36 then, 35 now\)"),
    ],
)
def test_other_data(data, written, tmp_path, change, message):
    shutil.copytree(data, tmp_path / "data")
    change_annotations(tmp_path / "data", "train", change)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "data", tmp_path / "run", written)
    assert not (tmp_path / "run").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)


def change_the_header(path):
    content = path.read_bytes()
    assert content.count(b'"seed\\": 0') == 1
    path.write_bytes(content.replace(b'"seed\\": 0', b'"seed\\": 1'))


def break_the_header(path):
    path.write_bytes(path.read_bytes().replace(b'"dtype"', b'"dtipe"', 1))


def later_version(path):
    path.write_bytes(path.read_bytes().replace(b'"version": "1"', b'"version": "9"', 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "is cut: it has .* bytes, its header says"),
        (flip_a_bit, "is damaged: its content does not have the digest"),
        (change_the_header, "is damaged: its content does not have the digest"),
        (break_the_header, "its header is damaged"),
        (later_version, "is a bank of version 9"),
        (lambda path: path.write_bytes(b"something else"), "is not a bank"),
        (lambda path: path.write_bytes(b""), "is not a bank"),
        (lambda path: write_weights(path, "student", {}, {}), "is not a bank"),
    ],
)
def test_damaged_files(data, written, tmp_path, damage, message):
    path = tmp_path / "bank"
    shutil.copy(written, path)
    damage(path)
    with pytest.raises(ValueError, match=message):
        run(data, tmp_path / "run", path)
    assert not (tmp_path / "run").exists()


def rewritten(source, path, **changes):
    """The bank with another header."""
    about, arrays = bank_file.open_bank(source)
    about = {name: value for name, value in about.items() if name != "digest"} | changes
    words = {"int64": "I64", "float16": "F16"}
    shapes = {name: (words[array.dtype.name], array.shape) for name, array in arrays.items()}

    def fill(maps):
        for name, array in arrays.items():
            maps[name][:] = array

    bank_file.begin(path, about, shapes, 1, fill)
    bank_file.Part(path, 1).finish(about)
    return path


def test_other_normalisation_head_chance_and_size(data, written, tmp_path):
    about = Bank(written).about
    pictures = about["pictures"]
    other = {**pictures, "transform": {**pictures["transform"], "image_mean": [0.0, 0.0, 0.0]}}
    with pytest.raises(ValueError, match="its teacher looks at other pictures"):
        run(data, tmp_path / "run", rewritten(written, tmp_path / "mean", pictures=other))
    own = {**about["teacher"], "own_normalisation": True}
    Bank(rewritten(written, tmp_path / "own", pictures=other, teacher=own)).check_pictures(
        build_student("ssd_compact", 3).transform
    )
    with pytest.raises(ValueError, match=r"has a softmax for its classes, and .* was trained with bce alone"):
        run(data, tmp_path / "run", rewritten(written, tmp_path / "bce", loss="bce"), allow_poor_teacher=False)
    mapped = rewritten(written, tmp_path / "mapped", teacher={**about["teacher"], "mapped_for": "sigmoid"})
    with pytest.raises(ValueError, match="maps the teacher's classes for a sigmoid, and ssd_compact has a softmax"):
        run(data, tmp_path / "run", mapped, allow_poor_teacher=False)
    poor = {**about["calibration"], "by head": {"softmax": {**about["calibration"]["by head"]["softmax"], "accuracy": 33.0}}}
    path = rewritten(written, tmp_path / "poor", calibration=poor)
    with pytest.raises(ValueError, match="it would teach nothing"):
        run(data, tmp_path / "run", path, allow_poor_teacher=False)
    large = {**pictures, "transform": {**pictures["transform"], "fixed_size": [800, 800]}}
    with pytest.warns(UserWarning, match="cut out of pictures of 800 pixels"):
        Bank(rewritten(written, tmp_path / "large", pictures=large)).check_pictures(build_student("ssd_compact", 3).transform)
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_was_trained_anew(data, teacher, tmp_path):
    weights = tmp_path / "weights.pt"
    shutil.copy(teacher, weights)
    make(data, tmp_path / "bank", weights)
    CropClassifier(CLASSES).save(weights)
    with pytest.raises(ValueError, match=r"was made of other weights than .* holds now"):
        distill(data, tmp_path / "run", weights, bank=[tmp_path / "bank"], **SHORT)


def test_banks_that_nothing_reads(data, written, tmp_path):
    with pytest.raises(ValueError, match="holds logits, which none of the distillers regions reads"):
        run(data, tmp_path / "run", written, distillers=["regions"])
    with pytest.raises(ValueError, match="bank_weights are of several banks with logits, found 1"):
        run(data, tmp_path / "run", written, bank_weights=[1.0])
    with pytest.raises(ValueError, match="bank_visible must be a share"):
        run(data, tmp_path / "run", written, bank_visible=1.5)
    with pytest.raises(ValueError, match="holds no embeddings, but logits"):
        Bank(written).embeddings([1])
