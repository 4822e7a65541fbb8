"""Sweeps and the demo made of one: every arm is trained once with every seed, and reported."""

import dataclasses
import json
import os
import shutil
import sys

import pytest
import yaml

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")
pytest.importorskip("sklearn")

from other_layouts import make_yolo

from cls2det.cli import main
from cls2det.commands.identity import identity
from cls2det.commands.options import DistillOptions, PretrainOptions, TeacherOptions
from cls2det.commands.parsing import parse_options, read_yaml
from cls2det.recipes import find_recipe, recipe_names
from cls2det.study import sweep as sweep_module
from cls2det.study.banks import banks_of
from cls2det.study.place import Place
from cls2det.study.plan import load_plan, merge
from cls2det.study.trainings import check_students, detector_trainings, student_trainings, teacher_trainings
from rectangles import make_rectangles
from sweep_cases import TINY, ran, write

ARMS = ["baseline", "+ KD-cls"]


def test_demo_writes_its_report_and_does_nothing_twice(tmp_path, ran, capsys):
    config, out = write(tmp_path / "tiny.yaml", extends="demo-quick", seeds=[11]), tmp_path / "demo"
    command = ["sweep", "--config", config, "--out", str(out), "--device", "cpu", "--workers", "1"]
    assert main(command) == 0
    assert ran == ["teacher", "start"] + [f"{arm}, seed 11" for arm in ARMS]
    for name in ("report.md", "report.json", "runs.csv", "gain.png", "detections.png"):
        assert (out / name).stat().st_size > 200
    text, content = (out / "report.md").read_text(), json.loads((out / "report.json").read_text())
    assert "oo short" in text and "crops of 8 images" in text
    table = content["students"]["ssd_compact"]["table"]
    assert list(table) == ARMS and table["+ KD-cls"]["standard error"] is None
    assert main([*command, "--seeds", "11", "12"]) == 0  # the first seed is kept, the second is trained
    assert ran[4:] == [f"{arm}, seed 12" for arm in ARMS]
    write(tmp_path / "tiny.yaml", extends="demo-quick", train=TINY["train"] | {"box_weight": 9.0})
    capsys.readouterr()
    assert main(command) == 2 and "train.box_weight was 2.0, is 9.0" in capsys.readouterr().err


def test_arms_change_what_they_say(tmp_path):
    """Options of every training are the shared ones and the arm's; a teacher per seed has that seed; a grid makes its arms."""
    arms = {"baseline": {}, "own": {"teacher": "own", "classifier": {"kd_cls_weight": 0.5}}}
    own = {"images": 4, "per_seed": True, "width": 16, "crop_size": 32} | TINY["teachers"]["teacher"]
    config = write(
        tmp_path / "arms.yaml",
        teachers={"own": own, "unused": {}},
        arms=arms,
        grid={"classifier.loc_weight": [1.0, 2.0], "box_weight": [3.0]},
        students=["ssd_compact", "retinanet_compact"],
        seeds=[5, 6],
    )
    plan, place = load_plan(config), Place(tmp_path / "data", tmp_path / "out", {"device": "cpu"})
    teachers, students = teacher_trainings(plan, place), student_trainings(plan, place)
    assert [training.name for training in teachers] == ["own-seed5", "own-seed6"]
    assert [training.options.seed for training in teachers] == [5, 6]
    for options in (training.options for training in students):
        weights = options.classifier.kd_cls_weight, options.classifier.kd_loc_weight, options.classifier.loc_weight
        expected = {"baseline": (0, 0, 0), "own": (0.5, 0, 0)}.get(options.name)
        if expected is None:
            expected = (0, 0, float(options.name.removeprefix("box_weight=3.0, loc_weight=")))
            assert options.box_weight == 3.0
        assert weights == expected
        assert options.images == 4 and options.optim.steps == 2 and options.run.device == "cpu"
        teacher = tmp_path / "out" / "teachers" / f"own-seed{options.seed}" / "weights.pt"
        assert options.teacher == (teacher if options.name == "own" else None)
    assert len({(training.options.student, training.options.name, training.options.seed) for training in students}) == 16
    assert len({training.folder for training in students}) == len(students) == 16
    assert [training.options.seed for training in students] == [5] * 8 + [6] * 8  # whole pairs first


def test_detectors_are_trained_before_the_students_that_they_teach(tmp_path, ran):
    """Two methods and their sum, from one YAML: the detector once, its path in the arms, and Table 2 in the report."""
    arms = {
        "baseline": {},
        "FKD": {"detector_teacher": "big", "distillers": ["fkd"]},
        "ours + FKD": {
            "teacher": "teacher",
            "detector_teacher": "big",
            "distillers": ["classifier", "fkd"],
            "classifier": {"kd_cls_weight": 0.4},
        },
    }
    teacher = {"width": 16, "crop_size": 32} | TINY["teachers"]["teacher"]
    big = {"student": "ssd_compact_wide", "name": "other"} | TINY["train"]
    config = write(
        tmp_path / "arms.yaml", teachers={"teacher": teacher}, detectors={"big": big, "unused": big}, arms=arms, seeds=[5]
    )
    out = tmp_path / "out"
    command = ["sweep", "--config", config, "--out", str(out), "--device", "cpu", "--workers", "1"]
    assert main(command) == 0
    assert ran == ["teacher", "detector big", *(f"{arm}, seed 5" for arm in sorted(arms))]
    options = {name: json.loads((out / "runs" / f"{name}-seed5" / "options.json").read_text()) for name in ("baseline", "fkd")}
    assert options["fkd"]["detector_teacher"] == str(out / "detectors" / "big" / "weights.pt")
    assert "detector_teacher" not in options["baseline"] and options["baseline"]["command"] == "train"
    text = (out / "report.md").read_text()
    assert "detector teacher `big`: ssd_compact_wide, 4 images" in text
    content = json.loads((out / "report.json").read_text())
    assert list(content["students"]["ssd_compact"]["table"]) == list(arms)  # and the teacher is no arm
    assert main(command) == 0 and len(ran) == 5  # nothing is done twice


def test_a_method_that_does_not_fit_is_refused_at_once(tmp_path, ran, capsys):
    arms = {"KD": {"detector_teacher": "big", "distillers": ["chen"]}}
    big = {"student": "ssd_compact_wide"} | TINY["train"]
    config = write(tmp_path / "arms.yaml", detectors={"big": big}, arms=arms, seeds=[5])
    assert main(["sweep", "--config", config, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "chen teaches the two stages of a Faster R-CNN; the student is a SSD" in capsys.readouterr().err and not ran


@pytest.mark.parametrize("name", ["table2", "table2-retinanet", "table2-ssd512", "methods", "methods-two-stage"])
def test_sweeps_of_methods_fit_their_students(tmp_path, name):
    """Every training of the shipped sweep: detectors train alone, arms distil what their names say, methods fit students."""
    plan, place = load_plan(name), Place(tmp_path / "data", tmp_path / "out", {"device": "cpu"})
    teachers, detectors, students = (
        trainings(plan, place) for trainings in (teacher_trainings, detector_trainings, student_trainings)
    )
    assert students and not any(training.options.distils for training in detectors)
    distillers = {"KD": ["chen"], "baseline": [], "ours": ["classifier"], "ours + FKD": ["classifier", "fkd"]}
    for training in students:
        options = training.options
        expected = distillers.get(options.name, [options.name.lower()])
        assert options.distillers == expected or (name.startswith("methods") and options.name in ("baseline", "ours"))
        assert bool(options.detector_teacher) == any(distiller != "classifier" for distiller in expected)
        assert bool(options.teacher) == ("classifier" in expected)
        assert identity(options)["command"] == ("distill" if expected else "train")
    check_students(students, teachers, detectors)


def test_an_edited_arm_is_not_passed_off_as_the_old_one(tmp_path, ran, capsys):
    config, out = tmp_path / "arms.yaml", tmp_path / "out"
    command = ["sweep", "--config", str(config), "--out", str(out), "--device", "cpu", "--workers", "1"]

    def arms(**arms):
        write(config, teachers={}, arms=arms, seeds=[5])

    arms(baseline=None, loc={"classifier": {"loc_weight": 1.0}})
    assert main(command) == 0
    arms(baseline=None, loc={"classifier": {"loc_weight": 50.0}})
    assert main(command) == 2 and "holds a run with other options (classifier)" in capsys.readouterr().err
    arms(baseline=None, **{"+ loc": {}, "loc": {}})
    assert main(command) == 2 and "two arms would be written to" in capsys.readouterr().err
    assert len(ran) == 2


@pytest.mark.parametrize("place", ["train", "teachers", "detectors", "arms"])
def test_a_training_of_two_processes_is_refused_at_once(tmp_path, monkeypatch, capsys, place):
    """Lightning would start the second by running the sweep again."""
    monkeypatch.setattr(sweep_module, "run_jobs", lambda *_: pytest.fail("it was not refused"))
    plan = {
        "teachers": {"teacher": dict(TINY["teachers"]["teacher"])},
        "detectors": {"big": {"student": "ssd_compact_wide"} | TINY["train"]},
        "train": dict(TINY["train"]),
        "arms": {"all": {"teacher": "teacher", "detector_teacher": "big", "distillers": ["classifier", "fkd"]}},
    }
    options = plan[place] if place == "train" else next(iter(plan[place].values()))
    options["run"] = {"checkpoint_every": 2, "num_nodes" if place == "arms" else "devices": 2}
    config = write(tmp_path / "arms.yaml", seeds=[5], **plan)
    assert main(["sweep", "--config", config, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    message = capsys.readouterr().err
    name = {"teachers": "teacher", "detectors": "detector big"}.get(place, "all, seed 5")
    assert message.startswith(f"cls2det sweep: {name}: a training of a sweep is one process, found run.devices")
    assert not (tmp_path / "out").exists()


def test_a_copy_of_the_study_takes_other_data(scenes, tmp_path, ran):
    """A copy of the study with ``scenes: null``, as the documentation of the command line says."""
    content = yaml.safe_load(find_recipe("study").read_text())
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(merge(content, TINY, {"scenes": None, "arms": {"baseline": None}, "seeds": [5]})))
    out, own = str(tmp_path / "out"), ["--data-root", str(scenes), "--arms", "baseline"]
    assert main(["sweep", "--config", str(config), "--out", out, "--device", "cpu", "--split", "val", *own]) == 0
    assert ran[-1] == "baseline, seed 5"


def test_an_unknown_teacher_is_refused_at_once(tmp_path, ran, capsys):
    for key in ("teacher", "start"):
        config = write(
            tmp_path / "arms.yaml", arms={"+ KD-cls": {key: "nope", "classifier": {"kd_cls_weight": 0.5}}}, seeds=[5]
        )
        assert main(["sweep", "--config", config, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
        assert f"{key}: nope is neither a file nor one of the sweep's teachers" in capsys.readouterr().err
    assert not ran and not (tmp_path / "out").exists()


def test_torchrun_is_refused_at_once(tmp_path, monkeypatch, capsys):
    """Each of its processes would run the whole sweep, all into one folder."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = write(tmp_path / "arms.yaml", arms={"baseline": None}, seeds=[5])
    assert main(["sweep", "--config", config, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith("cls2det sweep: a sweep is one process")
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_another_normalisation_is_refused_at_once(tmp_path, ran, capsys):
    arms = {"+ KD-cls": {"teacher": "other", "classifier": {"kd_cls_weight": 0.5}}}
    other = {"student": "ssd300_vgg16", "architecture": "resnet18"} | TINY["teachers"]["teacher"]
    config = write(tmp_path / "arms.yaml", teachers={"other": other}, arms=arms, seeds=[5])
    assert main(["sweep", "--config", config, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "a teacher for ssd300_vgg16 does not fit ssd_compact" in capsys.readouterr().err and not ran


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_one(tmp_path, name):
    """Every file that comes with the package parses as what its options say, and says in its first line what it is."""
    text, paths = find_recipe(name).read_text(), {"data_root": "x", "out": "y"}
    assert text.startswith("# ") and len(text.splitlines()[0]) > 20
    if text.startswith("# Sweep"):
        plan, place = load_plan(name), Place(tmp_path / "data", tmp_path / "out", {})
        plan = dataclasses.replace(plan, seeds=plan.seeds[:1])  # more are more of the same
        students = student_trainings(plan, place)  # raises where a teacher is unknown
        assert len(students) == len(plan.arms) * len(plan.students or [None])
        files = {str(training.weights) for training in (*teacher_trainings(plan, place), *detector_trainings(plan, place))}
        options, banks = [training.options for training in students], banks_of(plan, place)
        assert {made.options.out for made in banks} == {path for option in options for path in option.bank or ()}
        sources = {str(path) for option in options for path in (option.teacher, option.start, option.detector_teacher) if path}
        sources |= {str(made.options.teacher) for made in banks}
        assert files == {path for path in sources if not path.startswith("torchvision:")}
    else:
        record = {"teacher": TeacherOptions, "pretrain": PretrainOptions}.get(name.split("-")[0], DistillOptions)
        parse_options(record, read_yaml(name) | paths)


def test_scenes_name_the_extra_that_they_need(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "skimage", None)
    config = write(tmp_path / "tiny.yaml", extends="demo-quick")
    assert main(["sweep", "--config", config, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    text = capsys.readouterr().err
    assert "scikit-image: pip install 'cls2det[study]'" in text and text.count("\n") == 1


def test_errors(tmp_path, capsys):
    def error(config, *more):
        assert main(["sweep", "--config", str(config), "--out", str(tmp_path / "out"), *more]) == 2
        return capsys.readouterr().err

    assert "no file and no recipe nothing; recipes: " in error("nothing")
    (tmp_path / "odd.yaml").write_text("epochs: 3")
    assert "is not a sweep: expected train, seeds" in error(tmp_path / "odd.yaml")
    config = write(tmp_path / "tiny.yaml", extends="demo-quick")
    assert "no folder of data at x" in error(config, "--data-root", "x")
    assert "no arm fast; there are baseline, + KD-cls" in error(config, "--arms", "fast")
    for key, value in {"arms": ["baseline"], "seeds": 3, "train": [1], "grid": [2], "teachers": {"teacher": 4}}.items():
        assert f"{key} must be a " in error(write(tmp_path / "odd.yaml", **{"seeds": [1], key: value})).replace(
            "teacher of ", ""
        )
    (tmp_path / "broken.yaml").write_text("arms: [")
    assert "while parsing" in error(tmp_path / "broken.yaml")
    assert "scenes: " in error(write(tmp_path / "odd-scenes.yaml", extends="demo-quick", scenes={"colour": 3}))
    shutil.rmtree(tmp_path / "out")
    os.makedirs(tmp_path / "out")
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert "holds something other than a sweep" in error(config)


SWEEPS = [name for name in recipe_names() if find_recipe(name).read_text().startswith("# Sweep")]


@pytest.mark.parametrize("name", SWEEPS)
def test_on_other_data_no_sweep_inherits_what_is_true_of_the_scenes_alone(name):
    """Neither a count of images nor a note on what was trained on which scenes."""
    plan = load_plan(name, other_data=True)
    options = [plan.train, *plan.teachers.values(), *plan.detectors.values(), *plan.arms.values()]
    assert plan.scenes is None and not any("images" in training for training in options)
    assert not any(word in note for note in plan.notes for word in ("scene", "300", "val", "seeds 3"))


def test_what_a_file_says_of_its_scenes_does_not_win_over_what_it_says_of_all_data(tmp_path):
    config = write(tmp_path / "mine.yaml", extends="demo", seeds=[5], notes=["mine"], on_scenes={"notes": ["on scenes"]})
    assert load_plan(config).train["images"] == 4  # of TINY; the demo says 300 on its scenes
    assert load_plan(config).notes == ["on scenes", "mine"] and load_plan(config, other_data=True).notes == ["mine"]
    config = write(tmp_path / "mine.yaml", seeds=[5], on_scenes={"arms": {}})
    with pytest.raises(ValueError, match="on_scenes must be a mapping of detectors, notes, teachers, train"):
        load_plan(config)


def test_own_data_take_the_place_of_the_scenes(tmp_path, ran, capsys):
    """The study on a YOLO folder, its trainings cut short: all images, no note on scenes; a test split that is not there is named."""
    own = make_yolo(make_rectangles(tmp_path / "coco"), tmp_path / "own")
    short = {name: part for name, part in TINY.items() if name != "scenes"}
    short["train"] = {name: value for name, value in TINY["train"].items() if name != "images"}
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump({"extends": "study", **short, "seeds": [5]}))
    command = ["sweep", "--config", str(config), "--data-root", str(own), "--out", str(tmp_path / "out"), "--device", "cpu"]
    command += ["--arms", "baseline", "+ KD-cls"]
    assert main(command) == 2
    assert "test: ../test/images is not there" in capsys.readouterr().err and not ran
    assert main([*command, "--split", "val"]) == 0
    assert ran[-2:] == ["baseline, seed 5", "+ KD-cls, seed 5"]
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert not any("scene" in note or "300" in note for note in content["notes"])
    assert {run["images"] for run in content["runs"]} == {12}
    assert list(content["runs"][0]["AP by class"]) == ["red", "green", "blue"]
