"""KD-cls, the class term of the classifier: the paper's form, and variants of it that later work suggests.

The paper's (Guo, Alvarez, Salzmann, NeurIPS 2021, eq. 1-7) asks a softmax student for background 0 at every positive, and counts
all positives alike. The variants can be put together:

- "foreground": softmax over the classes alone; the background's logit takes no part and gets no gradient
- "overlap": each positive counts by the IoU of its predicted box and its ground truth (no gradient to the box), so that a
  box that lies badly need not look sure
- "decoupled": DKD (Zhao et al., CVPR 2022, eq. 7): how sure the teacher is of the ground truth's class, and how the other
  classes share the rest, are two terms; the paper's form gives the second one little weight where the teacher is sure
- "standardised": each row of logits, less its mean and over its deviation, on both sides (Sun et al., CVPR 2024): the student
  need not reach the teacher's range
- "quality": the teacher's probabilities times that IoU, and the rest is background, after quality focal loss (Li et al.,
  NeurIPS 2020): a box that lies badly is to score less, so that non-maximum suppression keeps the better one. Sigmoids too
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from cls2det.models.positives import Positives
from cls2det.settings import ClassifierSettings
from cls2det_ops import kd_sigmoid_loss, kd_softmax_loss


def kd_cls_term(
    positives: Positives,
    teacher_logits: Tensor,
    classes: int,
    settings: ClassifierSettings,
    divisor: float | Tensor,
    whole: Tensor | None = None,
) -> Tensor:
    """The unweighted term, a scalar with gradient to ``positives.logits``.

    Args:
        positives: K of them, of G ground truths
        teacher_logits: (G, C), or (G, C + 1) with a last column for the background
        classes: C
        settings: temperature and variants
        divisor: of the sum over positives
        whole: (G,), 1 for ground truths whose logits count, 0 for those that are left out; None: all count

    Raises:
        ValueError: a variant that a sigmoid head does not have
    """
    variants, softmax, matched_idxs = settings.kd_cls_variants, positives.head == "softmax", positives.matched_idxs
    if not softmax and (unfit := {"foreground", "standardised"}.intersection(variants)):
        raise ValueError(
            f"kd_cls_variants {', '.join(sorted(unfit))} is for a softmax; this detector has a sigmoid for each class, "
            "without a background among them and with a zero that means something"
        )
    logits, background = positives.logits, positives.background
    weight = None if whole is None else whole[matched_idxs]
    if "overlap" in variants:
        shares = overlaps(positives.boxes, positives.target_boxes[matched_idxs])
        weight = shares if weight is None else weight * shares
    loss = functools.partial(
        kd_softmax_loss if softmax else kd_sigmoid_loss,
        temperature=settings.temperature,
        weight=weight,
        normalizer=divisor,
    )
    if "quality" in variants:
        if not softmax:
            logits = without_background(logits, background)
        elif background == "none":
            raise ValueError("kd_cls_variants quality gives the background a part, and this detector's softmax has none")
        targets = quality_logits(positives, teacher_logits[:, :classes], settings.temperature)
        return loss(logits, targets, torch.arange(len(targets), device=targets.device), background="none")
    loss = functools.partial(loss, matched_idxs=matched_idxs)
    if "foreground" in variants or (not softmax and "decoupled" in variants):
        logits, background = without_background(logits, background), "none"
    first = int(background == "first")  # the student's column of label 1, and the teacher's
    teacher_first = 0
    if teacher_logits.shape[1] > classes:
        if softmax and background != "none":  # two distributions over the same columns
            teacher_logits, teacher_first = (teacher_logits.roll(1, dims=1), 1) if first else (teacher_logits, 0)
            background = "none"
        else:
            teacher_logits = teacher_logits[:, :classes]
    if "standardised" in variants:
        logits, teacher_logits = standardised(logits), standardised(teacher_logits)
    if "decoupled" not in variants:
        return loss(logits, teacher_logits, background=background)
    truth = positives.target_labels - 1
    own, others = split_columns(logits, truth[matched_idxs] + first)
    teacher_own, teacher_others = split_columns(teacher_logits, truth + teacher_first)
    if softmax:
        own = torch.cat([own, soft_sum(others, settings.temperature)], 1)
        teacher_own = torch.cat([teacher_own, soft_sum(teacher_others, settings.temperature)], 1)
    of_target = loss(own, teacher_own, background="none")
    of_others = loss(others, teacher_others, background=background)
    if softmax:
        return of_target + settings.decoupled_weight * of_others
    # each is a mean over its columns; with a decoupled_weight of 1 this is the paper's form, the mean over all
    return (of_target + settings.decoupled_weight * (classes - 1) * of_others) / classes


def without_background(logits: Tensor, background: str) -> Tensor:
    """The columns (K, C) of the classes."""
    return {"first": logits[:, 1:], "last": logits[:, :-1], "none": logits}[background]


def standardised(logits: Tensor) -> Tensor:
    """Each row less its mean, over its deviation; gradient flows through both."""
    rows = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    centred = rows - rows.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).add(1e-12).sqrt()


@torch.no_grad()
def overlaps(boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """IoU (K,) of boxes (K, 4) and target_boxes (K, 4), row by row."""
    boxes, target_boxes = boxes.float(), target_boxes.float()
    corner, far = torch.maximum(boxes[:, :2], target_boxes[:, :2]), torch.minimum(boxes[:, 2:], target_boxes[:, 2:])
    common = (far - corner).clamp(min=0).prod(1)
    area, target_area = ((rows[:, 2:] - rows[:, :2]).clamp(min=0).prod(1) for rows in (boxes, target_boxes))
    return common / (area + target_area - common).clamp(min=1e-12)


def quality_logits(positives: Positives, teacher_logits: Tensor, temperature: float) -> Tensor:
    """A teacher's logits for every positive: its probabilities at the temperature times the IoU of box and ground truth.

    Args:
        positives: K of them
        teacher_logits: (G, C), of the classes alone

    Returns:
        (K, columns) of the student's columns; a softmax has 1 - IoU for the background. Without gradient
    """
    quality = overlaps(positives.boxes, positives.target_boxes[positives.matched_idxs])[:, None].clamp(max=1.0)
    softened = teacher_logits[positives.matched_idxs] / temperature
    if positives.head == "softmax":
        shares = softened.softmax(1) * quality
        columns = [1 - quality, shares] if positives.background == "first" else [shares, 1 - quality]
        return temperature * torch.cat(columns, 1).log()
    return temperature * (softened.sigmoid() * quality).logit()


def split_columns(logits: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row its logit (N, 1) at ``columns`` (N,), and the others (N, columns - 1) in their order."""
    others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    others = others + (others >= columns[:, None])
    return logits.gather(1, columns[:, None]), logits.gather(1, others)


def soft_sum(logits: Tensor, temperature: float) -> Tensor:
    """The logit (N, 1) whose softened exponential is the sum of those of ``logits`` (N, columns)."""
    return temperature * (logits.float() / temperature).logsumexp(1, keepdim=True)
