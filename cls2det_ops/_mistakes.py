"""The rules of :func:`explain`: each looks at a call and names one mistake, or says nothing.

A rule speaks only where a right call practically cannot look so, at any time of a training: with random weights, with few
positives, one class, empty images or padded batches. ``tests/test_explain.py`` has such calls, and counts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._box_mistakes import FORM_RULES, PLACE_RULES
from ._call import Call
from ._match_mistakes import INDEX_RULES, MATCH_RULES

Rule = Callable[[Call], str | None]


def sentences(call: Call) -> list[str]:
    """What the rules say. Those that need right matches, or right corners, are asked only where nothing is said of these."""
    of_matches = _said(INDEX_RULES, call) or _said(MATCH_RULES, call)[:1]
    of_forms = _said(FORM_RULES, call)
    results = of_matches + of_forms
    if not results:
        results += _said(PLACE_RULES, call)[:1]  # the first is the surest: one mistake shows in several
    if not of_matches:
        results += _said(CLASS_RULES, call)
    return results + _said(OTHER_RULES, call)


def _said(rules: tuple[Rule, ...], call: Call) -> list[str]:
    return [sentence for rule in rules if (sentence := rule(call))]


def other_background(call: Call) -> str | None:
    """A student that agrees with the teacher, or the labels, once its columns are read with the background at the other end."""
    used = call.background or ("first" if call.head == "softmax" else "none")
    if call.student is None or used == "none" or len(call.rows) < 6:
        return None
    if call.teacher is None or call.student.shape[1] != call.teacher.shape[1] + 1:
        return None
    classes = call.teacher.argmax(1) if call.labels is None else call.labels - 1
    truth, targets = classes[call.matched], call.matched
    if len(truth.unique()) < 2 or len(targets.unique()) < 6:
        return None
    columns = {"first": call.student[call.rows, 1:], "last": call.student[call.rows, :-1]}
    other = "last" if used == "first" else "first"
    agreement = {name: _agreement(values.argmax(1) == truth, truth, targets) for name, values in columns.items()}
    chance = 1 / len(truth.unique())  # of a student that gives all the same class
    excess = agreement[other] - chance
    if excess < 0.25 or len(targets.unique()) * excess**2 < 3:  # more than four standard errors
        return None
    if agreement[used] > min(chance + 0.15, agreement[other] - 0.25):
        return None
    source = "the teacher" if call.labels is None else "target_labels"
    return (
        f"background must name the student's background column, found {used!r}: so read, the student agrees with {source} in "
        f"{agreement[used]:.0%} of classes, and with {other!r} in {agreement[other]:.0%}. Give background={other!r}"
        + (", unless the teacher's classes are in another order." if call.labels is None else ".")
    )


def _agreement(agrees: Tensor, truth: Tensor, targets: Tensor) -> float:
    """Mean over classes, of means over ground truths, of means over their positives: one class of many counts once."""

    def means(values: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        names, place = group.unique(return_inverse=True)
        sums = torch.zeros(len(names), dtype=torch.float64).index_add(0, place, values)
        return sums / place.bincount(), names

    of_targets, kept = means(agrees.double(), targets)
    class_of_target = dict(zip(targets.tolist(), truth.tolist(), strict=True))
    classes = torch.tensor([class_of_target[target] for target in kept.tolist()])
    return float(means(of_targets, classes)[0].mean())


def other_classes(call: Call) -> str | None:
    """A teacher that is sure, takes the objects apart, and is wrong."""
    teacher, labels = call.teacher, call.labels
    if teacher is None or labels is None or len(labels) == 0:
        return None
    classes = teacher.shape[1]
    if int(labels.min()) < 1 or int(labels.max()) > classes:
        return (
            f"target_labels must be from 1 to {classes}, the teacher's classes, found {int(labels.min())} to {int(labels.max())}: "
            "label 1 is the teacher's column 0."
        )
    answers = teacher.argmax(1)
    correct, count = int((answers == labels - 1).sum()), len(labels)
    certainty = teacher.amax(1) - teacher.median(1).values  # random weights give less than 1
    varied = min(len(answers.unique()), len(labels.unique()))
    if count < 12 or correct > 0.1 * count or float(certainty.median()) < 3 or varied < min(3, classes):
        return None
    if len(answers.unique()) < 0.4 * len(labels.unique()):
        return None
    return (
        f"teacher_logits must have the student's classes in their order, found the teacher right on {correct} of {count} ground "
        "truths and sure of itself: its classes are in another order, or its crops are not normalised as it was trained."
    )


def teacher_probabilities(call: Call) -> str | None:
    return _probabilities("teacher_logits", call.teacher)


def student_probabilities(call: Call) -> str | None:
    return _probabilities("student_logits", call.student)


def _probabilities(name: str, logits: Tensor | None) -> str | None:
    """Rows of at least 0 that sum to 1, or many values that all lie between 0 and 1."""
    if logits is None or logits.numel() < 4 or logits.shape[1] < 2:
        return None
    low, high = float(logits.min()), float(logits.max())
    if not (low >= 0 and high <= 1 and high > low):
        return None
    tolerance = 5e-3 if logits.shape[1] > 2 else 1e-4  # of probabilities that were rounded to 16 bits
    sums = float((logits.sum(1) - 1).abs().max()) <= tolerance and (len(logits) > 1 or logits.shape[1] > 4)
    varied = float((logits.amax(0) - logits.amin(0)).max()) >= 0.5 and (logits.numel() >= 60 or (low <= 0.1 and high >= 0.9))
    wide = logits.numel() >= 20 and (logits.shape[1] >= 16 or varied)  # young rows are alike: a few columns prove nothing
    if not (sums or wide):
        return None
    form = "rows that sum to 1" if sums else f"{logits.numel()} values that all lie between 0 and 1"
    return (
        f"{name} must be logits, found {form}: they look like probabilities. Give what the network returns before its softmax "
        "or sigmoid (of similarities, before which there is none, times the model's scale)."
    )


def without_gradient(call: Call) -> str | None:
    """One side of the student is detached while the other is trained."""
    needs = call.needs_gradient
    if not torch.is_grad_enabled():
        return None
    logits, boxes = needs.get("student_logits"), needs.get("boxes")
    if logits is False and needs.get("teacher_logits"):
        return (
            "student_logits must be the detector's and teacher_logits the classifier's, found a gradient for teacher_logits "
            "alone: they may be in each other's place, or student_logits were detached."
        )
    read_at_boxes = call.maps and call.is_weighted and boxes is False and not needs["maps"] and len(call.rows)
    if read_at_boxes and (logits or logits is None):
        return (
            "boxes must carry the gradient of the detector's regression, found none (requires_grad is False): the location terms "
            "train nothing. Decode them outside of no_grad, and without detach."
        )
    if logits is False and boxes and len(call.rows):
        return (
            "student_logits must carry the detector's gradient, found none (requires_grad is False): the class term trains "
            "nothing. Take them before detach or no_grad."
        )
    return None


def weak_pixels(call: Call) -> str | None:
    """The paper's weight of pixel differences, which is for levels of 0 to 255, on pictures of another scale."""
    for of_map in call.maps:
        if of_map.weight is None or not of_map.is_pictures or of_map.spread < 1e-3:
            continue
        if of_map.std == 1 and of_map.weight == 0.15 and of_map.spread < 16:
            return (
                f"{of_map.name} must have differences of levels of 0 to 255 for a loc_weight of 0.15, found pictures of standard "
                f"deviation {of_map.spread:.3g}: the pixel term is about {58 / of_map.spread:.0f} times weaker. Give "
                f"RoIMap(…, std={of_map.spread:.2g}), and a loc_weight per standard deviation (8.7 pulls as the paper's)."
            )
        if of_map.std != 1 and of_map.spread < of_map.std / 20:
            return (
                f"std of {of_map.name} must be in units of its pictures, found {of_map.std:.4g} and pictures of standard deviation "
                f"{of_map.spread:.3g}: the pixel term trains next to nothing."
            )
    return None


CLASS_RULES: tuple[Rule, ...] = (other_background,)
OTHER_RULES: tuple[Rule, ...] = (
    other_classes,
    teacher_probabilities,
    student_probabilities,
    without_gradient,
    weak_pixels,
)
