"""Banks of a sweep: made once, after their teacher and before the arms that name them."""

import dataclasses
import json
from pathlib import Path

import pytest

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")
pytest.importorskip("sklearn")

from cls2det.cli import main
from cls2det.study.banks import banks_of
from cls2det.study.place import Place
from cls2det.study.plan import load_plan
from cls2det.study.trainings import student_trainings, teacher_trainings
from cls2det.teachers.bank import Bank
from rectangles import make_rectangles
from sweep_cases import TINY, ran, write

TEACHER = {"width": 16, "crop_size": 32} | TINY["teachers"]["teacher"]
TRAIN = {"augmentation": "jitter_flip", "box_weight": 2.0} | TINY["train"]
KD_CLS = {"classifier": {"kd_cls_weight": 0.5}}


def plan_of(path, arms, banks, **changes):
    parts = {"scenes": None, "teachers": {"teacher": TEACHER}, "train": TRAIN, "seeds": [5]}
    return write(path, **parts | {"arms": arms, "banks": banks} | changes)


def parts_of(config, seeds, **options):
    plan = dataclasses.replace(load_plan(config, **options), seeds=seeds)
    place = Place(Path("data"), Path("out"), {"device": "cpu"})
    return teacher_trainings(plan, place), banks_of(plan, place), student_trainings(plan, place)


def test_a_bank_is_made_once_after_its_teacher_and_read_by_name(tmp_path, ran, capsys):
    data, config, out = make_rectangles(tmp_path / "data"), tmp_path / "arms.yaml", tmp_path / "out"
    command = ["sweep", "--config", str(config), "--data-root", str(data), "--out", str(out), "--device", "cpu"]
    arms = {"bank": {"bank": "two"} | KD_CLS, "both": {"bank": ["one", "two"]} | KD_CLS}
    banks = {"one": {"teacher": "teacher"}, "two": {"teacher": "teacher", "views": 2}, "unused": {"teacher": "nobody"}}
    plan_of(config, arms, banks)
    assert main(command) == 0
    first = ["teacher", "bank one", "bank two", "bank, seed 5", "both, seed 5"]
    assert ran == first
    files = [out / "banks" / f"{name}.safetensors" for name in ("one", "two")]
    options = [json.loads((out / "runs" / f"{arm}-seed5" / "options.json").read_text()) for arm in arms]
    assert [each["bank"] for each in options] == [[str(files[1])], [str(file) for file in files]]
    about = Bank(files[1]).about
    assert options[0]["weights"]["bank"] == about["digest"] and "teacher" not in options[0]["weights"]
    assert (about["augmentation"], about["flip"], about["views"]) == ("jitter_flip", True, 2)  # those of the arms
    assert "bank two: 24 boxes, 2 views of augmentation jitter_flip, mirrored too" in (out / "report.md").read_text()

    arms["later"] = {"bank": "later"} | KD_CLS
    banks["later"] = {"teacher": "teacher", "margins": [0.1]}
    plan_of(config, arms, banks)
    assert main(command) == 0 and ran[5:] == ["bank later", "later, seed 5"]  # nothing is done twice
    files[0].unlink()
    (out / "runs" / "both-seed5" / "val" / "evaluation.json").unlink()
    assert main(command) == 0 and ran[7:] == ["bank one", "both, seed 5"]  # the same bytes, or the run would be refused
    plan_of(config, arms, banks | {"two": {"teacher": "teacher", "views": 3}})
    capsys.readouterr()
    assert main(command) == 2 and f"{files[1]} is a bank with other options or data" in capsys.readouterr().err
    assert len(ran) == 9


def test_a_bank_of_a_teacher_per_seed_is_one_per_seed(tmp_path):
    arms = {"own": {"bank": "own"} | KD_CLS, "shared": {"bank": "shared"} | KD_CLS}
    banks = {
        "own": {"teacher": "own", "split": "part", "augmentation": "none", "flip": True},
        "shared": {"teacher": "teacher"},
    }
    teachers = {"teacher": TEACHER, "own": TEACHER | {"per_seed": True}}
    config = plan_of(tmp_path / "arms.yaml", arms, banks, teachers=teachers)
    trainings, made, students = parts_of(config, [5, 6])
    assert [training.name for training in trainings] == ["own-seed5", "own-seed6", "teacher"]
    names = ["bank own-seed5", "bank own-seed6", "bank shared"]
    assert [bank.name for bank in made] == names and [bank.options.seed for bank in made] == [5, 6, 0]
    assert [bank.options.teacher.parent.name for bank in made] == ["own-seed5", "own-seed6", "teacher"]
    assert (made[0].options.split, made[0].options.augmentation, made[0].options.flip) == ("part", "none", True)
    read = [[path.stem for path in training.options.bank] for training in students]
    assert read == [["own-seed5"], ["shared"], ["own-seed6"], ["shared"]]  # whole pairs first
    assert all(training.options.teacher is None for training in students)


def test_a_bank_reads_pictures_at_the_size_of_the_arms(tmp_path):
    arms = {"both": {"bank": ["shared", "own"]} | KD_CLS}
    banks = {"shared": {"teacher": "teacher"}, "own": {"teacher": "teacher", "max_image_side": 64}}
    config = plan_of(tmp_path / "arms.yaml", arms, banks, train=TRAIN | {"max_image_side": 80})
    _, made, students = parts_of(config, [5])
    assert {bank.name: bank.options.max_image_side for bank in made} == {"bank shared": 80, "bank own": 64}
    assert students[0].options.max_image_side == 80


@pytest.mark.parametrize(
    ("arm", "bank", "message"),
    [
        ({"bank": "nope"}, {"teacher": "teacher"}, "bank: nope is neither a file nor one of the sweep's banks (one)"),
        ({"bank": "one"}, {"teacher": "nope"}, "teacher: nope is neither a file nor one of the sweep's teachers (teacher)"),
        ({"bank": "one"}, {"teacher": "teacher", "view": 2}, "bank one: "),
        ({"bank": "one"}, {"teacher": "teacher", "devices": 2}, "bank one: a bank of a sweep is made by one process"),
        (
            {"bank": "one", "student": "ssd300_vgg16"},
            {"teacher": "teacher"},
            "a teacher for ssd_compact does not fit ssd300_vgg16",
        ),
        (
            {"bank": "one", "classifier": {"kd_cls_weight": 1.0, "kd_loc_weight": 1.0}},
            {"teacher": "teacher"},
            "+ KD-cls, seed 5: KD-loc compares layers of a teacher, which a bank does not have",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_once(tmp_path, ran, capsys, arm, bank, message):
    data, train = make_rectangles(tmp_path / "data"), TRAIN | {"student": arm.pop("student", "ssd_compact")}
    config = plan_of(tmp_path / "arms.yaml", {"+ KD-cls": KD_CLS | arm}, {"one": bank}, train=train)
    assert (
        main(["sweep", "--config", config, "--data-root", str(data), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    )
    assert message in capsys.readouterr().err and not ran


def same(left, right, *others):
    """Whether two records of options are the same but for ``others``."""
    (left, right) = ({**dataclasses.asdict(each), **dict.fromkeys(others)} for each in (left, right))
    left["optim"].pop("epochs"), right["optim"].pop("epochs")  # where there are steps
    return left == right


@pytest.mark.parametrize(("other_data", "model"), [(False, "demo"), (True, "study-own")])
def test_the_study_of_banks_is_the_demo_on_scenes_and_study_own_on_other_data(other_data, model):
    """All but its arms: so its figures may stand beside theirs."""
    (teachers, banks, students), (like, _, others) = (
        parts_of(name, [5], other_data=other_data) for name in ("study-bank", model)
    )
    assert [training.name for training in teachers] == [training.name for training in like]
    for training, other in zip(teachers, like, strict=True):
        assert training.options.optim == other.options.optim and same(training.options, other.options, "val_split")
    for name in ("baseline", "+ KD-cls"):
        pair = (next(each.options for each in group if each.options.name == name) for group in (students, others))
        assert same(*pair)
    assert [(bank.options.views, bank.options.augmentation) for bank in banks] == [
        (views, "jitter_flip" if other_data else "jitter") for views in (1, 2, 4)
    ]
