"""explain: the silent mistakes of users are named, and nothing is said of right calls of any detector at any age."""

from __future__ import annotations

import re
import sys
import warnings

import pytest
import torch

import cls2det_ops
from cls2det_ops import RoIMap, debug_values, explain, kd_sigmoid_loss, kd_softmax_loss, roi_feature_loss, roi_kd_loss
from cls2det_ops import explain as explain_function
from simulated_calls import MISTAKES, WRONG, right_call

RIGHT, OF_EACH = 120, 30  # calls; the seeds after them have been tried too, in thousands
OPTIONAL = ("image_index", "target_labels")


def without(call, *names):
    return {name: value for name, value in call.items() if name not in names}


def test_nothing_is_said_of_right_calls():
    alarms = []
    for seed in range(RIGHT):
        call = right_call(seed)
        for part in (call, without(call, *OPTIONAL), without(call, *OPTIONAL, "boxes", "target_boxes", "maps")):
            alarms += [(seed, sentence) for sentence in explain(**part)]
    print(f"{len(alarms)} false alarms of {3 * RIGHT} right calls")
    assert not alarms


def share_named(mistake, calls):
    change, word = WRONG[mistake]
    needs_labels = mistake == "a teacher with shuffled classes"
    wrong = [call | change(call) for call in calls if change(call).get("background") != "none"]
    lists = [explain(**without(call, "image_index", *(() if needs_labels else ["target_labels"]))) for call in wrong]
    return sum(any(re.search(word, sentence) for sentence in sentences) for sentences in lists) / len(lists)


def test_the_silent_mistakes_are_named():
    """From the arguments of roi_kd_loss alone, in a training that is under way; shuffled classes need labels."""
    calls = [right_call(seed, plain=True) for seed in range(OF_EACH)]
    shares = {mistake: share_named(mistake, calls) for mistake in WRONG}
    print("\n".join(f"{share:5.0%} {mistake}" for mistake, share in shares.items()))
    assert len(MISTAKES) == 15 and set().union(*MISTAKES.values()) == set(WRONG)
    named = [mistake for mistake, forms in MISTAKES.items() if min(shares[form] for form in forms) >= 2 / 3]
    print(f"{len(named)} of 15 mistakes are named in two thirds of the calls or more")
    assert len(named) == 15, shares
    assert sum(share >= 0.9 for share in shares.values()) >= 16, shares


def test_the_image_of_each_positive_makes_it_sure():
    for seed in range(20):
        call = right_call(seed, plain=True)
        wrong = call | WRONG["matches within an image"][0](call)
        if not torch.equal(wrong["matched_idxs"], call["matched_idxs"]):
            assert any("within each image" in sentence for sentence in explain(**wrong))


def simple(**changes):
    torch.manual_seed(0)
    target_boxes = torch.tensor([[10.0, 20, 200, 220], [30, 40, 180, 260], [5, 5, 290, 250]])
    matched_idxs = torch.tensor([0, 0, 1, 2, 2])
    call = {
        "student_logits": torch.randn(5, 21, requires_grad=True),
        "boxes": (target_boxes[matched_idxs] + 5).requires_grad_(),
        "teacher_logits": torch.randn(3, 20),
        "target_boxes": target_boxes,
        "matched_idxs": matched_idxs,
        "target_image_index": torch.tensor([0, 0, 1]),
        "maps": RoIMap(255 * torch.rand(2, 3, 300, 300), 4, 16),
    }
    return call | changes


SENTENCES = {  # what is changed, and what the sentence must hold: argument, expected, found
    "swapped": (
        {"student_logits": torch.randn(5, 21), "teacher_logits": torch.randn(3, 20, requires_grad=True)},
        "found a gradient for teacher_logits",
    ),
    "detached logits": ({"student_logits": torch.randn(5, 21)}, "student_logits must carry the detector's gradient"),
    "not finite": (
        {"target_boxes": torch.tensor([[10.0, 20, float("nan"), 220], [30, 40, 180, 260], [5, 5, 290, 250]])},
        r"target_boxes must be finite, found \(10, 20, nan, 220\)",
    ),
    "matches from 1": ({"matched_idxs": torch.tensor([1, 1, 2, 3, 3])}, "must be below 3.*found 3.*count from 1"),
    "images from 1": (
        {"target_image_index": torch.tensor([1, 1, 2])},
        r"target_image_index must be in \[0, 2\).*found 2 \(1 such of 3\)",
    ),
    "labels from 0": ({"target_labels": torch.tensor([0, 5, 7])}, "target_labels must be from 1 to 20.*found 0 to 7"),
    "maps of two sizes": (
        {"maps": [RoIMap(torch.randn(2, 8, 75, 75), 4, 8, 1 / 4), RoIMap(torch.randn(2, 8, 38, 38), 4, 8, 1 / 16)]},
        r"found maps\[0\] 300 and maps\[1\] 608 pixels wide",
    ),
    "a stride as scale": (
        {"maps": RoIMap(torch.randn(2, 8, 75, 75), 4, 8, 4)},
        "spatial_scale of 4.*such as 1/4, not the stride",
    ),
    "a ground truth per positive": (
        {name: simple()[name][simple()["matched_idxs"]] for name in ("target_boxes", "teacher_logits", "target_image_index")},
        "target_boxes must be.*each once, found 3 different ones in 5 rows",
    ),
    "std of other pictures": ({"maps": RoIMap(torch.rand(2, 3, 300, 300), 4, 16, std=58.0)}, "std of maps must be.*58"),
    "true boxes": (
        {"boxes": simple()["target_boxes"][simple()["matched_idxs"]].requires_grad_()},
        "boxes must be the predicted boxes",
    ),
}


@pytest.mark.parametrize("mistake", SENTENCES)
def test_a_sentence_names_argument_expected_and_found(mistake):
    changes, words = SENTENCES[mistake]
    assert explain(**simple()) == []
    (sentence,) = explain(**simple(**changes))
    assert re.search(words, sentence) and sentence.endswith("."), sentence


def test_it_takes_the_arguments_of_every_loss_at_boxes():
    call = simple()
    logits = {name: call[name] for name in ("student_logits", "teacher_logits", "matched_idxs")}
    boxes = without(call, *logits, "maps") | {"matched_idxs": call["matched_idxs"]}
    boxes |= {"image_index": call["target_image_index"][call["matched_idxs"]], "features": torch.randn(2, 8, 75, 75)}
    assert explain(**logits, temperature=2.0, background="first", reduction="none") == []
    assert explain(*call.values(), temperature=2.0, padding_mode="border", clip=False) == []
    sizes = {"output_size": 4, "sampling_size": 8}
    assert explain(**boxes, **sizes, spatial_scale=0.25, loss="l2") == []
    assert "give spatial_scale" in explain(**boxes, **sizes)[0]
    assert "8.7" not in " ".join(explain(**boxes, **sizes))
    with torch.no_grad():  # a validation
        assert explain(**simple(boxes=call["boxes"].detach())) == []
    assert explain(**simple(boxes=call["boxes"].detach(), loc_weight=0)) == []
    assert explain() == []


def test_what_is_no_call_is_an_error():
    with pytest.raises(TypeError, match="explain: target_label must be an argument of a loss at boxes"):
        explain(**simple(), target_label=torch.zeros(3))
    with pytest.raises(
        ValueError, match=r"explain: boxes must be of shape \(5, 4\), a row for each of student_logits, found shape \(4, 4\)"
    ):
        explain(**simple(boxes=torch.zeros(4, 4)))
    with pytest.raises(ValueError, match=r"target_labels must be a vector with one entry for each row of target_boxes \(3\)"):
        explain(**simple(), target_labels=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(TypeError, match="maps must be a RoIMap or a sequence of them, found Tensor"):
        explain(**simple(maps=[torch.zeros(2, 3, 4, 4)]))


def test_many_positives_are_thinned_and_none_is_missed():
    call = simple()
    places = torch.arange(5).repeat(20000)
    many = call | {name: call[name][places] for name in ("student_logits", "matched_idxs")}
    many["boxes"] = call["boxes"][places]
    assert explain(**many) == []
    many["matched_idxs"][77777] = 9
    assert "found 9 (1 such of 100000)" in explain(**many)[0]


def test_weight_and_ignored_rows_are_left_out():
    call = simple(weight=torch.tensor([1.0, 1, 1, 1, 0]))
    call["matched_idxs"][4], call["matched_idxs"][3] = 99, -2
    assert explain(**call) == []


LISTED = {
    roi_kd_loss: simple(),
    roi_feature_loss: without(simple(), "student_logits", "teacher_logits", "maps")
    | {"features": torch.rand(2, 3, 30, 30), "image_index": torch.zeros(5, dtype=torch.int64)}
    | {"output_size": 2, "sampling_size": 4},
    cls2det_ops.roi_crop: {"images": torch.rand(2, 3, 30, 30), "boxes": torch.rand(5, 4)}
    | {"image_index": torch.zeros(5, dtype=torch.int64), "output_size": 4},
    cls2det_ops.roi_avg_pool: {"features": torch.rand(2, 3, 30, 30), "boxes": torch.rand(5, 4)}
    | {"image_index": torch.zeros(5, dtype=torch.int64), "output_size": 2, "sampling_size": 4},
}


@pytest.mark.parametrize("function", LISTED, ids=lambda function: function.__name__)
def test_lists_of_boxes_are_told_their_way_out(function):
    arguments = LISTED[function]
    for name in {"boxes", "target_boxes", "matched_idxs", "image_index"} & arguments.keys():
        for kind in (list, tuple):
            listed = arguments | {name: kind([arguments[name], arguments[name]])}
            with pytest.raises(
                TypeError, match=rf"{name} must be one torch.Tensor.*{kind.__name__} of 2.*Positives.from_lists"
            ):
                function(**listed)
    pictures = "features" if "features" in arguments else "images"
    if pictures in arguments:
        with pytest.raises(TypeError, match=f"{pictures} must be one torch.Tensor.*stack them"):
            function(**arguments | {pictures: [torch.rand(3, 30, 30)]})


def forget(monkeypatch):
    """What debug mode has said in this process."""
    monkeypatch.setattr(sys.modules[explain_function.__module__], "_told", set())


def test_debug_mode_warns_once_of_each_mistake(monkeypatch):
    forget(monkeypatch)
    wrong = simple(teacher_logits=torch.randn(3, 20).softmax(1))
    with warnings.catch_warnings(record=True) as outside:
        warnings.simplefilter("always")
        roi_kd_loss(**wrong)
    assert not outside
    with warnings.catch_warnings(record=True) as caught, debug_values():
        warnings.simplefilter("always")
        for _ in range(3):
            roi_kd_loss(**wrong)
            kd_softmax_loss(wrong["student_logits"], wrong["teacher_logits"], wrong["matched_idxs"])
        roi_kd_loss(**simple(boxes=simple()["boxes"].detach()))
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2 and messages[0].startswith("roi_kd_loss: teacher_logits must be logits")
    assert messages[1].startswith("roi_kd_loss: boxes must carry the gradient")
    assert caught[0].filename == __file__


def test_debug_mode_says_nothing_of_right_calls(monkeypatch):
    forget(monkeypatch)
    call, index = simple(), torch.tensor([0, 0, 0, 1, 1])
    boxes = {name: call[name] for name in ("boxes", "target_boxes", "matched_idxs", "target_image_index")}
    with warnings.catch_warnings(), debug_values():
        warnings.simplefilter("error")
        roi_kd_loss(**call)
        kd_softmax_loss(call["student_logits"], call["teacher_logits"], call["matched_idxs"])
        kd_sigmoid_loss(call["student_logits"][:, 1:], call["teacher_logits"], call["matched_idxs"])
        roi_feature_loss(
            torch.randn(2, 8, 75, 75), image_index=index, **boxes, output_size=4, sampling_size=8, spatial_scale=0.25
        )
        with pytest.raises(ValueError, match="matched_idxs must be below 3"):
            kd_softmax_loss(call["student_logits"], call["teacher_logits"], call["matched_idxs"] + 3)


WAYS_OUT = {  # wrong calls that are errors: what is changed, and the way out that the error names
    "rois of torchvision": ({"boxes": torch.rand(5, 5)}, r"boxes must be of shape \(5, 4\).*found shape \(5, 5\).*column 0"),
    "a teacher per positive": (
        {"teacher_logits": torch.randn(5, 20)},
        r"teacher_logits must be of shape \(3, C\), a row for each of target_boxes, found shape \(5, 20\)",
    ),
    "a temperature as a tensor": ({"temperature": torch.tensor(2.0)}, r"temperature must be a number, found Tensor: convert"),
    "no weight": ({"cls_weight": None}, "cls_weight must be a number, found NoneType"),
    "a weight in letters": ({"loc_weight": "0.15"}, "loc_weight must be a number, found str"),
    "a column's number": ({"background": 0}, "background must be one of 'none', 'first', 'last', found 0"),
    "a head without background": ({"student_logits": torch.randn(5, 20)}, "21 columns.*found 20 .*background='none'"),
    "COCO's gaps": ({"student_logits": torch.randn(5, 91)}, "21 columns.*found 91 .*select the columns"),
    "a background under sigmoids": ({"head": "sigmoid"}, "20 columns.*found 21 .*background='first' or 'last'"),
    "images as maps": ({"maps": torch.rand(2, 3, 8, 8)}, r"maps must be a RoIMap.*found Tensor: RoIMap\(features"),
    "no maps": ({"maps": None}, "maps must be a RoIMap.*found NoneType"),
}


@pytest.mark.parametrize("mistake", WAYS_OUT)
def test_an_error_names_the_way_out(mistake):
    changes, message = WAYS_OUT[mistake]
    with pytest.raises((TypeError, ValueError), match=message):
        roi_kd_loss(**simple(**changes))


def test_weights_as_tensors_are_no_mistake(monkeypatch):
    forget(monkeypatch)
    one = torch.tensor(1.0)
    call = simple(loc_weight=one, cls_weight=one, maps=RoIMap(255 * torch.rand(2, 3, 300, 300), 4, 16, weight=one))
    with warnings.catch_warnings(), debug_values():
        warnings.simplefilter("error")
        roi_kd_loss(**call)
    assert explain(**call) == []
