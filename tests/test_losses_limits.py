"""The detector-to-detector losses on every back end, and at their limits: units, weights of 0, huge numbers, bad input."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import generalized_box_iou_loss

from cls2det_ops import debug_values, losses
from helpers import ORACLE, assert_close, evaluate

INF, NAN = float("inf"), float("nan")
DOUBLE = {"dtype": torch.float64}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def boxes(count: int, seed: int = 0) -> torch.Tensor:
    return torch.cat([30 * uniform(count, 2, seed=seed), 35 + 30 * uniform(count, 2, seed=seed + 1)], 1)


# What stands on an operator. All tensors are arguments, so that they lie where the back end wants them.
OPERATED = {
    "root": lambda student, teacher, mask: losses.root_feature_loss(student, teacher, mask, mask[:, 0, :4]),
    "root, per image": lambda student, teacher, mask: losses.root_feature_loss(student, teacher, mask, per_image=True),
    "fkd masks": lambda student, teacher, mask: sum(tensor.square().sum() for tensor in losses.fkd_masks(student, teacher)),
    "fgfi": lambda student, teacher, mask: losses.fgfi_loss([student] * 2, [teacher] * 2, [mask > 0.4, mask > 0.8]),
    "harmony": lambda student, teacher, mask: losses.harmony_feature_loss(
        [student] * 2, [teacher] * 2, [mask] * 2, [mask > 0.6] * 2
    ),
    "fgd": lambda student, teacher, mask: sum(losses.fgd_feature_loss(student, teacher, mask, 1 - mask)),
    "cwd": lambda student, teacher, mask: losses.cwd_loss(student, teacher, 2.0),
}


@pytest.mark.parametrize("name", OPERATED)
def test_every_back_end(backend, name):
    exact = {"student": normal(3, 4, 5, 6), "teacher": normal(3, 4, 5, 6, seed=1), "mask": uniform(3, 5, 6)}
    tensors = {key: value.float() for key, value in exact.items()}
    exact = {key: value.double() for key, value in tensors.items()}
    gradients = () if name == "fkd masks" else ("student",)
    result, grads = evaluate(backend, OPERATED[name], tensors, None, gradients, torch.tensor(1.0))
    expected, slopes = evaluate(ORACLE, OPERATED[name], exact, None, gradients, torch.tensor(1.0))
    assert_close(result, expected, torch.float32)
    for key in gradients:
        assert_close(grads[key], slopes[key], torch.float32)


ROWS = {
    **{name: ((3, 4, 5, 6), loss) for name, loss in OPERATED.items() if name != "fkd masks"},
    "gid feature": ((6, 4, 3), lambda s, t, m: losses.gid_feature_loss(s, t)),
    "gid relation": ((6, 9), lambda s, t, m: losses.gid_relation_loss(s, t)),
    "gid sigmoid": ((5, 4), lambda s, t, m: losses.gid_response_loss(s, t, s, t, m[0, 0, :5])),
    "gid softmax": ((5, 4), lambda s, t, m: losses.gid_response_loss(s, t, s, t, m[0, 0, :5], head="softmax")),
    "chen class": ((7, 5), lambda s, t, m: losses.chen_class_loss(s, t)),
    "chen bounded": ((7, 4), lambda s, t, m: losses.chen_bounded_loss(s, t, -s)),
    "pkd": ((3, 4, 5, 6), lambda s, t, m: losses.pkd_loss(s, t)),
    "pkd, per image": ((3, 4, 5, 6), lambda s, t, m: losses.pkd_loss(s, t, per_image=True)),
    "bckd": ((7, 5), lambda s, t, m: losses.bckd_loss(s, t)),
    "bckd, power 0.5": ((7, 5), lambda s, t, m: losses.bckd_loss(s, t, 0.5)),
    "bckd box": ((7, 4), lambda s, t, m: losses.bckd_box_loss(s.sort(1)[0], t.sort(1)[0])),
    "fkd attention": ((3, 4), lambda s, t, m: losses.fkd_attention_loss(s[:, :, None], t[:, :, None], s, t)),
    "sinkhorn": ((3, 4, 5), lambda s, t, m: losses.sinkhorn_loss(s.abs(), m[:, 0, :4], m[:, 1, :5]).sum()),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(("scale", "dtype"), [(0, "float32"), (1e-30, "float32"), (1e30, "float32"), (6e4, "float16")])
def test_finite_numbers_give_no_nan(name, scale, dtype):
    shape, loss = ROWS[name]
    student, teacher = (scale * tensor / tensor.abs().max() for tensor in (normal(*shape), normal(*shape, seed=1)))
    student = student.to(getattr(torch, dtype)).requires_grad_()
    value = loss(student, teacher.to(student.dtype), uniform(3, 5, 6).float())
    value.backward()
    assert not value.isnan() and not student.grad.isnan().any()


def test_boxes_have_no_unit():
    student, teacher = boxes(9), boxes(9, 5)
    expected = generalized_box_iou_loss(student, teacher).mean()
    for unit in (1e-20, 1e-4, 1.0, 1e20):
        leaf = (student * unit).float().requires_grad_()
        result = losses.bckd_box_loss(leaf, (teacher * unit).float())
        assert result.item() == pytest.approx(expected.item(), rel=1e-5)
        result.backward()
        assert leaf.grad.isfinite().all() and leaf.grad.any()
    point = torch.tensor([[1.0, 2.0, 1.0, 2.0]])
    assert losses.bckd_box_loss(point, point) == 1  # of 0 and 0 places, none is shared
    assert losses.bckd_box_loss(point, point + 3) == 2


def test_relations_have_no_unit():
    student, teacher = normal(6, 40), normal(6, 8, 2, 5, seed=1)
    expected = losses.gid_relation_loss(student, teacher).item()
    for unit in (1e-25, 1e-10, 1e10, 1e25):
        assert losses.gid_relation_loss((student * unit).float(), teacher.float()).item() == pytest.approx(expected, rel=1e-4)
    twins = student.clone()
    twins[3] = twins[1]
    twins.requires_grad_()
    losses.gid_relation_loss(twins, teacher).backward()
    assert twins.grad.isfinite().all() and twins.grad.any()


def test_gid_features_of_any_shape():
    student, teacher = normal(5, 7), normal(5, 7, seed=1)
    expected = sum(torch.dist(one, other) for one, other in zip(student, teacher, strict=True)) / 5
    torch.testing.assert_close(losses.gid_feature_loss(student, teacher), expected)
    with pytest.raises(ValueError, match=r"gid_feature_loss: student must be of shape \(K, C, h, w\)"):
        losses.gid_feature_loss(student, teacher, "squared")


@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
def test_gid_response_weighs_by_the_mask(head):
    logits, expected, codes, bound = normal(4, 3), normal(4, 3, seed=1), normal(4, 4, seed=2), normal(4, 4, seed=3)
    mask = torch.tensor([0.25, 0.0, 1.0, 0.5])
    logits[1], codes[1] = NAN, INF  # not marked, not read
    leaf = logits.requires_grad_()
    result = losses.gid_response_loss(leaf, expected, codes, bound, mask, head=head)
    total = 0.0
    for n in (0, 2, 3):
        if head == "sigmoid":
            score = F.binary_cross_entropy_with_logits(logits[n], expected[n].sigmoid(), reduction="sum")
        else:
            score = F.cross_entropy(logits[n], expected[n].softmax(0))
        total += mask[n].item() * (0.1 * score + (codes[n] - bound[n]).abs().sum()).item()
    assert result.item() == pytest.approx(total / 1.75)
    result.backward()
    assert leaf.grad.isfinite().all() and not leaf.grad[1].any()


def test_masks_of_16_bits_are_counted_exactly():
    """A sum in float16 cannot exceed 65504, one in bfloat16 stops at 256."""
    student, teacher = torch.ones(1, 1, 300, 300), torch.zeros(1, 1, 300, 300)
    for dtype in (torch.float16, torch.bfloat16, torch.bool):
        assert losses.fgfi_loss([student], [teacher], [torch.ones(1, 300, 300, dtype=dtype)]) == 0.5
        many = torch.zeros(70000, 4)
        response = losses.gid_response_loss(many, many, many + 1, many, torch.ones(70000, dtype=dtype), cls_weight=0.0)
        assert response == 4


@pytest.mark.parametrize("background", ["first", "last"])
def test_chen_class_rows_and_classes_of_no_probability(background):
    student, teacher = normal(6, 4), normal(6, 4, seed=1)
    rows = [losses.chen_class_loss(student[r : r + 1], teacher[r : r + 1], background=background) for r in range(6)]
    row_losses = losses.chen_class_loss(student, teacher, background=background, reduction="none")
    torch.testing.assert_close(row_losses, torch.stack(rows))
    torch.testing.assert_close(losses.chen_class_loss(student, teacher, background=background, reduction="sum"), sum(rows))
    column = 0 if background == "first" else 3
    without = -(teacher.softmax(1) * student.log_softmax(1)).index_fill(1, torch.tensor([column]), 0).sum(1).mean()
    result = losses.chen_class_loss(student, teacher, background=background, background_weight=0)
    torch.testing.assert_close(result, without)
    student[:, 1], teacher[:, 1] = -INF, -INF  # a class that neither knows
    student.requires_grad_()
    known = [0, 2, 3]
    result = losses.chen_class_loss(student, teacher, background=background)
    torch.testing.assert_close(result, losses.chen_class_loss(student[:, known], teacher[:, known], background=background))
    result.backward()
    assert student.grad.isfinite().all()


def test_chen_bounded_is_strict_and_hides_no_nan():
    target = torch.zeros(3, 4)
    student = torch.tensor([[1.0] * 4, [2.0] * 4, [NAN] * 4])
    teacher = torch.ones(3, 4)
    assert losses.chen_bounded_loss(student[:2], teacher[:2], target[:2]) == 8  # as good as the teacher: left alone
    assert losses.chen_bounded_loss(student[:2], teacher[:2], target[:2], margin=0.1) == 10
    assert losses.chen_bounded_loss(student, teacher, target).isnan()


WEIGHTED = {
    "bckd": ((4, 5), lambda s, t, w: losses.bckd_loss(s, t, 1.0, w, 3.0)),
    "bckd box": ((4, 4), lambda s, t, w: losses.bckd_box_loss(s.cumsum(1), t.cumsum(1), w, 3.0)),
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_rows_of_weight_0_are_out_even_if_they_are_nan(name):
    shape, loss = WEIGHTED[name]
    student, teacher, weight = uniform(*shape), uniform(*shape, seed=1), torch.tensor([0.5, 0.0, 2.0, 0.0])
    expected = loss(student[::2], teacher[::2], weight[::2])
    student[1], teacher[3] = NAN, NAN
    leaf = student.requires_grad_()
    result = loss(leaf, teacher, weight)
    torch.testing.assert_close(result, expected)
    result.backward()
    assert leaf.grad.isfinite().all() and not leaf.grad[1::2].any() and leaf.grad[::2].any()


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_normalizer_makes_unequal_shares_add_up(name):
    shape, loss = WEIGHTED[name]
    student, teacher, weight = uniform(*shape), uniform(*shape, seed=1), uniform(4)
    shares = [loss(student[part], teacher[part], weight[part]) for part in (slice(1), slice(1, 4))]
    torch.testing.assert_close(sum(shares), loss(student, teacher, weight))


def test_fkd_attention_of_maps_with_a_channel_and_to_all_four():
    spatial, channel = (normal(2, 3, 4), normal(2, 3, 4, seed=1)), (normal(2, 5), normal(2, 5, seed=1))
    expected = losses.fkd_attention_loss(*spatial, *channel)
    torch.testing.assert_close(losses.fkd_attention_loss(spatial[0][:, None], spatial[1], *channel), expected)
    torch.testing.assert_close(losses.fkd_attention_loss(spatial[0], spatial[1][:, None], *channel), expected)
    leaves = [tensor.requires_grad_() for tensor in (*spatial, *channel)]
    for per_image in (False, True):
        assert torch.autograd.gradcheck(lambda *four: losses.fkd_attention_loss(*four, per_image=per_image), leaves)  # noqa: B023


def test_fkd_masks_have_no_gradient():
    student, teacher = normal(2, 3, 4, 5).requires_grad_(), normal(2, 3, 4, 5, seed=1).requires_grad_()
    assert not any(mask.requires_grad for mask in losses.fkd_masks(student, teacher))


def test_per_image_is_the_mean_of_images_alone():
    student, teacher, mask = normal(3, 4, 5, 6), normal(3, 4, 5, 6, seed=1), uniform(3, 5, 6) > 0.6
    mask[1] = False  # an image without objects
    assert mask[0].sum() != mask[2].sum()

    def alone(loss):
        return torch.stack([loss(*(tensor[b : b + 1] for tensor in (student, teacher, mask))) for b in range(3)]).mean()

    def fgfi(s, t, m, **options):
        return losses.fgfi_loss([s, s], [t, t], [m, m & False], **options)

    torch.testing.assert_close(fgfi(student, teacher, mask, per_image=True), alone(fgfi))
    for loss in (lambda s, t, m, **how: losses.root_feature_loss(s, t, m.double(), **how),
                 lambda s, t, m, **how: losses.pkd_loss(s, t, **how)):  # fmt: skip
        torch.testing.assert_close(loss(student, teacher, mask, per_image=True), alone(loss))


def test_fgfi_does_not_read_unmarked_places(backend):
    student, teacher, mask = normal(2, 4, 5, 6).float(), normal(2, 4, 5, 6, seed=1).float(), uniform(2, 5, 6) > 0.5
    expected = losses.fgfi_loss([student], [teacher], [mask])
    student = torch.where(mask[:, None], student, NAN)
    tensors = {"student": student, "teacher": teacher, "mask": mask.float()}
    result, grads = evaluate(
        backend, lambda student, teacher, mask: losses.fgfi_loss([student], [teacher], [mask]), tensors, None, ("student",)
    )
    assert_close(result, expected, torch.float32)
    assert grads["student"].isfinite().all()


def test_fgd_masks_by_loops_with_two_strides():
    random_boxes, image = boxes(7) * torch.tensor([1.5, 0.7, 1.5, 0.7], **DOUBLE), torch.tensor([0, 1, 1, 1, 0, 3, 3])
    for strides in ((4.0, 16.0), [4, 16]):
        foreground, background = losses.fgd_masks(random_boxes, image, 4, (9, 5), strides)
        assert foreground.dtype == torch.float64
        for b in range(4):
            expected = torch.zeros(9, 5, **DOUBLE)
            for (x1, y1, x2, y2), index in zip(random_boxes.tolist(), image.tolist(), strict=True):
                if index == b:
                    rows = range(math.floor(y1 / 4), math.ceil(y2 / 4) + 1)
                    columns = range(math.floor(x1 / 16), math.ceil(x2 / 16) + 1)
                    for y in rows:
                        for x in columns:
                            if y < 9 and x < 5:
                                expected[y, x] = max(expected[y, x].item(), 1 / (len(rows) * len(columns)))
            torch.testing.assert_close(foreground[b], expected)
            torch.testing.assert_close(background[b], (expected == 0) / (expected == 0).sum().clamp(min=1).double())


def test_fgd_masks_leave_strays_out():
    kept = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    expected = losses.fgd_masks(kept, torch.tensor([1]), 2, (4, 4), 8)
    strays = torch.cat([kept, kept + 9, kept + 9, torch.full((1, 4), NAN)])
    result = losses.fgd_masks(strays, torch.tensor([1, -1, 2, 0]), 2, (4, 4), 8)
    for one, other in zip(result, expected, strict=True):
        assert torch.equal(one, other)
    with debug_values(), pytest.raises(ValueError, match="fgd_masks: boxes must be finite"):
        losses.fgd_masks(strays, torch.tensor([1, -1, 2, 0]), 2, (4, 4), 8)
    with debug_values(), pytest.raises(ValueError, match="fgd_masks: image_index must be below 2"):
        losses.fgd_masks(strays[:3], torch.tensor([1, -1, 2]), 2, (4, 4), 8)


def test_fgd_masks_keep_their_digits():
    student, teacher, mask = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1), uniform(2, 4, 5)
    spatial, channel = (teacher.abs().mean(axes) for axes in (1, (2, 3)))
    spatial = 20 * (spatial.flatten(1) / 0.5).softmax(1).view(2, 4, 5)
    weight = (mask * spatial)[:, None] * 3 * (channel / 0.5).softmax(1)[:, :, None, None]
    expected = (weight * (student - teacher) ** 2).sum() / 2
    result = losses.fgd_feature_loss(student, teacher, mask, mask).foreground
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=0)


def test_sinkhorn_of_padded_sets_is_that_of_the_sets():
    cost, a, b = uniform(1, 3, 4), uniform(1, 3, seed=1), uniform(1, 4, seed=2)
    expected = losses.sinkhorn_loss(cost, a, b)
    padded = torch.full((1, 5, 6), NAN, **DOUBLE)
    padded[:, :3, :4] = cost
    padded.requires_grad_()
    result = losses.sinkhorn_loss(padded, F.pad(a, (0, 2)), F.pad(b, (0, 2), value=-1.0))
    torch.testing.assert_close(result, expected)
    result.sum().backward()
    assert padded.grad.isfinite().all() and not padded.grad[:, 3:].any() and not padded.grad[:, :, 4:].any()
    scaled = losses.sinkhorn_loss(cost, 3 * a, 5 * b)
    torch.testing.assert_close(scaled, expected)


MAP, ROW, BOX = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: losses.root_feature_loss(MAP, None), TypeError, "root_feature_loss: teacher must be a torch.Tensor"),
        (lambda: losses.root_feature_loss(MAP, MAP[:, :2]), ValueError, "root_feature_loss: teacher must be of shape"),
        (lambda: losses.root_feature_loss(MAP, MAP, per_image=1), TypeError, "root_feature_loss: per_image"),
        (lambda: losses.fkd_attention_loss(MAP, MAP, ROW, ROW), ValueError, r"student_spatial must be of shape \(B, H, W\)"),
        (lambda: losses.fgfi_loss([MAP], [MAP], [MAP]), ValueError, r"fgfi_loss: masks\[0\] must be of shape \(2, 4, 4\)"),
        (lambda: losses.fgfi_loss([MAP] * 2, [MAP, ROW], [MAP[:, 0]] * 2), ValueError, r"fgfi_loss: teacher\[1\]"),
        (lambda: losses.fgfi_loss([MAP], [MAP], [MAP[:, 0].int()]), TypeError, r"fgfi_loss: masks\[0\] must be float32"),
        (lambda: losses.gid_feature_loss(ROW, [1]), TypeError, "gid_feature_loss: teacher must be a torch.Tensor"),
        (lambda: losses.gid_feature_loss(ROW[0], ROW[0]), ValueError, r"gid_feature_loss: student must be of shape \(K, D\)"),
        (lambda: losses.gid_relation_loss(ROW.int(), ROW), TypeError, "gid_relation_loss: student must be float32"),
        (lambda: losses.gid_response_loss(ROW, ROW, BOX, BOX, [1, 0]), TypeError, "gid_response_loss: mask"),
        (lambda: losses.gid_response_loss(ROW, None, BOX, BOX, ROW[:, 0]), TypeError, "gid_response_loss: teacher_logits"),
        (lambda: losses.gid_response_loss(ROW, ROW, BOX, BOX, ROW[:, 0], cls_weight="a"), TypeError, "cls_weight"),
        (lambda: losses.chen_class_loss(ROW, ROW, reduction="max"), ValueError, "chen_class_loss: reduction"),
        (lambda: losses.chen_class_loss(ROW, ROW, background_weight=-1), ValueError, "background_weight.*at least 0"),
        (lambda: losses.chen_class_loss(ROW[:, :0], ROW[:, :0]), ValueError, "chen_class_loss: student_logits.*column"),
        (
            lambda: losses.chen_bounded_loss(BOX, BOX, BOX, margin=None),
            TypeError,
            "chen_bounded_loss: margin must be a number",
        ),
        (lambda: losses.bckd_loss(ROW, ROW, normalizer=torch.ones(3)), ValueError, "bckd_loss: normalizer.*3 elements"),
        (lambda: losses.bckd_box_loss(BOX, BOX, ROW[:, 0].int()), TypeError, "bckd_box_loss: weight"),
        (lambda: losses.fgd_masks(BOX, torch.zeros(2).long(), -1, (3, 3), 8), ValueError, "fgd_masks: images"),
        (lambda: losses.fgd_masks(BOX, torch.zeros(2).long(), 2, (3, 3), (8, 8, 8)), ValueError, "fgd_masks: stride"),
        (lambda: losses.fgd_feature_loss(MAP, MAP, MAP[:1, 0], MAP[:, 0]), ValueError, "fgd_feature_loss: foreground"),
        (lambda: losses.pkd_loss(MAP, MAP, per_image="yes"), TypeError, "pkd_loss: per_image"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_boxes_are_looked_at_in_debug_mode():
    upside_down = torch.tensor([[5.0, 5.0, 1.0, 1.0]])
    with debug_values(), pytest.raises(ValueError, match="bckd_box_loss: student_boxes must be finite with x1 <= x2"):
        losses.bckd_box_loss(upside_down, upside_down[:, [2, 3, 0, 1]])
