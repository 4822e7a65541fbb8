"""The detector-to-detector losses against loops and library functions, their gradients, and what splitting a batch does."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import box_iou, generalized_box_iou_loss

from cls2det_ops import losses

DOUBLE = {"dtype": torch.float64}


def maps(batch=3, channels=4, height=5, width=6, seed=0, **kind):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, channels, height, width, generator=generator, **(kind or DOUBLE)) for _ in range(2)]


def rows(*shape, seed=0, **kind):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, **(kind or DOUBLE)) for _ in range(2)]


def random_boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner, sides = torch.rand(2, count, 2, generator=generator, **DOUBLE).unbind()
    return torch.cat([40 * corner, 40 * corner + 4 + 30 * sides], 1)


# Every loss as a function of a student's and a teacher's tensors, for what holds for all of them.
SPATIAL = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(1), **DOUBLE)
MASKS = losses.fgd_masks(random_boxes(4), torch.tensor([0, 0, 1, 2]), 3, (5, 6), 12.0)
LOSSES = {
    "root": (maps, lambda s, t: losses.root_feature_loss(s, t.detach(), SPATIAL)),
    "root, per image": (maps, lambda s, t: losses.root_feature_loss(s, t.detach(), per_image=True)),
    "fkd attention": (
        maps,
        lambda s, t: losses.fkd_attention_loss(s.mean(1), t.mean(1).detach(), s.mean((2, 3)), t.mean((2, 3)).detach()),
    ),
    "fgfi": (maps, lambda s, t: losses.fgfi_loss([s], [t], [SPATIAL > 0.5])),
    "fgfi, per image": (maps, lambda s, t: losses.fgfi_loss([s, s], [t, t], [SPATIAL > 0.5, SPATIAL > 0.8], per_image=True)),
    "gid feature": (maps, losses.gid_feature_loss),
    "gid feature, squared": (maps, lambda s, t: losses.gid_feature_loss(s, t, "squared")),
    "gid relation": (lambda **kind: rows(6, 9, **kind), losses.gid_relation_loss),
    "gid response": (
        lambda **kind: rows(7, 4, **kind),
        lambda s, t: losses.gid_response_loss(s, t, 2 * s, 3 * t, torch.arange(7) % 2 == 0),
    ),
    "gid response, softmax": (
        lambda **kind: rows(7, 4, **kind),
        lambda s, t: losses.gid_response_loss(s, t, 2 * s, 3 * t, torch.arange(7) % 2 == 0, head="softmax"),
    ),
    "chen class": (lambda **kind: rows(7, 5, **kind), losses.chen_class_loss),
    "chen bounded": (lambda **kind: rows(9, 4, **kind), lambda s, t: losses.chen_bounded_loss(s, t, torch.zeros_like(s))),
    "fgd": (maps, lambda s, t: sum(losses.fgd_feature_loss(s, t, *MASKS))),
    "pkd": (maps, losses.pkd_loss),
    "pkd, per image": (maps, lambda s, t: losses.pkd_loss(s, t, per_image=True)),
    "cwd": (maps, lambda s, t: losses.cwd_loss(s, t, 2.0)),
    "bckd": (lambda **kind: rows(7, 5, **kind), losses.bckd_loss),
    "bckd box": (
        lambda **kind: [boxes.to(**(kind or DOUBLE)) for boxes in (random_boxes(6), random_boxes(6, 1))],
        losses.bckd_box_loss,
    ),
}
LOSSES["harmony"] = (
    maps,
    lambda s, t: losses.harmony_feature_loss([s, 2 * s], [t, 2 * t], [SPATIAL, SPATIAL**2], [SPATIAL > 0.5] * 2, 0.3),
)
CUT = ("bckd",)  # weighted by a detached factor: the gradient is by design not that of the value


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in CUT])
def test_gradcheck(name):
    make, loss = LOSSES[name]
    student, teacher = make()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), student.requires_grad_(), atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_sum_in_32(name, dtype):
    make, loss = LOSSES[name]
    student, teacher = make(dtype=dtype)
    value = loss(student.requires_grad_(), teacher)
    expected = loss(student.detach().double(), teacher.double())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=5e-3, atol=1e-3)
    value.backward()
    assert student.grad.dtype == dtype and student.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_equal_tensors_have_a_finite_gradient_and_nothing_to_learn(name):
    """Roots have no slope at 0; cross-entropies keep the teacher's entropy."""
    make, loss = LOSSES[name]
    _, teacher = make()
    student = teacher.clone().requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert student.grad.isfinite().all()
    if name not in ("chen class", "chen bounded") and not name.startswith("gid response"):
        assert value.abs() < 1e-9 and student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_to_the_teacher(name):
    make, loss = LOSSES[name]
    student, teacher = make()
    loss(student.requires_grad_(), teacher.requires_grad_()).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


@pytest.mark.parametrize("name", LOSSES)
def test_under_autocast(name):
    make, loss = LOSSES[name]
    student, teacher = make(dtype=torch.float32)
    expected = loss(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(student, teacher), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kd_weighted_loss", "chen_class_loss"),
        ("kd_bounded_loss", "chen_bounded_loss"),
        ("tbd_feature_loss", "harmony_feature_loss"),
    ],
)
def test_old_names_work_and_name_the_new_one(old, new):
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        assert getattr(losses, old) is getattr(losses, new)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'ld_loss'"):
        losses.ld_loss  # noqa: B018


def test_trained_teacher_block_has_a_gradient():
    student, teacher = maps()
    assert torch.autograd.gradcheck(lambda t: losses.root_feature_loss(student, t, SPATIAL), teacher.requires_grad_())


@pytest.mark.parametrize("channel_mask", [False, True])
def test_fkd_by_loops(channel_mask):
    student, teacher = maps()
    temperature, (batch, channels, height, width) = 0.3, student.shape
    spatial, channel = losses.fkd_masks(student, teacher, temperature)
    for image in range(batch):
        softened = []
        for features in (student[image].tolist(), teacher[image].tolist()):
            places = [(y, x) for y in range(height) for x in range(width)]
            where = [sum(abs(features[c][y][x]) for c in range(channels)) / channels for y, x in places]
            total = sum(math.exp(value / temperature) for value in where)
            softened.append(torch.tensor([height * width * math.exp(value / temperature) / total for value in where]))
        softened = [attention.view(height, width) for attention in softened]
        torch.testing.assert_close(spatial[image].float(), (softened[0] + softened[1]) / 2)
    means = [nn.Softmax(1)(tensor.abs().mean((2, 3)) / temperature) * channels for tensor in (student, teacher)]
    torch.testing.assert_close(channel, (means[0] + means[1]) / 2)
    result = losses.root_feature_loss(student, teacher, spatial, channel if channel_mask else None)
    total = 0.0
    for b in range(batch):
        for c in range(channels):
            weight = spatial[b] * (channel[b, c] if channel_mask else 1)
            total += (weight * (student[b, c] - teacher[b, c]) ** 2).sum().item()
    assert result.item() == pytest.approx(math.sqrt(total))


def test_fkd_masks_of_other_channels_are_the_teachers():
    student, teacher = maps()[0], torch.cat(maps(seed=3), 1)
    channel = losses.fkd_masks(student, teacher)[1]
    torch.testing.assert_close(channel, (teacher.abs().mean((2, 3)) / 0.5).softmax(1) * 8)


def test_fkd_attention_by_norms():
    student, teacher = maps()
    result = losses.fkd_attention_loss(student.mean(1), teacher.mean(1), student.mean((2, 3)), teacher.mean((2, 3)))
    expected = torch.dist(student.mean(1), teacher.mean(1)) + torch.dist(student.mean((2, 3)), teacher.mean((2, 3)))
    torch.testing.assert_close(result, expected)


def test_fgfi_by_loops():
    (student, teacher), mask = maps(), SPATIAL > 0.6
    total = sum(
        ((student[b, :, y, x] - teacher[b, :, y, x]) ** 2).sum().item()
        for b in range(3)
        for y in range(5)
        for x in range(6)
        if mask[b, y, x]
    )
    assert losses.fgfi_loss([student], [teacher], [mask]).item() == pytest.approx(total / (2 * mask.sum().item()))
    two = losses.fgfi_loss([student, student], [teacher, teacher], [mask, torch.zeros_like(mask)])
    assert two.item() == pytest.approx(total / (2 * mask.sum().item()))  # one count for all levels


def test_harmony_feature_loss_by_loops():
    """Two levels; the second image has no place for the regression."""
    levels = [maps(), maps(height=2, width=3, seed=5)]
    cls = [torch.rand(3, *pair[0].shape[2:], **DOUBLE) for pair in levels]
    fit = [torch.rand(3, *pair[0].shape[2:], **DOUBLE).round() * torch.tensor([1.0, 0, 1])[:, None, None] for pair in levels]
    total = 0.0
    for image in range(3):
        for masks, share in ((cls, 0.3), (fit, 0.7)):
            whole = sum(mask[image].sum().item() for mask in masks)
            for (student, teacher), mask in zip(levels, masks, strict=True):
                for y in range(student.shape[2]):
                    for x in range(student.shape[3]):
                        square = ((student[image, :, y, x] - teacher[image, :, y, x]) ** 2).mean().item()
                        total += share * mask[image, y, x].item() * square / (whole or 1)
    students, teachers = zip(*levels, strict=True)
    assert losses.harmony_feature_loss(students, teachers, cls, fit, 0.3).item() == pytest.approx(total / 3)
    halves = [
        losses.harmony_feature_loss(*([level[part] for level in sequence] for sequence in (students, teachers, cls, fit)), 0.3)
        for part in (slice(1), slice(1, 3))
    ]
    assert ((halves[0] + 2 * halves[1]) / 3).item() == pytest.approx(total / 3)


def test_harmony_is_score_times_overlap():
    ours, theirs, scores = random_boxes(6), random_boxes(6, 1), torch.rand(6, **DOUBLE)
    result, iou = losses.harmony_score(scores.requires_grad_(), ours.requires_grad_(), theirs)
    torch.testing.assert_close(iou, box_iou(ours.detach(), theirs).diag())
    torch.testing.assert_close(result, scores.detach() * iou)
    assert iou.any() and not result.requires_grad and not iou.requires_grad


def test_harmony_feature_loss_masks_have_no_unit_and_may_be_nothing():
    student, teacher = maps(dtype=torch.float32)
    for unit in (1e-44, 1e-39, 1.0, 1e36):
        mask = torch.zeros(3, *student.shape[2:])
        mask[:2, 1, 2] = unit  # the third image has none
        expected = (student - teacher)[:2, :, 1, 2].square().sum() / (3 * student.shape[1])
        leaf = student.clone().requires_grad_()
        result = losses.harmony_feature_loss([leaf], [teacher], [mask], [mask])
        torch.testing.assert_close(result, expected)
        result.backward()
        assert leaf.grad.isfinite().all() and leaf.grad[0].any() and not leaf.grad[2].any()
    leaf = student.clone().requires_grad_()
    result = losses.harmony_feature_loss([leaf], [teacher], [0 * mask], [0 * mask])
    result.backward()
    assert result == 0 and not leaf.grad.any()


def test_fgfi_without_objects_is_zero_with_a_graph():
    student, teacher = maps()
    for per_image in (False, True):
        value = losses.fgfi_loss([student.requires_grad_()], [teacher], [torch.zeros(3, 5, 6)], per_image=per_image)
        value.backward()
        assert value == 0 and not student.grad.any()


@pytest.mark.parametrize("count", [2, 3, 12])
def test_gid_relation_by_the_library(count):
    student, teacher = rows(count, 30)
    result = losses.gid_relation_loss(student.requires_grad_(), teacher)
    if count < 3:
        assert result == 0 and result.requires_grad
        return
    off = ~torch.eye(count, dtype=torch.bool)
    ours, theirs = (torch.cdist(tensor, tensor) for tensor in (student, teacher))
    expected = F.smooth_l1_loss(ours / ours[off].mean(), theirs / theirs[off].mean(), reduction="none")[off].mean()
    torch.testing.assert_close(result, expected)


def test_gid_relation_of_float32_is_as_good_as_of_float64():
    """The difference of large products, of long rows far from the origin, would lose its digits."""
    student, teacher = (10 + tensor for tensor in rows(10, 25600, dtype=torch.float32))
    expected = losses.gid_relation_loss(student.double(), teacher.double())
    torch.testing.assert_close(losses.gid_relation_loss(student, teacher).double(), expected, rtol=1e-4, atol=0)


def test_gid_feature_and_response_by_loops():
    student, teacher = maps()
    norms = [torch.dist(student[k], teacher[k]).item() for k in range(3)]
    assert losses.gid_feature_loss(student, teacher).item() == pytest.approx(sum(norms) / 3)
    assert losses.gid_feature_loss(student, teacher, "squared").item() == pytest.approx(sum(n * n for n in norms) / (3 * 30))
    (logits, expected), (codes, bound), mask = rows(6, 4), rows(6, 4, seed=1), torch.tensor([1, 0, 0, 1, 1, 0]).bool()
    for head in ("sigmoid", "softmax"):
        scores = boxes = 0.0
        for n in (0, 3, 4):
            if head == "sigmoid":
                scores += F.binary_cross_entropy(logits[n].sigmoid(), expected[n].sigmoid(), reduction="sum").item()
            else:
                scores += F.cross_entropy(logits[n : n + 1], expected[n : n + 1].softmax(1)).item()
            boxes += (codes[n] - bound[n]).abs().sum().item()
        result = losses.gid_response_loss(logits, expected, codes, bound, mask, head=head, cls_weight=0.3, box_weight=2.0)
        assert result.item() == pytest.approx((0.3 * scores + 2.0 * boxes) / 3)
    assert losses.gid_response_loss(logits, expected, codes, bound, mask & False) == 0


@pytest.mark.parametrize("background", ["first", "last"])
def test_chen_class_by_the_library(background):
    student, teacher = rows(7, 5)
    weight = torch.ones(5, **DOUBLE)
    weight[0 if background == "first" else -1] = 1.5
    expected = -((teacher / 2).softmax(1) * weight * (student / 2).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(losses.chen_class_loss(student, teacher, background=background, temperature=2.0), expected)
    plain = losses.chen_class_loss(student, teacher, background_weight=1.0)
    torch.testing.assert_close(plain, F.cross_entropy(student, teacher.softmax(1)))


@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_chen_bounded_decides_for_each_box(margin):
    (student, teacher), (target, _) = rows(20, 4), rows(20, 4, seed=1)
    values = []
    for s, t, y in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True):
        own, bound = (sum((a - b) ** 2 for a, b in zip(boxes, y, strict=True)) for boxes in (s, t))
        values.append(own if own + margin > bound else 0.0)
    assert 0 < sum(value == 0 for value in values) < 20
    assert losses.chen_bounded_loss(student, teacher, target, margin=margin).item() == pytest.approx(sum(values) / 20)


def test_fgd_masks_by_loops():
    boxes = torch.tensor(
        [[3.0, 2.0, 20.0, 30.0], [10.0, 10.0, 15.0, 15.0], [0.0, 0.0, 47.0, 39.0], [100.0, 100.0, 120.0, 120.0]]
    )
    image, stride = torch.tensor([0, 0, 2, 1]), 8
    foreground, background = losses.fgd_masks(boxes, image, 4, (5, 6), stride)
    for b in range(4):
        expected = torch.zeros(5, 6)
        for box, index in zip(boxes.tolist(), image.tolist(), strict=True):
            if index == b:
                left, top = math.floor(box[0] / stride), math.floor(box[1] / stride)
                right, bottom = math.ceil(box[2] / stride), math.ceil(box[3] / stride)
                for y in range(5):
                    for x in range(6):
                        if left <= x <= right and top <= y <= bottom:
                            expected[y, x] = max(expected[y, x].item(), 1 / ((right - left + 1) * (bottom - top + 1)))
        torch.testing.assert_close(foreground[b], expected)
        empty = expected == 0
        torch.testing.assert_close(background[b], empty / max(empty.sum().item(), 1))
    assert not foreground[1].any() and not foreground[3].any() and not background[2].any()


def test_fgd_by_its_formula():
    student, teacher = maps()
    result = losses.fgd_feature_loss(
        student, teacher, *MASKS, temperature=0.4, foreground_weight=2.0, background_weight=3.0, attention_weight=5.0
    )
    spatial, channel = (
        [F.softmax(tensor.abs().mean(axes).flatten(1) / 0.4, 1).view(shape) * count for tensor in (student, teacher)]
        for axes, shape, count in ((1, (3, 5, 6), 30), ((2, 3), (3, 4), 4))
    )
    squares = (student - teacher) ** 2 * spatial[1][:, None] * channel[1][:, :, None, None]
    torch.testing.assert_close(result.foreground, 2 * (squares * MASKS[0][:, None]).sum() / 3)
    torch.testing.assert_close(result.background, 3 * (squares * MASKS[1][:, None]).sum() / 3)
    apart = sum((one - other).abs().sum() for one, other in (spatial, channel))
    torch.testing.assert_close(result.attention, 5 * apart / 3)


def test_pkd_is_one_minus_the_correlation():
    student, teacher = maps(batch=2)
    distances = [1 - torch.corrcoef(torch.stack([student[:, c].flatten(), teacher[:, c].flatten()]))[0, 1] for c in range(4)]
    torch.testing.assert_close(losses.pkd_loss(student, teacher), torch.stack(distances).mean(), rtol=1e-4, atol=1e-5)
    constant = torch.ones_like(student).requires_grad_()
    losses.pkd_loss(constant, teacher).backward()
    assert constant.grad.isfinite().all()


def test_cwd_by_kl_div():
    student, teacher = maps()
    flat = [F.log_softmax(tensor.flatten(2) / 2, 2) for tensor in (student, teacher)]
    expected = 4 * F.kl_div(*flat, reduction="sum", log_target=True) / 12
    torch.testing.assert_close(losses.cwd_loss(student, teacher, 2.0), expected)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_bckd_by_the_library(beta):
    student, teacher = rows(7, 5)
    soft, weight = teacher.sigmoid(), torch.arange(7.0)
    terms = F.binary_cross_entropy(student.sigmoid(), soft, reduction="none") * (soft - student.sigmoid()).abs() ** beta
    torch.testing.assert_close(losses.bckd_loss(student, teacher, beta), terms.sum(1).mean())
    result = losses.bckd_loss(student, teacher, beta, weight=weight, normalizer=torch.tensor(3.0))
    torch.testing.assert_close(result, (terms.sum(1) * weight).sum() / 3)
    leaf = student.clone().requires_grad_()
    losses.bckd_loss(leaf, teacher, beta, normalizer=1).backward()
    factor = (soft - student.sigmoid()).abs() ** beta
    torch.testing.assert_close(leaf.grad, factor * (student.sigmoid() - soft))


def test_bckd_boxes_by_the_library():
    student, teacher = random_boxes(12), random_boxes(12, 1)
    teacher[0] = student[0] + 200  # apart
    expected = generalized_box_iou_loss(student, teacher)
    torch.testing.assert_close(losses.bckd_box_loss(student, teacher), expected.mean(), rtol=1e-5, atol=1e-6)
    weight = torch.rand(12, **DOUBLE)
    result = losses.bckd_box_loss(student, teacher, weight, normalizer=weight.sum())
    torch.testing.assert_close(result, (expected * weight).sum() / weight.sum(), rtol=1e-5, atol=1e-6)


SPLIT = {
    "root": (lambda s, t, m: losses.root_feature_loss(s, t, m), False),
    "root, per image": (lambda s, t, m: losses.root_feature_loss(s, t, m, per_image=True), True),
    "fgfi": (lambda s, t, m: losses.fgfi_loss([s], [t], [m > 0.6]), False),
    "fgfi, per image": (lambda s, t, m: losses.fgfi_loss([s], [t], [m > 0.6], per_image=True), True),
    "pkd": (lambda s, t, m: losses.pkd_loss(s, t), False),
    "pkd, per image": (lambda s, t, m: losses.pkd_loss(s, t, per_image=True), True),
    "cwd": (lambda s, t, m: losses.cwd_loss(s, t), True),
    "fgd": (lambda s, t, m: sum(losses.fgd_feature_loss(s, t, m, m)), True),
    "gid relation": (lambda s, t, m: losses.gid_relation_loss(s, t), False),
    "fkd attention, per image": (
        lambda s, t, m: losses.fkd_attention_loss(s.mean(1), t.mean(1), s.mean((2, 3)), t.mean((2, 3)), per_image=True),
        True,
    ),
}


@pytest.mark.parametrize("name", SPLIT)
def test_split_of_a_batch_matters_where_the_docstring_says_so(name):
    """Two equal shares, averaged as DDP does it."""
    loss, invariant = SPLIT[name]
    student, teacher = maps(batch=8)
    student = student * torch.linspace(0.2, 2, 8)[:, None, None, None]
    mask = torch.rand(8, 5, 6, generator=torch.Generator().manual_seed(2), **DOUBLE)
    whole = loss(student, teacher, mask)
    halves = (loss(student[:4], teacher[:4], mask[:4]) + loss(student[4:], teacher[4:], mask[4:])) / 2
    assert torch.isclose(whole, halves, rtol=1e-9) == invariant, (whole, halves)


def test_nothing_gives_a_zero_with_a_graph():
    empty = {
        name: torch.zeros(0, *shape, requires_grad=True) for name, shape in (("map", (4, 5, 6)), ("row", (5,)), ("box", (4,)))
    }
    teacher = {name: tensor.detach() for name, tensor in empty.items()}
    values = [
        losses.root_feature_loss(empty["map"], teacher["map"]),
        losses.root_feature_loss(empty["map"], teacher["map"], per_image=True),
        losses.gid_feature_loss(empty["map"], teacher["map"]),
        losses.gid_relation_loss(empty["row"], teacher["row"]),
        losses.gid_response_loss(empty["row"], teacher["row"], empty["box"], teacher["box"], torch.zeros(0).bool()),
        losses.chen_class_loss(empty["row"], teacher["row"]),
        losses.chen_bounded_loss(empty["box"], teacher["box"], teacher["box"]),
        losses.pkd_loss(empty["map"], teacher["map"]),
        losses.cwd_loss(empty["map"], teacher["map"]),
        losses.bckd_loss(empty["row"], teacher["row"]),
        losses.bckd_box_loss(empty["box"], teacher["box"]),
        losses.harmony_feature_loss([empty["map"]], [teacher["map"]], [torch.zeros(0, 5, 6)], [torch.zeros(0, 5, 6)]),
        *losses.fgd_feature_loss(empty["map"], teacher["map"], torch.zeros(0, 5, 6), torch.zeros(0, 5, 6)),
    ]
    for value in values:
        assert value == 0 and value.requires_grad
        value.backward()
    foreground, background = losses.fgd_masks(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 2, (3, 4), 8)
    assert not foreground.any() and torch.allclose(background.sum((1, 2)), torch.ones(2))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: losses.root_feature_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 4)), "root|masked.*teacher"),
        (lambda: losses.fgfi_loss([torch.zeros(1, 1, 2, 2)], [], []), "fgfi_loss.*levels.*1, 0 and 0"),
        (
            lambda: losses.harmony_feature_loss([torch.zeros(1, 1, 2, 2)], [], [], []),
            "harmony_feature_loss.*levels.*1, 0, 0 and 0",
        ),
        (
            lambda: losses.harmony_feature_loss(*[[torch.zeros(1, 1, 2, 2)]] * 2, *[[torch.zeros(1, 2, 2)]] * 2, 1.5),
            "balance.*1.5",
        ),
        (
            lambda: losses.harmony_feature_loss(*[[torch.zeros(1, 1, 2, 2)]] * 2, *[[torch.zeros(1, 2, 3)]] * 2),
            r"cls_masks\[0\]",
        ),
        (lambda: losses.harmony_score(torch.zeros(3), torch.zeros(2, 4), torch.zeros(3, 4)), "harmony_score: boxes"),
        (lambda: losses.fkd_masks(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5)), "fkd_masks: teacher"),
        (lambda: losses.fkd_masks(*[torch.zeros(2, 3, 4, 4)] * 2, 0.0), "fkd_masks: temperature"),
        (lambda: losses.gid_feature_loss(*[torch.zeros(2, 3, 4, 4)] * 2, "cosine"), "gid_feature_loss: form"),
        (lambda: losses.gid_relation_loss(torch.zeros(4, 3), torch.zeros(5, 3)), "gid_relation_loss: teacher.*4.*5"),
        (lambda: losses.gid_response_loss(*[torch.zeros(3, 4)] * 4, torch.zeros(2)), "gid_response_loss: mask"),
        (lambda: losses.chen_class_loss(torch.zeros(3, 4), torch.zeros(3, 5)), "chen_class_loss: teacher_logits"),
        (lambda: losses.chen_class_loss(*[torch.zeros(3, 4)] * 2, background="none"), "background"),
        (lambda: losses.chen_bounded_loss(*[torch.zeros(3, 4)] * 2, torch.zeros(2, 4)), "chen_bounded_loss: target_boxes"),
        (
            lambda: losses.fgd_masks(torch.zeros(3, 4), torch.zeros(2, dtype=torch.long), 2, (3, 3), 8),
            "fgd_masks: image_index",
        ),
        (lambda: losses.fgd_masks(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long), 2, (3, 3), 0), "fgd_masks: stride"),
        (lambda: losses.pkd_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3)), "pkd_loss: teacher"),
        (lambda: losses.cwd_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 4)), "cwd_loss: teacher"),
        (lambda: losses.bckd_loss(*[torch.zeros(3, 4)] * 2, -1.0), "bckd_loss: beta"),
        (lambda: losses.bckd_loss(*[torch.zeros(3, 4)] * 2, weight=torch.zeros(4)), "bckd_loss: weight"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_sinkhorn_meets_both_marginals_and_the_iteration_in_plain_numbers():
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(3, 5, 7, generator=generator, **DOUBLE).requires_grad_()
    a, b = torch.rand(3, 5, generator=generator, **DOUBLE), torch.rand(3, 7, generator=generator, **DOUBLE)
    a[1, 2:] = 0  # sets of unequal size
    b[1, 5:] = 0
    result = losses.sinkhorn_loss(cost, a, b, epsilon=0.2, iterations=300)
    (plan,) = torch.autograd.grad(result.sum(), cost)
    torch.testing.assert_close(plan.sum(2), a / a.sum(1, keepdim=True))
    torch.testing.assert_close(plan.sum(1), b / b.sum(1, keepdim=True))
    assert not plan[1, 2:].any() and not plan[1, :, 5:].any()
    torch.testing.assert_close(result, (plan * cost).sum((1, 2)))
    kernel = (-cost[0] / 0.2).exp().detach()
    u, v, one, other = torch.ones(5, **DOUBLE), torch.ones(7, **DOUBLE), a[0] / a[0].sum(), b[0] / b[0].sum()
    for _ in range(300):
        u = one / (kernel @ v)
        v = other / (kernel.T @ u)
    torch.testing.assert_close(plan[0], u[:, None] * kernel * v)


def test_sinkhorn_nears_the_best_assignment():
    """With equal weights and little entropy the transport is a matching: that of all permutations which costs least."""
    import itertools

    cost = torch.rand(4, 5, 5, generator=torch.Generator().manual_seed(3), **DOUBLE)
    even = torch.ones(4, 5, **DOUBLE)
    result = losses.sinkhorn_loss(cost, even, even, epsilon=0.002, iterations=3000)
    best = [
        min(sum(c[n, m].item() for n, m in enumerate(order)) for order in itertools.permutations(range(5))) / 5 for c in cost
    ]
    assert result.tolist() == pytest.approx(best, abs=5e-3)


def test_sinkhorn_gradient_is_that_of_the_regularised_objective():
    cost = torch.rand(1, 4, 3, generator=torch.Generator().manual_seed(4), **DOUBLE)
    a, b = torch.ones(1, 4, **DOUBLE), torch.ones(1, 3, **DOUBLE)

    def plan(c):
        leaf = c.clone().requires_grad_()
        return torch.autograd.grad(losses.sinkhorn_loss(leaf, a, b, epsilon=0.3, iterations=500).sum(), leaf)[0]

    def objective(c):
        p = plan(c)
        return (p * c + 0.3 * p * (p.log() - 1)).sum().item()

    for n, m in ((0, 0), (2, 1)):
        step = torch.zeros_like(cost)
        step[0, n, m] = 1e-5
        slope = (objective(cost + step) - objective(cost - step)) / 2e-5
        assert slope == pytest.approx(plan(cost)[0, n, m].item(), rel=1e-4)


def test_sinkhorn_at_its_limits():
    far = 1e4 * torch.rand(2, 3, 4, dtype=torch.float32)  # the multiplicative form underflows
    value = losses.sinkhorn_loss(far.requires_grad_(), torch.ones(2, 3), torch.ones(2, 4), epsilon=0.1, iterations=50)
    value.sum().backward()
    assert value.isfinite().all() and far.grad.isfinite().all()
    none = losses.sinkhorn_loss(torch.rand(2, 3, 4), torch.zeros(2, 3), torch.ones(2, 4))
    assert none.tolist() == [0, 0]
    infinite = torch.tensor([[[0.0, torch.inf], [torch.inf, 1.0]]])  # a forbidden pair
    assert losses.sinkhorn_loss(infinite, torch.ones(1, 2), torch.ones(1, 2)).item() == pytest.approx(0.5)
    assert losses.sinkhorn_loss(torch.rand(2, 0, 4), torch.zeros(2, 0), torch.ones(2, 4)).tolist() == [0, 0]
    half = losses.sinkhorn_loss(torch.rand(2, 3, 4).bfloat16(), torch.ones(2, 3), torch.ones(2, 4))
    assert half.dtype == torch.float32
    with pytest.raises(ValueError, match="sinkhorn_loss: teacher_weights"):
        losses.sinkhorn_loss(torch.rand(2, 3, 4), torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="sinkhorn_loss: iterations"):
        losses.sinkhorn_loss(torch.rand(2, 3, 4), torch.ones(2, 3), torch.ones(2, 4), iterations=0)
