"""The banks that ``distill --bank`` names: opened, and held against the run before anything is trained."""

from __future__ import annotations

import warnings
from typing import NamedTuple

from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cls2det.commands.identity import digests_of
from cls2det.commands.options import DistillOptions
from cls2det.data.augment import MIRRORING
from cls2det.data.dataset import DetectionData
from cls2det.files import is_first_process
from cls2det.models.students import head_of
from cls2det.teachers.bank import AnyBank, Bank
from cls2det.teachers.bank_average import BankAverage


class Banks(NamedTuple):
    """
    Attributes:
        all: that are named
        logits: what KD-cls reads, or None
        embeddings: what regions reads, or None
    """

    all: list[Bank]
    logits: AnyBank | None
    embeddings: Bank | None


def open_banks(options: DistillOptions, data: DetectionData) -> Banks:
    """
    Raises:
        ValueError: a bank that is damaged, of other data, of another head's scores, no better than guessing (but for
            ``allow_poor_teacher``) or of another teacher than the file that it names; banks that nothing reads, or that cannot be
            averaged
    """
    if not 0 <= options.bank_visible <= 1:
        raise ValueError(f"bank_visible must be a share from 0 to 1, got {options.bank_visible}")
    banks = [Bank(path, check=is_first_process()) for path in options.bank or ()]
    for bank in banks:
        bank.check_data(data)
        _check_teacher(bank, options)
    of_logits = [bank for bank in banks if bank.has_logits] if "classifier" in options.distillers else []
    of_embeddings = [bank for bank in banks if bank.has_embeddings] if "regions" in options.distillers else []
    if unread := [bank for bank in banks if bank not in of_logits + of_embeddings]:
        raise ValueError(
            f"{unread[0].path} holds {unread[0].content}, which none of the distillers {', '.join(options.distillers)} reads: "
            "classifier reads logits, regions reads embeddings"
        )
    if len(of_embeddings) > 1:
        raise ValueError(
            f"regions reads the embeddings of one bank, found {len(of_embeddings)}: those of two encoders cannot be averaged"
        )
    if options.bank_weights and len(of_logits) < 2:
        raise ValueError(f"bank_weights are of several banks with logits, found {len(of_logits)}")
    for bank in of_logits if reads_logits(options) and not options.allow_poor_teacher else ():
        check_head(options.student, str(bank.path), bank.about["loss"])
        head, mapped_for = head_of(options.student), bank.about["teacher"].get("mapped_for")
        if mapped_for not in (None, head):
            raise ValueError(
                f"{bank.path} maps the teacher's classes for a {mapped_for}, and {options.student} has a {head}: make it anew with "
                f"--student {options.student} (--allow-poor-teacher goes on all the same)"
            )
        bank.check_not_at_chance()
    logits: AnyBank | None = of_logits[0] if of_logits else None
    if len(of_logits) > 1:
        logits = BankAverage(of_logits, head_of(options.student), options.bank_weights)
    if is_first_process():
        _warn_of_other_pictures(banks, options)
    return Banks(banks, logits, of_embeddings[0] if of_embeddings else None)


def check_fit(banks: Banks, transform: GeneralizedRCNNTransform) -> None:
    """ValueError for crops that were normalised in another way than the student's pictures; a warning for a far other size."""
    for bank in banks.all:
        bank.check_pictures(transform)


def reads_logits(options: DistillOptions) -> bool:
    """Whether KD-cls compares a teacher's scores: it may have labels in their place."""
    return bool(options.classifier.kd_cls_weight) and options.classifier.control not in ("one_hot", "smoothed")


def check_head(student: str, teacher: str, loss: str) -> None:
    """ValueError for scores that were not trained to be read as the student's head reads them."""
    head = head_of(student)
    if (head, loss) in (("sigmoid", "ce"), ("softmax", "bce")):
        raise ValueError(
            f"{student} has a {head} for its classes, and {teacher} was trained with {loss} alone: its scores "
            "mean something else. Train it with --loss joint (--allow-poor-teacher goes on all the same)"
        )


def _check_teacher(bank: Bank, options: DistillOptions) -> None:
    """ValueError where the file of a teacher or encoder is no longer what the bank was made of."""
    for name in ("teacher", "encoder"):
        made_of, value = bank.about[name], getattr(options, name)
        if made_of and value and str(value) == made_of["source"] and made_of["digest"]:
            digest = digests_of({name: value}).get(name, made_of["digest"])
            if digest != made_of["digest"]:
                raise ValueError(
                    f"{bank.path} was made of other weights than {value} holds now: make it anew with `cls2det bank`, or put the "
                    "weights back"
                )


def _warn_of_other_pictures(banks: list[Bank], options: DistillOptions) -> None:
    for bank in banks:
        if options.augmentation in MIRRORING and not bank.about["flip"]:
            warnings.warn(
                f"{bank.path} holds no mirrored views, and augmentation {options.augmentation} mirrors pictures: what the teacher "
                "makes of the crop as it is stands for the mirrored one (cls2det bank --flip true)",
                stacklevel=4,
            )
        if bank.views > 1 and bank.about["augmentation"] not in ("none", options.augmentation):
            warnings.warn(
                f"{bank.path} holds views of augmentation {bank.about['augmentation']}, and this run has {options.augmentation}",
                stacklevel=4,
            )
        if (side := bank.about.get("max_image_side")) != options.max_image_side:
            warnings.warn(
                f"{bank.path} holds crops of pictures with max_image_side {side or 'null'}, and this run has "
                f"{options.max_image_side or 'null'}",
                stacklevel=4,
            )
