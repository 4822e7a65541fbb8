"""kd_softmax_loss: against torch's kl_div and the closed-form gradient, the limits of extreme logits, and the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cls2det_ops import kd_softmax_loss
from helpers import DTYPES, ORACLE, assert_close, compare, evaluate

INF, NAN = float("inf"), float("nan")
ROWS = {"reduction": "none"}


def scene(classes: int = 7, background: str = "first", k: int = 11, g: int = 5) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(classes)
    return {
        "student_logits": torch.randn(k, classes + (background != "none"), generator=random, dtype=torch.float64) * 4,
        "teacher_logits": torch.randn(g, classes, generator=random, dtype=torch.float64) * 4,
        "matched_idxs": torch.randint(g, (k,), generator=random),
    }


def foreground(columns: Tensor, background: str) -> Tensor:
    return {"first": columns[:, 1:], "last": columns[:, :-1], "none": columns}[background]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.37, 10])
@pytest.mark.parametrize("background", ["first", "last", "none"])
def test_equals_torch_kl_div(backend, background, temperature):
    tensors = scene(background=background)

    def kl(student_logits: Tensor, teacher_logits: Tensor, matched_idxs: Tensor) -> Tensor:
        student = foreground(F.log_softmax(student_logits / temperature, 1), background)
        teacher = F.softmax(teacher_logits[matched_idxs] / temperature, 1)
        return temperature**2 * F.kl_div(student, teacher, reduction="none").sum(1)

    options = ROWS | {"temperature": temperature, "background": background}
    output, grads = evaluate(backend, kd_softmax_loss, tensors, options, ("student_logits",))
    expected, expected_grads = evaluate(ORACLE, kl, tensors, None, ("student_logits",))
    assert_close(output, expected)
    assert_close(grads["student_logits"], expected_grads["student_logits"])


@pytest.mark.parametrize("background", ["first", "last", "none"])
def test_gradient_is_temperature_times_the_difference_of_probabilities(backend, background):
    """T / N (P_student - P_teacher), and T / N P_student in the background column."""
    tensors = scene(background=background)
    options = {"temperature": 3.0, "background": background}
    _, grads = evaluate(backend, kd_softmax_loss, tensors, options, ("student_logits",), torch.tensor(1.0))
    expected = torch.softmax(tensors["student_logits"] / 3, 1)
    teacher = torch.softmax(tensors["teacher_logits"] / 3, 1)[tensors["matched_idxs"]]
    foreground(expected, background).sub_(teacher)
    assert_close(grads["student_logits"], expected * 3 / 11)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("classes", "background", "temperature", "index", "k"),
    [
        (1, "first", 2.0, torch.int64, 5),
        (3, "none", 1.0, torch.int32, 17),
        (4, "last", 2.0, torch.int64, 3),
        (16, "first", 4.0, torch.int64, 9),
        (17, "none", 2.0, torch.int64, 1),
        (20, "last", 1.5, torch.int32, 33),
        (80, "first", 2.0, torch.int64, 40),
        (91, "last", 2.0, torch.int64, 12),
        (130, "none", 2.0, torch.int64, 6),
        (365, "first", 2.0, torch.int64, 6),
        (1203, "first", 2.0, torch.int64, 4),
    ],
)
def test_matches_reference(backend, dtype, classes, background, temperature, index, k):
    options = ROWS | {"temperature": temperature, "background": background}
    tensors = scene(classes, background, k)
    output, _ = compare(backend, kd_softmax_loss, tensors, options, dtype, ("student_logits",), index=index)
    assert output.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_many_rows(backend):
    compare(backend, kd_softmax_loss, scene(80, "first", 3000, 200), {}, torch.float32, ("student_logits",))


def test_logits_of_two_dtypes_are_promoted(backend):
    tensors = scene()
    tensors |= {"student_logits": tensors["student_logits"].bfloat16(), "teacher_logits": tensors["teacher_logits"].float()}
    output, grads = evaluate(backend, kd_softmax_loss, tensors, ROWS, ("student_logits",))
    exact = {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}
    expected, expected_grads = evaluate(ORACLE, kd_softmax_loss, exact, ROWS, ("student_logits",))
    assert output.dtype == torch.float32
    assert grads["student_logits"].dtype == torch.bfloat16
    assert_close(output, expected, torch.float32)
    assert_close(grads["student_logits"], expected_grads["student_logits"])


def test_equal_distributions_have_no_distance(backend):
    tensors = scene(background="none")
    shift = torch.linspace(-20, 20, 11, dtype=torch.float64)[:, None]  # softmax does not see it
    tensors["student_logits"] = tensors["teacher_logits"][tensors["matched_idxs"]] + shift
    output, grads = evaluate(backend, kd_softmax_loss, tensors, ROWS | {"background": "none"}, ("student_logits",))
    assert output.abs().max() < 1e-13
    assert grads["student_logits"].abs().max() < 1e-13


def test_rows_without_match_are_ignored(backend):
    tensors = scene()
    tensors["matched_idxs"][[0, 2, 3, 7]] = torch.tensor([-1, -2, 5, -(2**50)])
    output, grads = compare(backend, kd_softmax_loss, tensors, ROWS, torch.float64, ("student_logits",))
    assert (output[[0, 2, 3, 7]] == 0).all()
    assert (grads["student_logits"][[0, 2, 3, 7]] == 0).all()
    assert (output[[1, 4, 5, 6]] > 0).all()


def one_row(student: list[float], teacher: list[float], dtype: torch.dtype) -> dict[str, Tensor]:
    zero = torch.zeros(1, dtype=torch.int64)
    return {"student_logits": torch.tensor([student], dtype=dtype), "teacher_logits": torch.tensor([teacher], dtype=dtype),
            "matched_idxs": zero}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("student", "teacher", "expected", "gradient"),  # T = 2, background first
    [
        # sure and wrong: 4 (0 - log softmax) = 4 * 10000, gradient T (P - 1)
        ([-1e4, -1e4, 1e4], [1e4, -1e4], 4e4, [0, -2, 2]),
        ([1e4, -1e4, -1e4], [1e4, -1e4], 4e4, [2, -2, 0]),
        # sure and right
        ([-1e4, 1e4, -1e4], [1e4, -1e4], 0, [0, 0, 0]),
        ([-INF, 0, -INF], [0, -INF], 0, [0, 0, 0]),
        # a class the teacher excludes: KL of (1, 0) from the student's softmax of three equal logits
        ([0, 0, 0], [0, -INF], 4 * 1.0986122886681098, [2 / 3, -4 / 3, 2 / 3]),
        # a class both exclude
        ([0, 0, -INF], [0, -INF], 4 * 0.6931471805599453, [1, -1, 0]),
        # the student excludes what the teacher is sure of
        ([0, -INF, 0], [0, -INF], INF, None),
        ([0, 0, -INF], [0, 0], INF, None),
        # no limit
        ([0, NAN, 0], [0, 0], NAN, None),
        ([NAN, 0, 0], [0, 0], NAN, None),
        ([0, INF, 0], [0, 0], NAN, None),
        ([0, 0, 0], [NAN, 0], NAN, None),
        ([0, 0, 0], [INF, 0], NAN, None),
    ],
)
def test_extreme_logits(backend, dtype, student, teacher, expected, gradient):
    output, grads = evaluate(backend, kd_softmax_loss, one_row(student, teacher, dtype), ROWS, ("student_logits",),
                             torch.ones(1))  # fmt: skip
    assert_close(output, torch.tensor([expected], dtype=torch.float64), dtype, nan=expected != expected)
    if gradient is not None:
        assert_close(grads["student_logits"], torch.tensor([gradient], dtype=torch.float64), dtype)


def test_extreme_rows_leave_the_others_alone(backend):
    tensors = scene(17)
    clean, clean_grads = evaluate(backend, kd_softmax_loss, tensors, ROWS, ("student_logits",))
    tensors["student_logits"][4, 3] = NAN
    tensors["student_logits"][6, 9] = INF
    tensors["student_logits"][9, 2] = -INF
    output, grads = evaluate(backend, kd_softmax_loss, tensors, ROWS, ("student_logits",))
    others = [0, 1, 2, 3, 5, 7, 8, 10]
    assert_close(output[others], clean[others])
    assert_close(grads["student_logits"][others], clean_grads["student_logits"][others])
    assert output[[4, 6]].isnan().all()
    assert output[9].item() == INF


@pytest.mark.parametrize("background", ["first", "last", "none"])
def test_gradcheck(backend, background):
    tensors = {key: value.to(backend.device) for key, value in scene(5, background, 4, 3).items()}
    with backend.context():
        assert torch.autograd.gradcheck(
            lambda student: kd_softmax_loss(
                student, tensors["teacher_logits"], tensors["matched_idxs"], 2.0, background, reduction="none"
            ),
            (tensors["student_logits"].requires_grad_(),),
        )
