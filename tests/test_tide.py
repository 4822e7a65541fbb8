"""Kinds of errors, and the error of a gain over images: against cases worked out by hand, pycocotools and tidecv's own figures."""

import contextlib
import io

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cls2det.study.report import tide
from cls2det.study.report.resampling import draw_images, error_over_images, resampled_map
from coco_cases import detections_of, random_world, truth_of

A, B, AWAY = [0, 0, 40, 40], [100, 100, 40, 40], [200, 200, 40, 40]
WORLD = [(0, 1, A), (0, 2, B)]  # one object of each of two classes
RIGHT_A, RIGHT_B = (1, A, 0.9), (2, B, 0.9)
DUPLICATED = 100 - 100 * (51 + 50 * 2 / 3) / 101  # of the second object, found behind one false positive


@pytest.mark.parametrize(
    ("objects", "detections", "ap", "gains"),
    [
        (WORLD, [RIGHT_A, RIGHT_B], 100, {}),
        (WORLD, [(1, [0, 0, 40, 16], 0.9), RIGHT_B], 50, {"localisation": 50}),  # IoU 0.4
        (WORLD, [(2, A, 0.5), RIGHT_B], 50, {"classification": 50}),
        (WORLD, [(2, A, 0.95), RIGHT_B], 25, {"classification": 75}),  # it also stood before the right one
        (WORLD, [(2, [0, 0, 40, 12], 0.95), RIGHT_A, RIGHT_B], 75, {"both": 25}),  # IoU 0.3, wrong class
        (WORLD, [(1, AWAY, 0.95), RIGHT_A, RIGHT_B], 75, {"background": 25}),
        (WORLD, [RIGHT_B], 50, {"missed": 50}),
        (WORLD, [], 0, {"missed": 100}),
        ([(0, 1, A), (0, 1, B)], [RIGHT_A, (1, A, 0.8), (1, B, 0.7)], 100 - DUPLICATED, {"duplicate": DUPLICATED}),
        # Two errors about one object: the one with the higher score can be mended, the other is only taken away.
        (WORLD, [(1, [0, 0, 40, 16], 0.7), (2, A, 0.2), RIGHT_B], 50, {"localisation": 50}),
        # A crowd swallows what lies in it, of its own class.
        ([*WORLD, (0, 1, AWAY, True)], [(1, AWAY, 0.95), (1, [205, 205, 9, 9], 0.96), RIGHT_A, RIGHT_B], 100, {}),
        ([*WORLD, (0, 1, AWAY, True)], [(2, AWAY, 0.95), RIGHT_A, RIGHT_B], 75, {"background": 25}),
        # A class without an object counts for nothing.
        (WORLD, [(3, AWAY, 0.95), RIGHT_A, RIGHT_B], 100, {}),
    ],
)
def test_every_kind_of_error(objects, detections, ap, gains):
    results = tide.error_gains(tide.match(truth_of(objects, categories=3), detections_of(*detections)))
    assert results.pop("AP") == pytest.approx([ap] * 10)
    for kind, values in results.items():
        assert values == pytest.approx([gains.get(kind, 0)] * 10, abs=1e-9), kind


def test_errors_change_with_the_threshold():
    results = tide.error_gains(tide.match(truth_of(WORLD), detections_of((1, [0, 0, 40, 28.8], 0.9), RIGHT_B)))  # IoU 0.72
    assert results["AP"] == pytest.approx([100] * 5 + [50] * 5)
    assert results["localisation"] == pytest.approx([0] * 5 + [50] * 5) and results["missed"] == [0] * 10


def test_errors_need_a_ground_truth():
    with pytest.raises(ValueError, match="holds no object"):
        tide.error_gains(tide.match(truth_of([(0, 1, A, True)]), []))
    with pytest.raises(ValueError, match="image 0, category 7"):
        tide.match(truth_of(WORLD), detections_of((7, A, 0.5)))


@pytest.mark.parametrize(
    "seed, level, expected",
    [
        (0, 0, [15.332, 18.930, 4.671, 1.263, 0.657, 0.683, 0.662]),
        (0, 5, [11.311, 13.753, 6.638, 1.787, 0.303, 0.662, 0.616]),
        (2, 0, [27.164, 22.563, 3.448, 1.116, 1.168, 1.323, 3.680]),
        (2, 5, [21.094, 20.129, 6.002, 2.987, 0.125, 1.061, 2.339]),
    ],
)
def test_errors_are_those_of_tidecv(seed, level, expected):
    """At IoU 0.5 and 0.75, where no scores are tied; its figures (tidecv 1.0.1) are kept here: it needs OpenCV and an old numpy."""
    coco, detections = random_world(seed)
    random = np.random.default_rng(0)
    for record in detections:
        record["score"] += random.random() * 0.009
    results = tide.error_gains(tide.match(coco, detections))
    assert [results[kind][level] for kind in ("AP", *tide.ERRORS)] == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("seed", range(4))
def test_ap_equals_that_of_pycocotools(seed):
    coco, detections = random_world(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(coco, coco.loadRes([dict(record) for record in detections]), "bbox")
        judge.evaluate()
        judge.accumulate()
    expected = [100 * level[level > -1].mean() for level in judge.eval["precision"][:, :, :, 0, -1]]
    results = tide.error_gains(tide.match(coco, detections))
    assert results["AP"] == pytest.approx(expected, abs=1e-9) and expected[0] > 1
    assert all(gain > -1e-9 for kind in tide.ERRORS for gain in results[kind])


def coco_map(coco, detections):
    """mAP in percent; NaN without an object."""
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(coco, coco.loadRes([dict(record) for record in detections]), "bbox")
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, -1]
    return 100 * precision[precision > -1].mean()


def copied(coco, detections, counts):
    """The set with every image as often as ``counts`` says, each time under another id."""
    images, notes, copies = [], [], []
    for place, count in enumerate(counts):
        image = sorted(coco.imgs)[place]
        for _ in range(count):
            number = len(images)
            images.append({"id": number})
            notes += [{**note, "id": len(notes) + at, "image_id": number} for at, note in enumerate(coco.imgToAnns[image], 1)]
            copies += [{**record, "image_id": number} for record in detections if record["image_id"] == image]
    result = COCO()
    result.dataset = {"images": images, "annotations": notes, "categories": list(coco.cats.values())}
    with contextlib.redirect_stdout(io.StringIO()):
        result.createIndex()
    return result, copies


@pytest.mark.parametrize("seed", range(4))
def test_a_drawn_set_has_pycocotools_map(seed):
    """As if the images were there as often as they were drawn. Scores of one class differ: copies of equal ones mix."""
    coco, detections = random_world(seed)
    for place, record in enumerate(np.random.default_rng(1).permutation(len(detections))):
        detections[record]["score"] += place * 1e-6
    counts = draw_images(len(coco.imgs), draws=5, seed=seed)
    assert counts.shape == (5, len(coco.imgs)) and (counts.sum(1) == len(coco.imgs)).all() and counts.std() > 0.5
    expected = [coco_map(*copied(coco, detections, row)) for row in counts]
    assert resampled_map(tide.match(coco, detections), counts) == pytest.approx(expected, abs=1e-6)


def test_a_draw_without_an_object_has_no_map():
    matches = tide.match(truth_of([*WORLD, (1, 1, A)]), detections_of(RIGHT_A, RIGHT_B))
    result = resampled_map(matches, np.array([[1, 1], [0, 2], [2, 0]]))
    assert result == pytest.approx([100 * (51 / 101 + 1) / 2, 0, 100])  # of two objects of class 1 one is found
    empty = tide.match(truth_of([(0, 1, A)]), [])
    assert np.isnan(resampled_map(empty, np.array([[0]]))).all()


def test_error_over_images_is_that_of_the_paired_mean():
    first, second = (np.array([1.0, 2, 6]), np.zeros(3)), (np.array([3.0, 4, 2]), np.ones(3))
    assert error_over_images([first]) == pytest.approx(np.std([1, 2, 6], ddof=1))
    assert error_over_images([first, second]) == pytest.approx(np.std([1.5, 2.5, 3.5], ddof=1))
    assert error_over_images([(np.array([1.0, np.nan, 3]), np.zeros(3))]) == pytest.approx(np.sqrt(2))
    assert error_over_images([]) is None
