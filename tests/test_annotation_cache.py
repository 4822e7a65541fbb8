"""A large annotation file is parsed once, and its cache gives what the file gives: data, warnings and errors, to the word."""

import contextlib
import io
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")
pytest.importorskip("resource")

import resource

from torch.utils.data import DataLoader

from cls2det.data import cache, json_parts
from cls2det.data.dataset import DetectionData
from cls2det.data.fingerprint import fingerprint
from cls2det.data.loader import collate, train_loader
from cls2det.data.overview import overview
from cls2det.evaluation.coco import coco_table
from mapped_items import MappedItems
from rectangles import annotation_file, change_annotations, make_rectangles


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Data whose annotation files are so large that they have a cache; they are parsed in parts of a few annotations."""
    monkeypatch.setattr(cache, "LARGE", 1)
    monkeypatch.setattr(json_parts, "PART", 300)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return make_rectangles(tmp_path / "data")


def place(root, split="train"):
    file = annotation_file(root, split)
    return file.with_name(f"{file.name}.cls2det")


def outcome(root, **options):
    """All that a split gives, and what is told of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            data = DetectionData(root, "train", **options)
        except (ValueError, OSError, IndexError) as error:
            result = (type(error), str(error))
        else:
            targets = [{name: (value.dtype, value.tolist()) for name, value in target.items()} for target in data.targets]
            sizes = [data.size_of(index) for index in range(len(data))]
            result = (
                *(targets, data.classes, data.category_ids, list(data.files.items()), sizes, list(map(repr, sizes))),
                *(data.class_counts(), fingerprint(data), overview(data), data.coco.dataset, data.columns.heading),
                *(data.targets.boxes().tolist(), data.targets.labels().tolist(), data.targets.counts().tolist()),
                [image.sum().item() for image, _ in map(data.__getitem__, range(2))],
            )
    return result, [str(warning.message) for warning in caught]


def assert_all_ways_agree(root, monkeypatch, **options):
    """Without a cache; as it is made, with and without msgspec; as it is read."""
    with monkeypatch.context() as patch:
        patch.setattr(cache, "LARGE", 1 << 40)
        expected = outcome(root, **options)
        assert not place(root).exists()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "msgspec", None)
        assert outcome(root, **options) == expected
        place(root).unlink(missing_ok=True)
    assert outcome(root, **options) == expected
    if place(root).exists():
        with monkeypatch.context() as patch:
            patch.setattr(cache, "_read", None)
            assert outcome(root, **options) == expected
    assert not list(root.rglob("*.part"))
    return expected


# ---------------------------------------------------------------- the same, with and without


def each(name, *values):
    def spoil(content, draw):
        for one in draw.sample(content["annotations"], draw.randint(1, 4)):
            one[name] = draw.choice(values)

    return spoil


def some_images(name, *values):
    return lambda content, draw: draw.choice(content["images"]).update({name: draw.choice(values)})


def drop(name):
    return lambda content, draw: draw.choice(content["annotations"]).pop(name, None)


def repeat(content, draw):
    content["annotations"] += [{**one, "id": 500 + number} for number, one in enumerate(content["annotations"][:6])]


def text_that_looks_like_an_end(content, draw):
    for one in content["annotations"]:
        one["note"] = draw.choice(['}, {"id": 1}, {', "}]}, {[", 'a "quoted" }, {', "\\"])
        one["parts"] = [{"a": 1}, {"b": [{}, {"c": "}, {"}]}]


def shift_ids(content, draw):
    draw.shuffle(content["images"])
    draw.shuffle(content["annotations"])


SPOILERS = {
    "boxes that are none": each("bbox", None, [], [1, 2, 3], ["1", 2, 3, 4], [1, 2, -3, 4], [1, 2, 3, True], [1, 2, 3, [4]]),
    "boxes that are not finite": each("bbox", [float("nan"), 2, 3, 4], [1, 2, float("inf"), 4]),
    "boxes outside": each("bbox", [1000, 5, 9, 9], [5, 5, 0, 9], [5, 5, 1e-9, 9.5], [-5, -5, 500, 500], [1e300, 1, 9, 9]),
    "boxes beyond 64 bits": each("bbox", [10**25, 2, 3, 4], [-0.0, 0, 10, 10]),
    "areas": each("area", None, 0, -5, 1e9, "120", True, [3], 7, 0.5),
    "crowds": each("iscrowd", 0, 1, True, "false", None, 1.0),
    "crowds that are none": each("iscrowd", 2, "no", [0]),
    "ids": each("id", None, 0, 3, "a", 2**70, 1.5, True, -(2**63), 2**63),
    "images that are not listed": each("image_id", 99, "5", 3.0, True, None, 2**65, -1),
    "categories": each("category_id", 2.0, 3, 1),
    "categories that are not listed": each("category_id", 9, "1", True, 2**65),
    "no id": drop("id"),
    "no box": drop("bbox"),
    "no area": drop("area"),
    "no image": drop("image_id"),
    "outlines": each("segmentation", [[1, 2, 3.5]], {"counts": [1, 2], "size": [3, 4]}),
    "duplicates": repeat,
    "names": some_images("file_name", "001.png", "\\001.png", "", 5, "\ud800.png"),
    "sizes": some_images("width", 96.0, 0, "96", None, float("inf"), True),
    "ids of images": some_images("id", 1, 2**64, "1", 5.0),
    "other order": shift_ids,
    "texts": text_that_looks_like_an_end,
    "names of classes": lambda content, draw: content["categories"][0].update(
        name=draw.choice(["green", "Blue", 3, "\ud83d"])
    ),
    "no annotations": lambda content, draw: content["annotations"].clear(),
    "no images": lambda content, draw: content["images"].clear(),
    "other things": lambda content, draw: content["annotations"].append(draw.choice([3, None, []])),
}


@pytest.mark.parametrize("name", SPOILERS)
def test_awkward_data_are_the_same(name, root, monkeypatch):
    for seed in range(3):
        draw = random.Random(f"{name}{seed}")
        shutil.copyfile(annotation_file(root, "val"), annotation_file(root, "other"))
        make_rectangles(root, splits={"train": 12}, seed=seed)
        change_annotations(root, "train", lambda content, draw=draw: SPOILERS[name](content, draw))
        place(root).unlink(missing_ok=True)
        assert_all_ways_agree(root, monkeypatch)


def test_several_faults_together_are_the_same(root, monkeypatch):
    pytest.importorskip("msgspec")
    cached = 0
    for seed in range(40):
        draw = random.Random(seed)
        change_annotations(make_rectangles(root, splits={"train": 12}, seed=seed), "train", lambda content: None)
        for name in draw.sample(list(SPOILERS), draw.randint(1, 3)):
            with contextlib.suppress(ValueError, IndexError, TypeError, AttributeError):  # nothing is left to spoil
                change_annotations(root, "train", lambda content, name=name, draw=draw: SPOILERS[name](content, draw))
        place(root).unlink(missing_ok=True)
        options = draw.choice([{}, {"labelled_only": True}, {"keep": [3, 0]}, {"classes": ["blue", "red", "green"]}])
        assert_all_ways_agree(root, monkeypatch, **options)
        cached += place(root).exists()
    assert 5 < cached < 40


TEXTS = {
    "NaN where nobody reads": lambda text: text.replace('"area"', '"x": NaN, "area"', 1),
    "a byte order mark": lambda text: "\ufeff" + text,
    "blanks": lambda text: text.replace("}, {", "}\r\n\t,\n {").replace(":", " :\n"),
    "no blanks": lambda text: text.replace(", ", ",").replace(": ", ":"),
    "a key twice": lambda text: text.replace('"area"', '"image_id": 3, "area"', 1),
    "a list twice": lambda text: text[:-1] + ', "images": []}',
    "a key in escapes": lambda text: text.replace('"bbox"', '"bbo\\u0078"'),
    "a number in another form": lambda text: text.replace('"image_id": 3', '"image_id": 3e0', 2),
    "something behind the end": lambda text: text + "x",
    "a comma too many": lambda text: text.replace("]}", "],}", 1),
    "half a file": lambda text: text[: len(text) // 2],
    "an object for a list": lambda text: text.replace('"annotations": [', '"annotations": {"a": [').replace("]}", "]}}", 1),
    "deep lists": lambda text: text.replace('"area"', f'"x": {"[" * 300 + "]" * 300}, "area"', 1),
    "half a pair of escapes": lambda text: text.replace('"red"', '"\\ud83d"'),
    "a control character": lambda text: text.replace('"area"', '"x": "\t", "area"', 1),
    "no list": lambda text: text.replace('"annotations"', '"notes"'),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_of_all_forms_are_the_same(name, root, monkeypatch):
    file = annotation_file(root, "train")
    file.write_text(TEXTS[name](file.read_text(encoding="utf-8")), encoding="utf-8")
    assert_all_ways_agree(root, monkeypatch)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_the_same(encoding, root, monkeypatch):
    """Also where only a text has other letters that nobody reads."""
    file = annotation_file(root, "train")
    text = file.read_text(encoding="utf-8").replace('"area"', '"by": "Jürgen", "area"')
    file.write_bytes(text.encode(encoding))
    (kind, *_), _ = assert_all_ways_agree(root, monkeypatch)
    assert (kind is ValueError) == (encoding == "latin-1")


def test_evaluation_is_that_of_pycocotools_on_the_file(root):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    draw = np.random.default_rng(0)

    def alter(content):
        for one in content["annotations"]:
            box = draw.uniform(3, 60, 4).tolist()
            one.update(bbox=box, area=box[2] * box[3] * draw.uniform(0.2, 1), iscrowd=int(draw.random() < 0.1))
        draw.shuffle(content["annotations"])

    change_annotations(root, "train", alter)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotation_file(root, "train")))
        results = [
            {
                "image_id": one["image_id"],
                "category_id": int(draw.integers(1, 4)),
                "bbox": (np.array(one["bbox"]) + draw.normal(0, 2, 4)).tolist(),
                "score": float(draw.random()),
            }
            for one in truth.dataset["annotations"] * 4
        ]
        judge = COCOeval(truth, truth.loadRes([dict(one) for one in results]), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    for _ in range(2):
        table = coco_table(DetectionData(root, "train"), results)
        expected = [100 * judge.stats[place] for place in (0, 3, 8)]
        assert [table["mAP"], table["APs"], table["mAR"]] == pytest.approx(expected, rel=1e-12)


# ---------------------------------------------------------------- when it is made anew


@pytest.fixture
def parsed(monkeypatch):
    """How often annotation files were parsed."""
    calls, read = [], cache._read
    monkeypatch.setattr(cache, "_read", lambda file: calls.append(file) or read(file))
    return calls


def test_a_file_is_parsed_once(root, parsed):
    data, again = DetectionData(root, "train"), DetectionData(root, "train")
    assert len(parsed) == 1 and data.columns.file == again.columns.file == place(root)
    os.utime(annotation_file(root, "train"))
    shutil.copytree(root, root.with_name("copy"))
    assert fingerprint(DetectionData(root.with_name("copy"), "train")) == fingerprint(DetectionData(root, "train"))
    assert len(parsed) == 1  # other times, another inode, and the same bytes


def test_a_change_that_size_and_time_do_not_show_is_noticed(root, parsed):
    file = annotation_file(root, "train")
    then, before = fingerprint(DetectionData(root, "train")), file.stat()
    text = file.read_bytes()
    change_annotations(root, "train", lambda content: content["annotations"][0].update(iscrowd=1))
    assert file.stat().st_size == len(text)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    now = fingerprint(DetectionData(root, "train"))
    assert now["boxes"] != then["boxes"] and len(parsed) == 2
    file.write_bytes(text)
    assert fingerprint(DetectionData(root, "train")) == then and len(parsed) == 3


def test_a_disk_with_times_in_seconds_has_its_files_compared(root, parsed, monkeypatch):
    stamp, second = cache._stamp, cache.SECOND
    monkeypatch.setattr(cache, "_stamp", lambda file: [n - n % second if n > second else n for n in stamp(file)])
    DetectionData(root, "train")
    change_annotations(root, "train", lambda content: content["annotations"][0].update(iscrowd=1))
    assert DetectionData(root, "train").columns.crowds.sum() == 1
    assert DetectionData(root, "train").columns.crowds.sum() == 1 and len(parsed) == 2


DAMAGES = {
    "cut off": lambda content: content[:-5],
    "longer": lambda content: content + b"\0",
    "empty": lambda content: b"",
    "a page": lambda content: b"<html>404 Not Found</html>",
    "another version": lambda content: content.replace(b'\\"format\\": 1', b'\\"format\\": 0'),
    "a header of any length": lambda content: b"\xff" * 8 + content[8:],
    "no header": lambda content: content[:8] + b"x" * (len(content) - 8),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_cache_that_does_not_fit_is_made_anew(damage, root, parsed):
    then = fingerprint(DetectionData(root, "train"))
    place(root).write_bytes(DAMAGES[damage](place(root).read_bytes()))
    assert fingerprint(DetectionData(root, "train")) == then and len(parsed) == 2
    DetectionData(root, "train")
    assert len(parsed) == 2


def test_the_cache_is_a_file_of_safetensors(root):
    numpy = pytest.importorskip("safetensors.numpy")
    data = DetectionData(root, "train")
    arrays = numpy.load_file(place(root))
    assert arrays.keys() == data.columns.arrays.keys()
    assert all(np.array_equal(arrays[name], array) for name, array in data.columns.arrays.items())


# ---------------------------------------------------------------- where it lies


def test_a_folder_that_takes_no_file(root, parsed, tmp_path, monkeypatch):
    place(root).with_name(f"{place(root).name}.part").mkdir()  # as root, permissions stop nothing
    then = fingerprint(DetectionData(root, "train"))
    (made,) = (tmp_path / "home").rglob("*.cls2det")
    assert fingerprint(DetectionData(root, "train")) == then and len(parsed) == 1 and not place(root).exists()
    monkeypatch.setenv(cache.VARIABLE, str(made / "beneath a file"))
    data = DetectionData(root, "train")
    assert fingerprint(data) == then and len(parsed) == 2 and data.columns.file is None


def test_a_variable_names_the_folder_or_switches_off(root, parsed, tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "caches"))
    for split in ("train", "val", "train"):
        DetectionData(root, split)
    assert len(list((tmp_path / "caches").iterdir())) == len(parsed) == 2 and not place(root).exists()
    monkeypatch.setenv(cache.VARIABLE, "off")
    assert DetectionData(root, "train").columns.file is None and len(parsed) == 3


def test_small_files_have_none(root, monkeypatch):
    monkeypatch.setattr(cache, "LARGE", 4 * 2**20)
    assert DetectionData(root, "train").columns.file is None and not place(root).exists()


def test_a_full_disk(root, tmp_path, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with caplog.at_level("INFO", logger="cls2det"):
            data = DetectionData(root, "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert data.columns.file is None and "is parsed by every process: its cache" in caplog.text
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.cls2det"))
    assert fingerprint(data) == fingerprint(DetectionData(root, "train"))


# ---------------------------------------------------------------- several processes


def forked(function):
    """The process that runs it."""
    process = os.fork()
    if process:
        return process
    try:
        os._exit(function() or 0)
    finally:
        os._exit(99)


def status(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_of_processes_that_start_together_one_parses(root, tmp_path, monkeypatch):
    expected, read = fingerprint(DetectionData(root, "train")), cache._read
    place(root).unlink()

    def slowly(file):
        (tmp_path / f"parsed by {os.getpid()}").touch()
        time.sleep(0.3)
        return read(file)

    monkeypatch.setattr(cache, "_read", slowly)
    processes = [forked(lambda: fingerprint(DetectionData(root, "train")) != expected) for _ in range(5)]
    assert [status(process) for process in processes] == [0] * 5
    assert len(list(tmp_path.glob("parsed by *"))) == 1 and not list(root.rglob("*.part"))


@pytest.mark.parametrize("moment", ["while it parses", "while it writes", "before it renames"])
def test_a_kill_leaves_no_wrong_cache_and_keeps_nobody_waiting(moment, root, tmp_path, monkeypatch):
    expected = fingerprint(DetectionData(root, "train"))
    place(root).unlink()

    def stop(*_):
        (tmp_path / "there").touch()
        time.sleep(60)

    def begin():
        if moment == "while it parses":
            monkeypatch.setattr(cache, "_read", stop)
        elif moment == "while it writes":
            monkeypatch.setattr(np, "ascontiguousarray", stop)
        else:
            monkeypatch.setattr("cls2det.files._flush", stop)
        DetectionData(root, "train")

    first = forked(begin)
    while not (tmp_path / "there").exists():
        time.sleep(0.01)
    second = forked(lambda: fingerprint(DetectionData(root, "train")) != expected)
    time.sleep(0.1)
    assert os.waitpid(second, os.WNOHANG) == (0, 0) and not place(root).exists()
    os.kill(first, signal.SIGKILL)
    assert status(first) == -signal.SIGKILL and status(second) == 0
    assert place(root).exists() and not list(root.rglob("*.part"))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_map_the_arrays(context, root):
    data = DetectionData(root, "train")
    assert len(pickle.dumps(data)) < 3000 and not data.columns.boxes.flags.writeable
    loader = DataLoader(MappedItems(data), num_workers=1, collate_fn=itemgetter(0), multiprocessing_context=context)
    assert list(loader) == [(data[0][1]["boxes"].tolist(), True, False)]


def test_a_worker_that_would_read_other_annotations_stops(root):
    content = pickle.dumps(DetectionData(root, "train"))
    assert len(pickle.loads(content)) == 12
    change_annotations(root, "train", lambda content: content["annotations"].pop())
    DetectionData(root, "train")
    with pytest.raises(ValueError, match=r"instances_train\.json\.cls2det has changed since this command began"):
        pickle.loads(content)


def test_training_makes_no_index(root):
    data = DetectionData(root, "train")
    for _ in train_loader(data, batch_size=2, steps_per_epoch=3, seed=0):
        pass
    overview(data), fingerprint(data)
    assert data._coco is None and data.coco is data.coco
    assert collate([data[0]])[1][0]["boxes"].dtype == torch.float32


def test_the_benchmark_writes_right_data(tmp_path):
    file = Path(__file__).parents[1] / "benchmarks" / "annotations.py"
    words = ["make", tmp_path, "--images", "30", "--boxes", "200", "--outlines"]
    subprocess.run([sys.executable, file, *words], check=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = DetectionData(tmp_path, "train")
    assert len(data) == 30 and len(data.columns.boxes) == 200 and data.columns.crowds.sum() == 3
