"""Data as people have it: the run goes on, or stops with file, annotation or image id, and reason."""

import contextlib
import io
import json
import pickle
import struct
import warnings
import zlib
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")
pytest.importorskip("PIL")

from PIL import Image

from cls2det.data.dataset import DetectionData
from cls2det.data.images import read_image
from cls2det.data.loader import test_loader as make_test_loader
from cls2det.data.loader import train_loader

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}]
BOX = {"image_id": 5, "category_id": 7, "bbox": [1, 2, 10, 10]}
WIDTH, HEIGHT = 50, 40
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40)]
# columns of one colour, wide enough that JPEG's blocks do not mix them
PICTURE = np.repeat(np.array(COLOURS, dtype=np.uint8), 8, axis=0)[None].repeat(HEIGHT, 0)
PICTURE = np.pad(PICTURE, ((0, 0), (0, WIDTH - PICTURE.shape[1]), (0, 0)), mode="edge")


def listed(image_id, name="a.jpg", **more):
    return {"id": image_id, "file_name": name, "width": WIDTH, "height": HEIGHT, **more}


def write(root, annotations=(BOX,), images=None, categories=CATEGORIES, files=True):
    """A split "mine" below root, with a good JPEG for each listed image."""
    images = [listed(5)] if images is None else images
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "mine").mkdir(exist_ok=True)
    for image in images if files else ():
        path = root / "mine" / str(image["file_name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PICTURE).save(path)
    content = {"images": images, "categories": categories, "annotations": list(annotations)}
    (root / "annotations" / "instances_mine.json").write_text(json.dumps(content))
    return root


def numbered(*annotations):
    return [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)]


def read(root, **options):
    """The data, which must not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return DetectionData(root, "mine", **options)


def average_precision(data, detections):
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(data.coco, data.coco.loadRes(detections), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats[0]


def found(annotation, **more):
    return {**{key: annotation[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9, **more}


# --- image files


def png_of_16_bits(values, colour_type):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


GREY = np.asarray(Image.fromarray(PICTURE).convert("L"))
KINDS = {
    "rgb.jpg": lambda path: Image.fromarray(PICTURE).save(path, quality=100, subsampling=0),
    "cmyk.jpg": lambda path: Image.fromarray(PICTURE).convert("CMYK").save(path, quality=100),
    "cmyk.tiff": lambda path: Image.fromarray(PICTURE).convert("CMYK").save(path),
    "palette.png": lambda path: Image.fromarray(PICTURE).quantize(16).save(path),
    "palette.gif": lambda path: Image.fromarray(PICTURE).quantize(16).save(path),
    "rgba.png": lambda path: Image.fromarray(np.dstack([PICTURE, PICTURE[..., 0]])).save(path),
    "rgb.bmp": lambda path: Image.fromarray(PICTURE).save(path),
    "animation.gif": lambda path: Image.fromarray(PICTURE).save(
        path, append_images=[Image.new("RGB", (50, 40))], save_all=True
    ),
    "rgb16.png": lambda path: path.write_bytes(png_of_16_bits(PICTURE.astype(np.uint16) * 257, 2)),
    "grey.jpg": lambda path: Image.fromarray(GREY).save(path, quality=100),
    "grey.png": lambda path: Image.fromarray(GREY).save(path),
    "grey_alpha.png": lambda path: Image.fromarray(GREY).convert("LA").save(path),
    "grey16.png": lambda path: path.write_bytes(png_of_16_bits(GREY.astype(np.uint16) * 257, 0)),
    "grey16.tiff": lambda path: Image.fromarray(GREY.astype(np.uint16) * 257).save(path),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_becomes_8_bit_rgb(name, tmp_path):
    KINDS[name](tmp_path / name)
    image = read_image(tmp_path / name)
    assert image.shape == (3, HEIGHT, WIDTH) and image.dtype == torch.uint8
    expected = np.repeat(GREY[..., None], 3, axis=2) if name.startswith("grey") else PICTURE
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 3


def test_of_16_bits_the_upper_8_are_kept(tmp_path):
    values = np.array([[0, 255, 256, 32767, 32768, 65279, 65280, 65535]])
    for name, content in (("grey.png", (values, 0)), ("rgb.png", (np.dstack([values] * 3), 2))):
        (tmp_path / name).write_bytes(png_of_16_bits(*content))
        assert read_image(tmp_path / name).tolist() == [[[0, 0, 1, 127, 128, 254, 255, 255]]] * 3


def save_turned(path):
    """50 x 40 pixels as stored; a viewer shows 40 x 50."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(path, exif=exif)


def test_exif_orientation_is_not_applied(tmp_path):
    root = write(tmp_path, numbered(BOX))
    plain = read(root)[0][0]
    save_turned(root / "mine" / "a.jpg")
    assert torch.equal(read(root)[0][0], plain)


def test_size_that_differs_from_the_annotations_stops(tmp_path):
    root = write(tmp_path, numbered(BOX), [listed(5, width=100)])
    with pytest.raises(ValueError, match=r"instances_mine.json: .* image 5 is 100 x 40 .*a\.jpg is 50 x 40$"):
        read(root)[0]
    root = write(tmp_path, numbered(BOX), [listed(5, width=HEIGHT, height=WIDTH)])
    with pytest.raises(ValueError, match=r"40 x 50 .* is 50 x 40; are width and height swapped"):
        read(root)[0]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


BROKEN = {
    "truncated.jpg": truncate,
    "truncated.png": truncate,
    "empty.jpg": lambda path: path.write_bytes(b""),
    "page.jpg": lambda path: path.write_text("<html>404 Not Found</html>"),
    "float.tiff": lambda path: Image.fromarray(GREY.astype(np.float32)).save(path),
    "folder.jpg": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", BROKEN)
def test_unreadable_file_stops_with_its_name(name, tmp_path):
    root = write(tmp_path, numbered(BOX), [listed(5, name)])
    BROKEN[name](root / "mine" / name)
    with pytest.raises(ValueError, match=rf"instances_mine.json.* cannot (read|be read).*{name}.+"):
        read(root)[0]


def five_images_two_broken(root):
    """Images 10 to 14 of which 11 and 12 cannot be read; each has one box, as far from the left as its place."""
    boxes = [{"image_id": 10 + n, "category_id": 7, "bbox": [n, 2, 10, 10]} for n in range(5)]
    write(root, numbered(*boxes), [listed(10 + n, f"{n}.png") for n in range(5)])
    for n in range(5):
        Image.new("RGB", (WIDTH, HEIGHT), (n, n, n)).save(root / "mine" / f"{n}.png")
    truncate(root / "mine" / "1.png")
    truncate(root / "mine" / "2.png")
    return root


def test_skipping_puts_the_next_good_image_in_place(tmp_path):
    data = read(five_images_two_broken(tmp_path), on_bad_image="skip")
    with pytest.warns(UserWarning, match=r"image 1[12]: cannot read .*[12]\.png.*next image") as caught:
        image, target = data[1, 0]
    assert len(caught) == 2
    assert image.unique().tolist() == [3]
    assert target["image_id"] == 13 and target["boxes"][0, 0] == 3  # image and boxes change together
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one warning per file
        assert torch.equal(data[1, 7][0], image) and data[2, 0][1]["image_id"] == 13
        assert [int(data[n, 0][1]["image_id"]) for n in (0, 3, 4)] == [10, 13, 14]
    with pytest.raises(ValueError, match=r"image 11: cannot read"):
        data[1]  # an evaluation does not leave out images
    with pytest.raises(ValueError, match=r"image 11: cannot read"):
        read(tmp_path)[1, 0]


def test_skipping_is_the_same_in_loader_workers(tmp_path):
    root = five_images_two_broken(tmp_path)

    def batches(workers):
        loader = train_loader(read(root, on_bad_image="skip"), batch_size=2, steps_per_epoch=5, seed=3, loader_workers=workers)
        return [int(target["image_id"]) for _, targets in loader for target in targets]

    with pytest.warns(UserWarning, match="cannot read"):
        here = batches(0)
    assert here == batches(1) and set(here) == {10, 13, 14}


def test_skipping_gives_up_where_no_image_is_good(tmp_path):
    root = five_images_two_broken(tmp_path)
    for path in (root / "mine").iterdir():
        path.write_bytes(b"no image")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"no image .* can be used; the last: .*image 10: cannot"):
        read(root, on_bad_image="skip")[1, 0]
    with pytest.raises(ValueError, match=r"on_bad_image must be 'stop' or 'skip', got 'warn'"):
        read(root, on_bad_image="warn")


def test_missing_files_stop_before_anything_is_trained(tmp_path):
    root = write(tmp_path, numbered(BOX), [listed(n, f"{n}.jpg") for n in range(9)])
    read(root)
    for n in (1, 2, 4, 5, 6):
        (root / "mine" / f"{n}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"names 5 of 9 images.*mine/1\.jpg, .*2\.jpg, .*4\.jpg and 2 more$"):
        read(root)
    assert len(read(root, keep=torch.tensor([0, 3]))) == 2  # only what is used has to be there


def test_file_names_with_folders_and_other_letters(tmp_path):
    images = [listed(1, "Köln/day 1/a.jpg"), listed(2, "Köln/b.jpg"), listed(3, "c.jpg")]
    root = write(tmp_path, numbered({**BOX, "image_id": 1}), images)
    data = read(root)
    assert [data[n][0].shape for n in range(3)] == [(3, HEIGHT, WIDTH)] * 3
    (root / "mine" / "Köln" / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"names 1 of 3 .*Köln/b\.jpg$"):
        read(root)


# --- boxes


@pytest.mark.parametrize(
    "bbox", [None, [], [1, 2, 3], [1, 2, 3, 4, 5], "1 2 3 4", ["1", 2, 3, 4], [float("nan"), 2, 3, 4], [1, 2, float("inf"), 4]]
)
def test_what_is_no_box_is_left_out_with_a_warning(bbox, tmp_path):
    root = write(tmp_path, numbered(BOX, {**BOX, "bbox": bbox}, {**BOX, "bbox": [3, 3, 5, 5]}))
    with pytest.warns(UserWarning, match=r"instances_mine.json: 1 annotation left out, .*: annotation 2 of image 5") as caught:
        data = DetectionData(root, "mine")
    assert len(caught) == 1
    assert data.targets[0]["boxes"].tolist() == [[1, 2, 11, 12], [3, 3, 8, 8]]
    assert sorted(data.coco.anns) == [1, 3]


def test_negative_and_absent_boxes(tmp_path):
    absent = {"image_id": 5, "category_id": 7}
    root = write(tmp_path, numbered(absent, {**BOX, "bbox": [9, 9, -3, 4]}, {**BOX, "bbox": [9, 9, 3, -4]}))
    with pytest.warns(UserWarning, match=r"3 annotations .*annotation 1 of image 5 \(no bbox\).*bbox \[9, 9, -3, 4\]"):
        data = DetectionData(root, "mine")
    assert data.targets[0]["boxes"].shape == (0, 4) and data.targets[0]["labels"].dtype == torch.int64


def test_boxes_of_no_area_and_outside_of_the_image(tmp_path):
    boxes = [[1, 2, 0, 9], [1, 2, 9, 0], [60, 5, 9, 9], [-20, 5, 9, 9], [5, 40, 9, 9], [1, 2, 1e-9, 9], [1e300, 1, 9, 9]]
    root = write(tmp_path, numbered(*({**BOX, "bbox": box} for box in [*boxes, [-5, -5, 10, 10], [45, 30, 10, 20]])))
    with pytest.warns(
        UserWarning, match=r": 7 annotations not trained on .*annotation 1 .*annotation 3 .* and 4 more$"
    ) as caught:
        data = DetectionData(root, "mine")
    assert len(caught) == 1
    assert data.targets[0]["boxes"].tolist() == [[0, 0, 5, 5], [45, 30, 50, 40]]
    assert len(data.coco.anns) == 9  # pycocotools judges them as it does COCO's


def test_warnings_are_summaries(tmp_path):
    root = write(tmp_path, numbered(BOX, *({**BOX, "bbox": []} for _ in range(1000))))
    with pytest.warns(UserWarning, match=r"1000 annotations .* and 997 more$") as caught:
        DetectionData(root, "mine")
    assert len(caught) == 1 and len(str(caught[0].message)) < 600


def test_boxes_stay_with_their_image_and_in_order(tmp_path):
    """Against a plain loop over the annotations, in shuffled order."""
    draw = np.random.default_rng(0)
    images = [listed(int(image_id), f"{image_id}.jpg") for image_id in draw.permutation(20)[:12]]
    annotations = []
    for _ in range(60):
        image_id = images[int(draw.integers(10))]["id"]  # two images stay empty
        bbox = draw.uniform(-10, 45, 4).round(2).tolist()
        crowd = int(draw.random() < 0.1)
        bbox = [bbox[0], bbox[1], abs(bbox[2]), abs(bbox[3])]
        annotations.append({"image_id": image_id, "category_id": int(draw.choice([7, 90])), "bbox": bbox, "iscrowd": crowd})
    root = write(tmp_path, numbered(*annotations), images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = DetectionData(root, "mine")
        labelled = DetectionData(root, "mine", labelled_only=True)
    assert [int(target["image_id"]) for target in data.targets] == sorted(image["id"] for image in images)
    for target in data.targets:
        boxes, labels = [], []
        for one in annotations:
            x, y, w, h = one["bbox"]
            box = [max(x, 0.0), max(y, 0.0), min(x + w, WIDTH), min(y + h, HEIGHT)]
            if one["image_id"] == target["image_id"] and not one["iscrowd"] and box[2] > box[0] and box[3] > box[1]:
                boxes.append(box)
                labels.append({7: 1, 90: 2}[one["category_id"]])
        assert torch.equal(target["boxes"], torch.tensor(boxes).reshape(-1, 4))
        assert torch.equal(target["labels"], torch.tensor(labels, dtype=torch.int64))
    assert [len(target["labels"]) for target in labelled.targets] == [
        len(t["labels"]) for t in data.targets if len(t["labels"])
    ]


# --- ids and names


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1, 2], None),
        ([4, 4, 4], r"3 annotations with an id that is not an integer of its own.*: 4, 4, 4$"),
        ([None, 1, 2], r"1 annotation .*: None$"),
        (["a", "b", 3], r"2 annotations .*: 'a', 'b'$"),
    ],
)
def test_annotation_ids_that_pycocotools_misjudges(ids, message, tmp_path):
    """Perfect detections have an AP of 1, also without ``area`` and ``iscrowd``; results keep COCO's ids."""
    objects = [BOX, {**BOX, "bbox": [20, 2, 12, 10]}, {**BOX, "category_id": 90, "bbox": [30, 20, 10, 12]}]
    root = write(tmp_path, [{**one, "id": id_} for one, id_ in zip(objects, ids, strict=True)])
    with pytest.warns(UserWarning, match=message) if message else contextlib.nullcontext():
        data = DetectionData(root, "mine") if message else read(root)
    assert average_precision(data, [found(one) for one in objects]) == pytest.approx(1.0)
    assert {one["area"] for one in data.coco.anns.values()} == {100, 120}
    assert data.category_ids == [7, 90] and data.coco.getImgIds() == [5]


def test_good_ids_and_areas_stay(tmp_path):
    root = write(tmp_path, [{**BOX, "id": 31, "area": 12.5, "iscrowd": 0}, {**BOX, "id": -4}, {**BOX, "id": 7, "area": None}])
    coco = read(root).coco
    assert sorted(coco.anns) == [-4, 7, 31] and [coco.anns[n]["area"] for n in (31, -4, 7)] == [12.5, 100, 100]


def test_detections_in_a_crowd_are_not_wrong(tmp_path):
    crowd = {**BOX, "bbox": [20, 10, 20, 20], "iscrowd": 1}
    data = read(write(tmp_path, numbered(BOX, crowd)))
    assert data.targets[0]["boxes"].tolist() == [[1, 2, 11, 12]]
    assert average_precision(data, [found(crowd), found(BOX, score=0.5)]) == pytest.approx(1.0)


def test_annotations_of_images_that_are_not_listed(tmp_path):
    root = write(tmp_path, numbered(BOX, {**BOX, "image_id": 6}, {**BOX, "image_id": "5"}, {"bbox": [1, 2, 3, 4]}))
    with pytest.warns(UserWarning, match=r"3 annotations left out, .*: annotation 2 \(image 6\), annotation 3 \(image '5'\)"):
        data = DetectionData(root, "mine")
    assert data.targets[0]["boxes"].tolist() == [[1, 2, 11, 12]] and sorted(data.coco.anns) == [1]


def test_images_without_objects_and_classes_never_seen(tmp_path):
    data = read(write(tmp_path, numbered(BOX, BOX), [listed(4, "b.jpg"), listed(5)]))
    assert [len(target["boxes"]) for target in data.targets] == [0, 2]
    assert data[0][1]["boxes"].shape == (0, 4) and data[0, 1][0].shape == (3, HEIGHT, WIDTH)
    assert data.class_counts() == {"cat": 2, "dog": 0}
    assert len(read(tmp_path, labelled_only=True)) == 1


def test_category_name_twice(tmp_path):
    root = write(tmp_path, numbered(BOX), categories=[{"id": 8, "name": "cat"}, *CATEGORIES])
    with pytest.warns(UserWarning, match=r"categories 7 and 8 are both named 'cat'; the second is called 'cat \(8\)' here"):
        data = DetectionData(root, "mine")
    assert data.classes == ["cat", "cat (8)", "dog"] and data.class_counts() == {"cat": 1, "cat (8)": 0, "dog": 0}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": [listed(5), listed(5, "b.jpg")]}, r"image id 5 stands for both a\.jpg and b\.jpg"),
        ({"images": [listed("5")]}, r"image 1 of the list has id '5'; expected an integer"),
        ({"images": [listed(2**63)]}, r"image 1 of the list has id 9223372036854775808; expected an integer"),
        ({"images": [listed(5, width=None)]}, r"image 5 \(a\.jpg\) has width None; expected a number"),
        ({"images": [listed(5, height=0)]}, r"image 5 \(a\.jpg\) has height 0; expected a number"),
        ({"images": [listed(5, "")]}, r"image 5 has no file_name"),
        ({"images": []}, r"leaves no image to use"),
        ({"categories": [*CATEGORIES, {"id": 7, "name": "cow"}]}, r"category id 7 stands for both cat and cow"),
        ({"categories": [{"name": "cow"}]}, r"category 1 of the list has id None; expected an integer"),
        ({"categories": [{"id": 1}]}, r"category 1 has no name"),
        ({"categories": []}, r"lists no category"),
        (
            {"annotations": [{**BOX, "id": 3, "category_id": 8}]},
            r"annotation 3 of image 5 has category 8, which is not listed",
        ),
        ({"annotations": [{**BOX, "id": 3, "category_id": "7"}]}, r"annotation 3 of image 5 has category '7'"),
        ({"annotations": [BOX, 3]}, r"annotations is not a list of objects"),
    ],
)
def test_what_is_not_clear_stops(changed, message, tmp_path):
    root = write(tmp_path, **{"annotations": [], **changed}, files=False)
    with pytest.raises(ValueError, match=rf"instances_mine.json.*{message}"):
        read(root)


def test_files_that_are_not_coco_json(tmp_path):
    path = write(tmp_path, numbered(BOX)) / "annotations" / "instances_mine.json"
    good = path.read_text()
    path.write_text("\ufeff" + good, encoding="utf-8")  # as some Windows tools write it
    assert len(read(tmp_path)) == 1
    for broken in (good[:-5], "", "\udcff", "[]"):
        path.write_text(broken, encoding="utf-8", errors="surrogateescape")
        with pytest.raises(ValueError, match=r"instances_mine.json is not COCO"):
            read(tmp_path)


def test_missing_folder_says_what_is_expected(tmp_path):
    (write(tmp_path, numbered(BOX), files=False) / "mine").rmdir()
    with pytest.raises(
        FileNotFoundError, match=r"no image folder .*mine; expected <root>/<split>/<file_name> beside <root>/ann"
    ):
        read(tmp_path)


def test_copies_for_loader_workers(tmp_path):
    """What a worker gets that is not a fork: the same items, without what evaluation made of the annotations."""
    data = read(write(tmp_path, numbered(BOX), [listed(4, "b.jpg"), listed(5)]), cache=True)
    data[0], data.coco.anns
    copy = pickle.loads(pickle.dumps(data))
    assert copy._coco is None and copy.coco.dataset == data.coco.dataset and copy.cache == {}
    for index in range(2):
        (image, target), (same, twin) = data[index], copy[index]
        assert torch.equal(image, same) and target.keys() == twin.keys()
        assert all(torch.equal(target[name], twin[name]) and target[name].dtype == twin[name].dtype for name in target)


@pytest.mark.parametrize("loader", [partial(train_loader, steps_per_epoch=1, seed=0), make_test_loader])
def test_large_batches_from_loader_workers(loader, tmp_path):
    """More tensors than the process may have files open when it starts."""
    resource = pytest.importorskip("resource")
    images = [listed(n, f"{n}.png") for n in range(100)]
    data = read(write(tmp_path, numbered(BOX), images))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        batches = loader(data, batch_size=100, loader_workers=1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 200  # else the next line waits for ever
        assert [len(images) for images, _ in batches] == [100]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
