"""kd_sigmoid_loss: against torch's binary cross entropy and F.normalize, closed forms, limits, and the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cls2det_ops import kd_sigmoid_loss
from helpers import DTYPES, ORACLE, assert_close, compare, evaluate

INF, NAN = float("inf"), float("nan")
ROWS = {"reduction": "none"}
MODES = ("bce", "l1norm")


def scene(classes: int = 7, background: str = "none", k: int = 11, g: int = 5) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(classes)
    return {
        "student_logits": torch.randn(k, classes + (background != "none"), generator=random, dtype=torch.float64) * 3,
        "teacher_logits": torch.randn(g, classes, generator=random, dtype=torch.float64) * 3,
        "matched_idxs": torch.randint(g, (k,), generator=random),
    }


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.6])
def test_bce_is_binary_cross_entropy_minus_the_entropy_of_the_teacher(backend, temperature):
    def fact(student_logits: Tensor, teacher_logits: Tensor, matched_idxs: Tensor) -> Tensor:
        teacher = torch.sigmoid(teacher_logits[matched_idxs] / temperature)
        cross = F.binary_cross_entropy_with_logits(student_logits / temperature, teacher, reduction="none")
        entropy = F.binary_cross_entropy(teacher, teacher, reduction="none")
        return temperature**2 * (cross - entropy).mean(1)

    options = ROWS | {"temperature": temperature}
    output, grads = evaluate(backend, kd_sigmoid_loss, scene(), options, ("student_logits",))
    expected, expected_grads = evaluate(ORACLE, fact, scene(), None, ("student_logits",))
    assert_close(output, expected)
    assert_close(grads["student_logits"], expected_grads["student_logits"])


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.6])
def test_l1norm_is_the_divergence_of_normalised_sigmoids(backend, temperature):
    def fact(student_logits: Tensor, teacher_logits: Tensor, matched_idxs: Tensor) -> Tensor:
        student = F.normalize(torch.sigmoid(student_logits / temperature), p=1, dim=1)
        teacher = F.normalize(torch.sigmoid(teacher_logits[matched_idxs] / temperature), p=1, dim=1)
        return temperature**2 * (teacher * (teacher.log() - student.log())).sum(1)

    options = ROWS | {"temperature": temperature, "mode": "l1norm"}
    output, grads = evaluate(backend, kd_sigmoid_loss, scene(), options, ("student_logits",))
    expected, expected_grads = evaluate(ORACLE, fact, scene(), None, ("student_logits",))
    assert_close(output, expected)
    assert_close(grads["student_logits"], expected_grads["student_logits"])


@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_the_closed_form(backend, mode):
    tensors, t = scene(), 3.0
    _, grads = evaluate(
        backend, kd_sigmoid_loss, tensors, {"temperature": t, "mode": mode}, ("student_logits",), torch.tensor(1.0)
    )
    student = torch.sigmoid(tensors["student_logits"] / t)
    teacher = torch.sigmoid(tensors["teacher_logits"] / t)[tensors["matched_idxs"]]
    if mode == "bce":
        expected = t / 7 * (student - teacher)
    else:
        expected = t * (1 - student) * (student / student.sum(1, True) - teacher / teacher.sum(1, True))
    assert_close(grads["student_logits"], expected / 11)


@pytest.mark.parametrize("mode", MODES)
def test_swapping_the_two_ways_of_a_class_changes_nothing(backend, mode):
    """bce: negating both logits of a class swaps its two probabilities, so no label is needed. l1norm does see it."""
    tensors = scene()
    before, _ = evaluate(backend, kd_sigmoid_loss, tensors, ROWS | {"mode": mode})
    for name in ("student_logits", "teacher_logits"):
        tensors[name][:, 2] *= -1
    after, _ = evaluate(backend, kd_sigmoid_loss, tensors, ROWS | {"mode": mode})
    assert torch.allclose(before, after, rtol=1e-9) == (mode == "bce")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("background", ["first", "last"])
def test_background_column_takes_no_part(backend, background, mode):
    tensors = scene(background=background)
    options = ROWS | {"mode": mode}
    output, grads = evaluate(backend, kd_sigmoid_loss, tensors, options | {"background": background}, ("student_logits",))
    columns = slice(1, None) if background == "first" else slice(None, -1)
    unused = 0 if background == "first" else -1
    without = tensors | {"student_logits": tensors["student_logits"][:, columns]}
    expected, expected_grads = evaluate(backend, kd_sigmoid_loss, without, options, ("student_logits",))
    assert_close(output, expected)
    assert_close(grads["student_logits"][:, columns], expected_grads["student_logits"])
    assert (grads["student_logits"][:, unused] == 0).all()
    tensors["student_logits"][:, unused] = NAN
    ignored, grads = evaluate(backend, kd_sigmoid_loss, tensors, options | {"background": background}, ("student_logits",))
    assert_close(ignored, expected)
    assert (grads["student_logits"][:, unused] == 0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("classes", "background", "temperature", "index", "k"),
    [
        (1, "none", 2.0, torch.int64, 5),
        (3, "first", 1.0, torch.int32, 17),
        (4, "last", 2.0, torch.int64, 3),
        (17, "none", 4.0, torch.int64, 1),
        (20, "last", 1.5, torch.int32, 33),
        (80, "none", 2.0, torch.int64, 40),
        (91, "first", 2.0, torch.int64, 12),
        (365, "none", 2.0, torch.int64, 6),
    ],
)
def test_matches_reference(backend, dtype, classes, background, temperature, index, k, mode):
    options = ROWS | {"temperature": temperature, "background": background, "mode": mode}
    tensors = scene(classes, background, k)
    output, _ = compare(backend, kd_sigmoid_loss, tensors, options, dtype, ("student_logits",), index=index)
    assert output.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("mode", MODES)
def test_rows_without_match_are_ignored(backend, mode):
    tensors = scene()
    tensors["matched_idxs"][[0, 2, 3, 7]] = torch.tensor([-1, -2, 5, 2**50])
    options = ROWS | {"mode": mode}
    output, grads = compare(backend, kd_sigmoid_loss, tensors, options, torch.float64, ("student_logits",))
    assert (output[[0, 2, 3, 7]] == 0).all()
    assert (grads["student_logits"][[0, 2, 3, 7]] == 0).all()
    assert (output[[1, 4, 5, 6]] > 0).all()


LN2 = 0.6931471805599453


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("mode", "student", "teacher", "expected", "gradient"),  # T = 2, two classes
    [
        ("bce", [1e4, -1e4], [1e4, -1e4], 0, [0, 0]),
        ("bce", [-1e4, 0], [1e4, 0], 1e4, [-1, 0]),  # 4 / 2 * 5000
        ("bce", [INF, -INF], [INF, -INF], 0, [0, 0]),
        ("bce", [0, 0], [INF, -INF], 4 * LN2, [-0.5, 0.5]),
        ("bce", [-INF, 0], [INF, 0], INF, None),
        ("bce", [INF, 0], [0, 0], INF, None),
        ("bce", [NAN, 0], [0, 0], NAN, None),
        ("bce", [0, 0], [0, NAN], NAN, None),
        ("l1norm", [1e4, -1e4], [1e4, -1e4], 0, [0, 0]),
        ("l1norm", [0, -INF], [0, -INF], 0, [0, 0]),
        ("l1norm", [0, 0], [0, -INF], 4 * LN2, [-0.5, 0.5]),
        ("l1norm", [-INF, 0], [0, -INF], INF, None),
        ("l1norm", [NAN, 0], [0, 0], NAN, None),
        ("l1norm", [0, 0], [0, NAN], NAN, None),
    ],
)
def test_extreme_logits(backend, dtype, mode, student, teacher, expected, gradient):
    tensors = {"student_logits": torch.tensor([student], dtype=dtype), "teacher_logits": torch.tensor([teacher], dtype=dtype),
               "matched_idxs": torch.zeros(1, dtype=torch.int64)}  # fmt: skip
    output, grads = evaluate(backend, kd_sigmoid_loss, tensors, ROWS | {"mode": mode}, ("student_logits",), torch.ones(1))
    assert_close(output, torch.tensor([expected], dtype=torch.float64), dtype, nan=expected != expected)
    if gradient is not None:
        assert_close(grads["student_logits"], torch.tensor([gradient], dtype=torch.float64), dtype)


def test_l1norm_of_very_negative_logits_is_softmax(backend):
    """sigmoid(z) is exp(z) there, far below the smallest float; the shares are still those of softmax."""
    tensors = scene()
    student, teacher = tensors["student_logits"], tensors["teacher_logits"][tensors["matched_idxs"]]
    expected = 4 * F.kl_div(F.log_softmax(student / 2, 1), F.softmax(teacher / 2, 1), reduction="none").sum(1)
    tensors = tensors | {"student_logits": student - 9000, "teacher_logits": tensors["teacher_logits"] - 9000}
    output, grads = evaluate(backend, kd_sigmoid_loss, tensors, ROWS | {"mode": "l1norm"}, ("student_logits",), torch.ones(11))
    assert_close(output, expected)
    assert_close(grads["student_logits"], 2 * (torch.softmax(student / 2, 1) - torch.softmax(teacher / 2, 1)))


@pytest.mark.parametrize("background", ["first", "none"])
@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(backend, mode, background):
    tensors = {key: value.to(backend.device) for key, value in scene(5, background, 4, 3).items()}
    with backend.context():
        assert torch.autograd.gradcheck(
            lambda student: kd_sigmoid_loss(
                student, tensors["teacher_logits"], tensors["matched_idxs"], mode=mode, background=background, reduction="none"
            ),
            (tensors["student_logits"].requires_grad_(),),
        )
