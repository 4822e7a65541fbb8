"""KD-cls and its variants against formulas in plain PyTorch, for every head, place of the background and kind of teacher."""

import itertools

import pytest
import torch

pytest.importorskip("torchvision")

from torchvision.ops import box_iou

from cls2det.distill import BoxDistiller, ClassifierSettings
from cls2det.distill.kd_cls import kd_cls_term
from cls2det.models.positives import Positives

CLASSES, T = 4, 2.0
VARIANTS = ("foreground", "overlap", "decoupled", "standardised")
COMBINATIONS = [names for count in range(5) for names in itertools.combinations(VARIANTS, count)]
QUALITY = [("quality",), ("overlap", "quality")]


def positives(head="softmax", background="first", count=6):
    generator = torch.Generator().manual_seed(3)
    columns = CLASSES + (background != "none")
    target_boxes = torch.tensor([[10.0, 10, 60, 70], [30, 20, 90, 60], [5, 40, 45, 95]], dtype=torch.float64)
    matched_idxs = torch.tensor([0, 0, 1, 2, 2, 1])[:count]
    shifts = 8 * torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return Positives(
        images=torch.rand(2, 3, 100, 100, generator=generator, dtype=torch.float64),
        logits=(3 * torch.randn(count, columns, generator=generator, dtype=torch.float64)).requires_grad_(),
        boxes=(target_boxes[matched_idxs] + shifts).requires_grad_(),
        image_index=torch.tensor([0, 0, 0, 1, 1, 0])[:count],
        matched_idxs=matched_idxs,
        target_boxes=target_boxes,
        target_labels=torch.tensor([2, 4, 1]),
        target_image_index=torch.tensor([0, 0, 1]),
        head=head,
        background=background,
    )


def teacher_logits(columns=CLASSES):
    return 3 * torch.randn(3, columns, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def expected(batch, teacher, variants, beta):
    """The mean over positives, one row at a time, with probabilities written out."""
    total = torch.zeros((), dtype=torch.float64)
    for row, match in enumerate(batch.matched_idxs.tolist()):
        student, target, label = batch.logits[row], teacher[match], int(batch.target_labels[match]) - 1
        if batch.background == "first":  # classes first, the background last, on both sides
            student = student.roll(-1)
        has_background = batch.background != "none" and batch.head == "softmax"
        if not has_background or "foreground" in variants:
            student, target = student[:CLASSES], target[:CLASSES]
        if "standardised" in variants:
            student, target = ((z - z.mean()) / z.std(unbiased=False) for z in (student, target))
        if len(target) < len(student):  # a teacher without a background gives it probability 0
            target = torch.cat([target, target.new_full((1,), -torch.inf)])
        if batch.head == "softmax":
            p, q = (target / T).softmax(0), (student / T).softmax(0)
            divergence = lambda p, q: (torch.xlogy(p, p) - p * q.log()).sum()  # noqa: E731
            others = torch.arange(len(student)) != label
            if "decoupled" in variants:
                binary = divergence(torch.stack([p[label], p[others].sum()]), torch.stack([q[label], q[others].sum()]))
                loss = binary + beta * divergence(p[others] / p[others].sum(), q[others] / q[others].sum())
            else:
                loss = divergence(p, q)
        else:
            p, q = (target / T).sigmoid(), (student / T).sigmoid()
            terms = torch.xlogy(p, p / q) + torch.xlogy(1 - p, (1 - p) / (1 - q))
            factors = torch.full_like(terms, beta if "decoupled" in variants else 1.0)
            factors[label] = 1.0
            loss = (factors * terms).mean()
        weight = 1.0
        if "overlap" in variants:
            weight = box_iou(batch.boxes[row : row + 1].detach(), batch.target_boxes[match : match + 1])[0, 0]
        total = total + weight * T**2 * loss
    return total / len(batch)


def expected_quality(batch, teacher, variants):
    """The mean over positives of the variant with probabilities of both sides written out."""
    total = torch.zeros((), dtype=torch.float64)
    for row, match in enumerate(batch.matched_idxs.tolist()):
        iou = box_iou(batch.boxes[row : row + 1].detach(), batch.target_boxes[match : match + 1])[0, 0]
        student = batch.logits[row].roll(-1) if batch.background == "first" else batch.logits[row]
        target = teacher[match, :CLASSES]
        if batch.head == "softmax":
            p, q = torch.cat([iou * (target / T).softmax(0), 1 - iou[None]]), (student / T).softmax(0)
            loss = torch.xlogy(p, p / q).sum()
        else:
            p, q = iou * (target / T).sigmoid(), (student[:CLASSES] / T).sigmoid()
            loss = (torch.xlogy(p, p / q) + torch.xlogy(1 - p, (1 - p) / (1 - q))).mean()
        total = total + (iou if "overlap" in variants else 1.0) * T**2 * loss
    return total / len(batch)


def settings(variants, beta=0.7):
    return ClassifierSettings(kd_cls_variants=variants, temperature=T, decoupled_weight=beta)


@pytest.mark.parametrize("variants", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("columns", [CLASSES, CLASSES + 1], ids=["classes", "with background"])
@pytest.mark.parametrize("background", ["first", "last", "none"])
def test_softmax(variants, columns, background):
    batch, teacher = positives("softmax", background), teacher_logits(columns)
    term = kd_cls_term(batch, teacher, CLASSES, settings(variants), float(len(batch)))
    reference = expected(batch, teacher, variants, 0.7)
    torch.testing.assert_close(term, reference, rtol=1e-6, atol=1e-9)
    gradients = [torch.autograd.grad(value, batch.logits, retain_graph=True)[0] for value in (term, reference)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)
    assert gradients[0].abs().sum() > 0
    assert torch.autograd.grad(term, batch.boxes, allow_unused=True)[0] is None  # an overlap does not move a box


@pytest.mark.parametrize("variants", [(), ("overlap",), ("decoupled",), ("overlap", "decoupled")], ids="+".join)
@pytest.mark.parametrize("background", ["first", "last", "none"])
def test_sigmoid(variants, background):
    batch, teacher = positives("sigmoid", background), teacher_logits(CLASSES + 1)  # its background is left out
    term = kd_cls_term(batch, teacher, CLASSES, settings(variants), float(len(batch)))
    reference = expected(batch, teacher, variants, 0.7)
    torch.testing.assert_close(term, reference, rtol=1e-6, atol=1e-9)
    gradients = [torch.autograd.grad(value, batch.logits, retain_graph=True)[0] for value in (term, reference)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("variants", QUALITY, ids="+".join)
@pytest.mark.parametrize("columns", [CLASSES, CLASSES + 1], ids=["classes", "with background"])
@pytest.mark.parametrize(
    "head, background",
    [("softmax", "first"), ("softmax", "last"), ("sigmoid", "first"), ("sigmoid", "last"), ("sigmoid", "none")],
)
def test_quality(head, background, columns, variants):
    batch, teacher = positives(head, background), teacher_logits(columns)  # the teacher's background is left out
    term = kd_cls_term(batch, teacher, CLASSES, settings(variants), float(len(batch)))
    reference = expected_quality(batch, teacher, variants)
    torch.testing.assert_close(term, reference, rtol=1e-5, atol=1e-9)
    gradients = [torch.autograd.grad(value, batch.logits, retain_graph=True)[0] for value in (term, reference)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
    assert torch.autograd.grad(term, batch.boxes, allow_unused=True)[0] is None


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
@pytest.mark.parametrize("certain", [False, True])
def test_quality_of_perfect_and_of_missed_boxes(head, certain):
    """IoU 1 and 0, and a teacher that is certain: probabilities of 0 and 1 on both sides."""
    full = positives(head)
    boxes = full.target_boxes[full.matched_idxs].clone()
    boxes[0] += 500
    batch = Positives(**{**vars(full), "boxes": boxes.requires_grad_()})
    zero = 0.0 if head == "softmax" else torch.inf
    teacher = torch.where(torch.eye(3, CLASSES) > 0, zero, -torch.inf).double() if certain else teacher_logits()
    term = kd_cls_term(batch, teacher, CLASSES, settings(("quality",)), float(len(batch)))
    torch.testing.assert_close(term, expected_quality(batch, teacher, ("quality",)), rtol=1e-5, atol=1e-9)
    (gradient,) = torch.autograd.grad(term, batch.logits)
    assert gradient.isfinite().all()


def test_decoupled_sigmoids_with_weight_one_are_the_papers_form():
    batch, teacher = positives("sigmoid", "none"), teacher_logits()
    ours, paper = (kd_cls_term(batch, teacher, CLASSES, settings(variants, 1.0), 6.0) for variants in (("decoupled",), ()))
    torch.testing.assert_close(ours, paper)


@pytest.mark.parametrize("variants", [*COMBINATIONS, ("quality",)], ids="+".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_positives_and_short_dtypes(variants, dtype):
    batch = positives(count=0)
    assert kd_cls_term(batch, teacher_logits(), CLASSES, settings(variants), 1.0) == 0
    full = positives()
    short = Positives(**{**vars(full), "logits": full.logits.detach().to(dtype).requires_grad_()})
    term = kd_cls_term(short, teacher_logits().float(), CLASSES, settings(variants), 6.0)
    (gradient,) = torch.autograd.grad(term, short.logits)
    assert gradient.isfinite().all() and gradient.dtype == dtype
    of_variants = expected_quality(full, teacher_logits(), variants) if "quality" in variants else None
    reference = expected(full, teacher_logits(), variants, 0.7) if of_variants is None else of_variants
    torch.testing.assert_close(term.double(), reference, rtol=0.03, atol=0)


def test_what_does_not_fit_is_refused():
    for variant in ("foreground", "standardised"):
        with pytest.raises(ValueError, match=f"kd_cls_variants {variant} is for a softmax"):
            kd_cls_term(positives("sigmoid"), teacher_logits(), CLASSES, settings((variant,)), 1.0)
    with pytest.raises(ValueError, match="this detector's softmax has none"):
        kd_cls_term(positives("softmax", "none"), teacher_logits(), CLASSES, settings(("quality",)), 1.0)
    with pytest.raises(ValueError, match="quality does not go with decoupled, foreground"):
        settings(("foreground", "quality", "decoupled"))
    with pytest.raises(ValueError, match="no variant overlapping of KD-cls; there are foreground, overlap"):
        ClassifierSettings(kd_cls_variants=("overlapping",))
    with pytest.raises(ValueError, match="one_hot has no logits beside the true class"):
        ClassifierSettings(kd_cls_variants=("decoupled",), control="one_hot")
    one = ClassifierSettings(kd_cls_weight=0, kd_loc_weight=0, kd_cls_variants=("decoupled",))
    with pytest.raises(ValueError, match=r"kd_cls_variants decoupled needs two classes or more; the data has 'ant' alone"):
        BoxDistiller(None, one, classes=["ant"], image_mean=(0, 0, 0), image_std=(1, 1, 1))
