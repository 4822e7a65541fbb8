"""Parts of a split, such as ``train[:80%]``, and folders that nobody has split."""

import shlex
import shutil

import pytest

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from other_layouts import LAYOUTS, make_voc, make_yolo

from cls2det.cli import main
from cls2det.data.dataset import DetectionData
from cls2det.data.fingerprint import changes, fingerprint
from cls2det.data.layouts import list_splits, read_split
from cls2det.data.parts import Part, parse_part
from cls2det.data.truth import lists
from rectangles import annotation_file, change_annotations, make_rectangles


@pytest.fixture
def root(tmp_path):
    return make_rectangles(tmp_path / "data", splits={"train": 40})


def names_of(data: DetectionData) -> dict[str, tuple]:
    """Boxes and labels by file name."""
    files = [data.files[int(target["image_id"])].name for target in (data.targets[place] for place in range(len(data)))]
    return {
        name: (data.targets[place]["boxes"].tolist(), data.targets[place]["labels"].tolist())
        for place, name in enumerate(files)
    }


@pytest.mark.parametrize("layout", ["coco", *LAYOUTS])
def test_parts_hold_every_picture_once_with_its_own_boxes(layout, tmp_path):
    root = make_rectangles(tmp_path / "coco", splits={"train": 40, "val": 2})
    root = root if layout == "coco" else LAYOUTS[layout](root, tmp_path / "other")
    parts = [DetectionData(root, f"train[{limits}]") for limits in ("40%:75%", ":40%", "75%:")]
    whole = names_of(DetectionData(root, "train"))
    first, *others = map(names_of, parts)
    assert [len(first), *map(len, others)] != [0, 0, 0] and sum(map(len, (first, *others))) == 40
    assert first | others[0] | others[1] == whole
    assert all(4 <= len(part) <= 30 for part in (first, *others))
    image, target = parts[0][0]
    assert image.shape[0] == 3 and target["boxes"].shape == (2, 4)


def test_a_picture_stays_in_its_part_when_others_are_taken_away(root):
    before = names_of(DetectionData(root, "train[:50%]")).keys()
    change_annotations(
        root,
        "train",
        lambda content: content.update(
            images=content["images"][::2], annotations=[entry for entry in content["annotations"] if entry["image_id"] % 2]
        ),
    )
    after = names_of(DetectionData(root, "train[:50%]")).keys()
    left = {f"{number:03}.png" for number in range(1, 41, 2)}
    assert after == before & left and 0 < len(after) < len(before)


def test_what_is_evaluated_is_the_parts_own(root):
    """Crowds too, and annotations in their order."""
    change_annotations(root, "train", lambda content: [entry.update(iscrowd=1) for entry in content["annotations"][::5]])
    whole, part = (lists(read_split(root, split).columns) for split in ("train", "train[20%:60%]"))
    ids = {image["id"] for image in part["images"]}
    assert 0 < len(ids) < 40 and sum(entry["iscrowd"] for entry in part["annotations"])
    assert part["images"] == [image for image in whole["images"] if image["id"] in ids]
    assert part["annotations"] == [entry for entry in whole["annotations"] if entry["image_id"] in ids]
    assert part["categories"] == whole["categories"]


def test_parts_are_data_of_their_own(root, caplog):
    whole, first, again, second = (
        fingerprint(DetectionData(root, split)) for split in ("train", "train[:50%]", "train[0%:50%]", "train[50%:]")
    )
    assert changes(first, again) == []
    assert (
        [text.split()[0] for text in changes(first, second)]
        == ["images", "boxes"]
        == [text.split()[0] for text in changes(whole, first)]
    )
    assert whole["images"][0] == first["images"][0] + second["images"][0]


@pytest.mark.parametrize(
    "text", ["train[", "train[80%]", "train[:80]", "train[80%:20%]", "train[:101%]", "[:50%]", "train[:0%]"]
)
def test_what_is_no_part_is_an_error(text, root):
    with pytest.raises(ValueError, match=r"split .*: a part of a split is written as 'all\[:80%\]', 'all\[80%:\]' or"):
        DetectionData(root, text)


def test_numbers_of_a_part():
    assert parse_part("train2017") == Part("train2017", 0, 100) == parse_part("train2017[:]")
    assert parse_part("a b[12.5%:]") == Part("a b", 12.5, 100)
    assert [str(parse_part(text)) for text in ("a[:]", "a[:80%]", "a[0%:8.5%]", "a[80%:100%]")] == [
        "a",
        "a[:80%]",
        "a[:8.5%]",
        "a[80%:]",
    ]
    assert not parse_part("all[:80%]").overlaps(parse_part("all[80%:]"))
    assert parse_part("all[:80%]").overlaps(parse_part("all[79%:]")) and not parse_part("all").overlaps(parse_part("val"))


def unsplit_voc(data, root, *, flat: bool):
    make_voc(data, root, flat=flat)
    if not flat:
        shutil.rmtree(root / "ImageSets")
        return root
    shutil.rmtree(root / "val")
    return (root / "train").rename(root.with_name("alone"))


def unsplit_yolo(data, root):
    make_yolo(data, root, form="classes")
    for kind in ("images", "labels"):
        shutil.rmtree(root / kind / "val")
        for file in (root / kind / "train").iterdir():
            file.rename(root / kind / file.name)
        (root / kind / "train").rmdir()
    return root


UNSPLIT = {
    "voc": lambda data, root: unsplit_voc(data, root, flat=False),
    "voc, beside": lambda data, root: unsplit_voc(data, root, flat=True),
    "yolo": unsplit_yolo,
}


@pytest.mark.parametrize("layout", UNSPLIT)
def test_a_folder_that_nobody_has_split_is_called_all(layout, tmp_path):
    root = UNSPLIT[layout](make_rectangles(tmp_path / "coco", splits={"train": 30, "val": 6}), tmp_path / "data")
    assert list_splits(root) == ["all"]
    count = 36 if layout == "voc" else 30
    assert len(DetectionData(root, "all")) == count
    assert len(DetectionData(root, "all[:70%]")) + len(DetectionData(root, "all[70%:]")) == count
    with pytest.raises(
        FileNotFoundError, match=r"there is all alone, which can be taken in parts: 'all\[:80%\]' and 'all\[80%:\]'"
    ):
        DetectionData(root, "train")


def test_the_proposal_of_parts_can_be_pasted(root, tmp_path, capsys):
    """From a folder with one split to a report."""
    annotation_file(root, "train").rename(annotation_file(root, "everything"))
    (root / "train").rename(root / "everything")
    assert main(["look", "--data-root", str(root), "--split", "everything"]) == 0
    printed = capsys.readouterr().out
    assert "everything[80%:] is a part of this one" in printed
    line = next(line for line in printed.replace("\\\n", " ").splitlines() if line.strip().startswith("cls2det train"))
    words = [word for word in shlex.split(line)[1:] if word != "--fit-anchors"]
    words[words.index("--out") + 1] = str(tmp_path / "run")
    small = "--student ssd_compact --image-size 96 --backbone-weights none --optim.epochs 1 --run.device cpu"
    assert "everything[:80%]" in words and "everything[80%:]" in words
    assert main([*words, *small.split()]) == 0
    assert (tmp_path / "run" / "everything[80%:]" / "evaluation.json").is_file()
    assert main(["report", str(tmp_path / "run"), "--split", "everything[80%:]", "--out", str(tmp_path / "report")]) == 0
    assert "everything[80%:]" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_parts_that_overlap_are_warned_of(root, tmp_path):
    words = f"--data-root {root} --out {tmp_path}/run --student ssd_compact --image-size 96 --backbone-weights none --run.device cpu"
    with pytest.warns(UserWarning, match=r"share pictures, train\[:80%\] and train\[50%:\]: what is measured there is memory"):
        assert (
            main(["train", *words.split(), "--train-split", "train[:80%]", "--val-split", "train[50%:]", "--optim.steps", "1"])
            == 0
        )
