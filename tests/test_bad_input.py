"""Errors name the function, the argument, what was expected and what was found; debug mode reports bad values."""

from __future__ import annotations

import pytest
import torch

import cls2det_ops
from backends import Backend
from cls2det_ops import _library, debug_values, use_backend
from op_cases import PUBLIC_OPS, Case, make_case


def call(backend: Backend, case: Case, **changes):
    """The call of a case with some arguments changed; tensors among them are moved to the device."""
    arguments = {**case.tensors, **case.options, **changes}
    moved = {key: value.to(backend.device) if torch.is_tensor(value) else value for key, value in arguments.items()}
    with backend.context():
        return case.function(**moved)


BAD = [  # op, changed arguments, error, what its message must hold: argument, expected, found
    ("roi_crop", {"images": torch.zeros(3, 4, 5)}, ValueError, "images must be of shape .B, C, H, W.*shape .3, 4, 5"),
    ("roi_crop", {"images": [1, 2]}, TypeError, "images must be a torch.Tensor, found list"),
    (
        "roi_crop",
        {"images": torch.zeros(1, 1, 4, 4, dtype=torch.uint8)},
        TypeError,
        "images must be float32.*found torch.uint8",
    ),
    ("roi_crop", {"images": torch.zeros(1, 1, 0, 4)}, ValueError, "images must be.*one pixel.*0, 4"),
    ("roi_crop", {"boxes": torch.zeros(9, 5)}, ValueError, "boxes must be of shape .N, 4.*9, 5"),
    ("roi_crop", {"boxes": torch.zeros(9, 4, dtype=torch.int64)}, TypeError, "boxes must be float32.*torch.int64"),
    ("roi_crop", {"image_index": torch.zeros(8, dtype=torch.int64)}, ValueError, "image_index must be.*9.*8"),
    ("roi_crop", {"image_index": torch.zeros(9)}, TypeError, "image_index must be int64 or int32, found torch.float32"),
    ("roi_crop", {"image_index": torch.zeros(9, 1, dtype=torch.int64)}, ValueError, "image_index must be a vector.*9, 1"),
    ("roi_crop", {"output_size": 0}, ValueError, "output_size must be a positive integer.*found 0"),
    ("roi_crop", {"output_size": (3, 4, 5)}, ValueError, "output_size must be.*pair.*3, 4, 5"),
    ("roi_crop", {"output_size": 2.5}, (ValueError, TypeError), "output_size must be.*2.5"),
    ("roi_crop", {"padding_mode": "reflect"}, ValueError, "padding_mode must be one of 'zeros', 'border', found 'reflect'"),
    ("roi_avg_pool", {"features": torch.zeros(4, 4)}, ValueError, "features must be of shape.*4, 4"),
    ("roi_avg_pool", {"sampling_size": -3}, ValueError, "sampling_size must be.*found -3"),
    ("roi_avg_pool", {"spatial_scale": 0.0}, ValueError, "spatial_scale must be a positive finite number, found 0.0"),
    ("roi_avg_pool", {"spatial_scale": float("inf")}, ValueError, "spatial_scale must be.*found inf"),
    ("roi_avg_pool", {"spatial_scale": float("nan")}, ValueError, "spatial_scale must be.*found nan"),
    ("roi_feature_loss", {"target_boxes": torch.zeros(4, 3)}, ValueError, "target_boxes must be of shape.*4, 3"),
    ("roi_feature_loss", {"matched_idxs": torch.zeros(4, dtype=torch.int64)}, ValueError, "matched_idxs must be.*9.*4"),
    ("roi_feature_loss", {"target_image_index": torch.zeros(9, dtype=torch.int64)}, ValueError, "target_image_index.*4.*9"),
    ("roi_feature_loss", {"target_features": torch.zeros(2, 6, 4, 4)}, ValueError, "target_features must be of 5 channels.*6"),
    ("roi_feature_loss", {"loss": "huber"}, ValueError, "loss must be one of 'l1', 'l2', 'smooth_l1', found 'huber'"),
    ("roi_feature_loss", {"beta": 0.0, "loss": "smooth_l1"}, ValueError, "beta must be.*0.0"),
    ("roi_feature_loss", {"reduction": "max"}, ValueError, "reduction must be one of.*'max'"),
    ("roi_feature_loss", {"weight": torch.ones(8)}, ValueError, "weight must be of shape .9.*8"),
    ("roi_feature_loss", {"weight": torch.ones(9, dtype=torch.int64)}, TypeError, "weight must be float.*torch.int64"),
    ("roi_feature_loss", {"normalizer": 0}, ValueError, "normalizer must be a positive finite number, found 0"),
    ("roi_feature_loss", {"normalizer": torch.ones(2)}, ValueError, "normalizer must be.*2 elements"),
    ("matched_feature_loss", {"target_features": torch.zeros(4, 5, 7, 7)}, ValueError, "target_features.*5, 7, 6.*5, 7, 7"),
    ("matched_feature_loss", {"features": torch.zeros(9, 5)}, ValueError, "features must be of shape.*9, 5"),
    ("masked_feature_loss", {"student": torch.zeros(9, 5)}, ValueError, "student must be of shape.*9, 5"),
    ("masked_feature_loss", {"teacher": torch.zeros(9, 5, 11, 13)}, ValueError, "teacher must be of shape.*11, 14.*11, 13"),
    ("masked_feature_loss", {"mask": torch.zeros(9, 11, 13)}, ValueError, "mask must be of shape.*9, 11, 14.*9, 11, 13"),
    ("masked_feature_loss", {"mask": torch.zeros(9, 11, 14).bool()}, TypeError, "mask must be float32.*torch.bool"),
    ("masked_feature_loss", {"channel_mask": torch.zeros(9, 6)}, ValueError, "channel_mask must be of shape.*9, 5.*9, 6"),
    ("masked_feature_loss", {"normalizer": -1.0}, ValueError, "normalizer must be a positive finite number, found -1.0"),
    ("masked_feature_loss", {"reduction": "max"}, ValueError, "reduction must be one of.*'max'"),
    ("attention_means", {"features": torch.zeros(9, 5)}, ValueError, "features must be of shape.*9, 5"),
    (
        "attention_means",
        {"features": torch.zeros(1, 5, 3, 0)},
        ValueError,
        "features must be a map of at least one pixel.*3, 0",
    ),
    ("attention_means", {"features": torch.zeros(1, 5, 3, 2).int()}, TypeError, "features must be float32.*int32"),
    ("frozen_stem", {"images": torch.zeros(9, 3, 5)}, ValueError, "images must be of shape.*9, 3, 5"),
    ("frozen_stem", {"weight": torch.zeros(5, 2, 3, 3)}, ValueError, "weight must be of shape .C, 3, k_h, k_w.*5, 2, 3, 3"),
    ("frozen_stem", {"weight": torch.zeros(5, 3, 9, 3)}, ValueError, "weight must be of a kernel of 1 to 8, found .9, 3"),
    ("frozen_stem", {"bias": torch.zeros(4)}, ValueError, "bias must be of shape .5., found.*4"),
    ("frozen_stem", {"bias": torch.zeros(5, dtype=torch.int64)}, TypeError, "bias must be float32.*int64"),
    ("frozen_stem", {"stride": 0}, ValueError, "stride must be 1 to 8, found 0"),
    ("frozen_stem", {"padding": 3}, ValueError, "padding must be less than the kernel, .3, 3., found 3"),
    ("frozen_stem", {"padding": -1}, ValueError, "padding must be at least 0, found -1"),
    ("frozen_stem", {"padding": 0.5}, TypeError, "padding must be whole numbers, found 0.5"),
    (
        "frozen_stem",
        {"images": torch.zeros(9, 3, 11, 2), "padding": 0},
        ValueError,
        "images must be padded, at least as.*11, 2",
    ),
    ("attention_means", {"absolute": 1}, TypeError, "absolute must be True or False, found 1"),
    ("imitation_mask", {"anchors": torch.zeros(700, 5)}, ValueError, "anchors must be of shape .N, 4.*700, 5"),
    ("imitation_mask", {"boxes": torch.zeros(9, 4).int()}, TypeError, "boxes must be float32.*int32"),
    ("imitation_mask", {"image_index": torch.zeros(8).long()}, ValueError, "image_index must be.*9.*8"),
    ("imitation_mask", {"images": -1}, ValueError, "images must be at least 0, found -1"),
    ("imitation_mask", {"images": 2.0}, TypeError, "images must be whole numbers, found 2.0"),
    (
        "imitation_mask",
        {"level_sizes": (600, 101)},
        ValueError,
        "level_sizes must be of sum 700, the rows of anchors, found 701",
    ),
    ("imitation_mask", {"level_sizes": (701, -1)}, ValueError, "level_sizes must be at least 0, found -1"),
    ("imitation_mask", {"level_sizes": ()}, ValueError, "level_sizes must be 1 to 16 numbers, found 0"),
    ("imitation_mask", {"level_sizes": (700, *[0] * 16)}, ValueError, "level_sizes must be 1 to 16 numbers, found 17"),
    ("imitation_mask", {"factor": 0.0}, ValueError, "factor must be a positive finite number, found 0.0"),
    ("imitation_mask", {"assignment": "every"}, ValueError, "assignment must be one of 'level', 'all', 'best', found 'every'"),
    ("kd_softmax_loss", {"temperature": 0}, ValueError, "temperature must be a positive finite number, found 0"),
    ("kd_softmax_loss", {"temperature": -2.0}, ValueError, "temperature must be.*found -2.0"),
    ("kd_softmax_loss", {"temperature": float("nan")}, ValueError, "temperature must be.*found nan"),
    ("kd_softmax_loss", {"background": "none"}, ValueError, "student_logits must be of 5 columns.*background='none'.*6"),
    ("kd_softmax_loss", {"background": "middle"}, ValueError, "background must be one of.*'middle'"),
    ("kd_softmax_loss", {"student_logits": torch.zeros(9, 5)}, ValueError, "student_logits must be of 6 columns.*found 5"),
    ("kd_softmax_loss", {"student_logits": torch.zeros(9)}, ValueError, "student_logits must be of shape .K, C.*9"),
    ("kd_softmax_loss", {"teacher_logits": torch.zeros(4, 0), "student_logits": torch.zeros(9, 1)}, ValueError, "column"),
    ("kd_softmax_loss", {"matched_idxs": torch.zeros(9, dtype=torch.bool)}, TypeError, "matched_idxs must be int64.*bool"),
    ("kd_sigmoid_loss", {"mode": "kl"}, ValueError, "mode must be one of 'bce', 'l1norm', found 'kl'"),
    ("kd_sigmoid_loss", {"background": "first"}, ValueError, "student_logits must be of 6 columns.*found 5"),
    ("kd_sigmoid_loss", {"student_logits": torch.zeros(9, 5).int()}, TypeError, "student_logits must be float.*int32"),
    ("roi_kd_loss", {"head": "tanh"}, ValueError, "head must be one of 'softmax', 'sigmoid', found 'tanh'"),
    ("roi_kd_loss", {"boxes": torch.zeros(8, 4)}, ValueError, "boxes must be of shape .9, 4.*8, 4"),
    ("roi_kd_loss", {"teacher_logits": torch.zeros(5, 5)}, ValueError, "teacher_logits must be of shape .4, C.*5, 5"),
    ("roi_kd_loss", {"target_image_index": torch.zeros(3, dtype=torch.int64)}, ValueError, "target_image_index.*4.*3"),
]


@pytest.mark.parametrize(("name", "changes", "error", "message"), BAD, ids=[f"{b[0]}-{'-'.join(b[1])}" for b in BAD])
def test_message_names_argument_expected_and_found(backend, name, changes, error, message):
    case = make_case(name)
    if name == "roi_kd_loss":  # the composite itself, whose options the case hides
        case = Case(cls2det_ops.roi_kd_loss, {key: value for key, value in case.tensors.items() if key != "features"})
    with pytest.raises(error, match=f"^{name}: .*{message}") as raised:
        call(backend, case, **changes)
    assert ".cpp" not in str(raised.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="two devices are needed: no GPU that this torch can use")
@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_tensors_on_two_devices(name):
    case = make_case(name)
    _, *others = case.tensors
    for other in others:
        tensors = {key: value.cuda() if key == other else value for key, value in case.tensors.items()}
        with pytest.raises(ValueError, match=r"must be on .*found .*"):
            case.function(**tensors, **case.options)


def _with(case: Case, argument: str, position: tuple, value: float) -> dict:
    tensor = case.tensors[argument].clone()
    tensor[position] = value
    return {argument: tensor}


BAD_VALUES = [  # op, argument, position, value, what the report must hold
    ("roi_crop", "image_index", (3,), 2, "image_index must be in \\[0, 2\\).*found 2 at row 3"),
    ("roi_crop", "image_index", (3,), -1, "image_index.*found -1 at row 3"),
    ("roi_crop", "boxes", (4, 1), float("nan"), "boxes must be finite.*at row 4"),
    ("roi_crop", "boxes", (4, 0), 1e6, "boxes must be.*x1 <= x2.*at row 4"),
    ("roi_avg_pool", "boxes", (1, 3), float("inf"), "boxes must be finite.*at row 1"),
    ("roi_avg_pool", "image_index", (0,), 77, "image_index.*found 77 at row 0"),
    ("roi_feature_loss", "matched_idxs", (8,), 4, "matched_idxs must be below 4.*found 4 at row 8"),
    ("roi_feature_loss", "target_image_index", (1,), 5, "target_image_index.*found 5 at row 1"),
    ("roi_feature_loss", "target_boxes", (2, 2), float("nan"), "target_boxes must be finite.*at row 2"),
    ("matched_feature_loss", "matched_idxs", (0,), 4, "matched_idxs.*found 4 at row 0"),
    ("imitation_mask", "image_index", (2,), 3, "image_index must be in \\[0, 2\\).*found 3 at row 2"),
    ("imitation_mask", "boxes", (4, 1), float("nan"), "boxes must be finite.*at row 4"),
    ("kd_softmax_loss", "matched_idxs", (7,), 17, "matched_idxs.*found 17 at row 7"),
    ("kd_softmax_loss", "student_logits", (7, 2), float("inf"), "student_logits must be finite, found 1 value"),
    ("kd_softmax_loss", "teacher_logits", (0, 2), float("nan"), "teacher_logits must be finite, found 1 value"),
    ("kd_sigmoid_loss", "student_logits", (0, 0), float("-inf"), "student_logits must be finite, found 1 value"),
    ("roi_kd_loss", "boxes", (0, 0), float("nan"), "boxes must be finite.*at row 0"),
]


@pytest.mark.parametrize(
    ("name", "argument", "position", "value", "message"), BAD_VALUES, ids=[f"{b[0]}-{b[1]}-{b[3]}" for b in BAD_VALUES]
)
def test_debug_mode_reports_values(backend, name, argument, position, value, message):
    case = make_case(name)
    bad = _with(case, argument, position, value)
    call(backend, case, **bad)  # safe without
    with debug_values():
        call(backend, case)
        with pytest.raises(ValueError, match=f"^\\w+: {message}"):
            call(backend, case, **bad)
        with debug_values(False):
            call(backend, case, **bad)
    call(backend, case, **bad)


def test_unknown_backend():
    with pytest.raises(ValueError, match="'auto', 'native', 'reference', found 'fast'"), use_backend("fast"):
        pass


def test_backend_is_restored_after_an_error():
    before = _library._backend
    case = make_case("kd_softmax_loss")
    with pytest.raises(ValueError, match="temperature"), use_backend("reference"):
        case.function(**case.tensors, temperature=-1)
    assert _library._backend == before


@pytest.mark.parametrize("size", [4097, 65536])
def test_sizes_whose_product_would_not_fit(backend, size):
    image, box, first = torch.zeros(1, 1, 8, 8), torch.tensor([[1.0, 1, 5, 5]]), torch.zeros(1, dtype=torch.int64)
    tensors = [tensor.to(backend.device) for tensor in (image, box, first)]
    with backend.context(), pytest.raises(ValueError, match=r"output_size must be at most 4096 .* found"):
        cls2det_ops.roi_avg_pool(*tensors, size, 4)
    if backend.name == "cpu":  # and behind the public function
        with pytest.raises(RuntimeError, match="too large"):
            torch.ops.cls2det.roi_avg_pool(*tensors, size, size, 4, 4, 1.0, False, True)


def test_debug_values_leaves_ignored_rows_alone(backend):
    case = make_case("kd_softmax_loss")
    tensors = {key: value.to(backend.device) for key, value in case.tensors.items()}
    tensors["matched_idxs"][:2] = torch.tensor([-1, -2])
    with backend.context(), cls2det_ops.debug_values():
        case.function(**tensors)
        tensors["matched_idxs"][0] = 99
        with pytest.raises(ValueError, match="matched_idxs must be below"):
            case.function(**tensors)


def test_maps_of_the_composite():
    case = make_case("roi_kd_loss")
    tensors = dict(case.tensors)
    image = tensors.pop("features")
    for wrong in (image, (image, 4, 8), [image]):
        with pytest.raises(TypeError, match="maps must be a RoIMap or a sequence of them, found"):
            cls2det_ops.roi_kd_loss(**tensors, maps=wrong)
