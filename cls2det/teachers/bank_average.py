"""Several banks of one data set as one: an ensemble of teachers that costs a gather of each.

bank = BankAverage([Bank("large.safetensors"), Bank("clip.safetensors")], head="softmax")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from cls2det.teachers.bank import Bank


class BankAverage:
    """Several banks of one data set as one: ``logits_of`` and a call give the logarithm (softmax) or logit (sigmoid) of the mean
    probability.

    Args:
        banks: with logits, of the same classes
        head: how the student reads logits, "softmax" or "sigmoid"
        weights: of each bank, which are divided by their sum; None is the likelihood of each, the exponential of the mean
            log-probability of the true class, as its ``calibration`` has it: a proper score, which falls with errors and with a wrong
            confidence alike

    Raises:
        ValueError: other classes, or a column for the background that only some have; weights that do not fit
    """

    def __init__(self, banks: Sequence[Bank], head: str, weights: Sequence[float] | None = None):
        first = banks[0]
        self.banks = [bank.for_classes(first.classes, str(first.path)) for bank in banks]
        self.classes, self.head, self.path = first.classes, head, first.path
        if odd := [str(bank.path) for bank in self.banks if bank.has_background != self.has_background]:
            raise ValueError(
                f"banks to be averaged must all have a column for the background, or none: {first.path} and {odd[0]} differ. Make "
                "them of teachers that are alike (--background)"
            )
        if weights is None:
            weights = [_likelihood(bank, head) for bank in self.banks]
        if len(weights) != len(banks) or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
            raise ValueError(f"expected a weight from 0 for each of {len(banks)} banks, found {list(weights)}")
        self.weights = [weight / sum(weights) for weight in weights]

    @property
    def has_background(self) -> bool:
        return self.banks[0].has_background

    def __deepcopy__(self, _memo: dict[int, Any]) -> BankAverage:
        return self

    def __call__(
        self,
        annotation_ids: ArrayLike,
        mirrored: ArrayLike | None = None,
        *,
        draws: ArrayLike | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """As ``Bank.__call__``."""
        parts = torch.stack([bank(annotation_ids, mirrored, draws=draws, generator=generator) for bank in self.banks])
        shares = torch.tensor(self.weights).log()[:, None, None]
        if self.head == "softmax":
            return (parts.log_softmax(2) + shares).logsumexp(0)
        of_yes, of_no = (F.logsigmoid(sign * parts) + shares for sign in (1, -1))
        return of_yes.logsumexp(0) - of_no.logsumexp(0)

    def logits_of(self, origins: np.ndarray) -> Tensor:
        """As ``Bank.logits_of``."""
        return self(origins["annotation_id"], origins["mirrored"], draws=origins["draw"])

    def for_classes(self, classes: Sequence[str], of_classes: str = "the data") -> BankAverage:
        """As ``Bank.for_classes``."""
        banks = [bank.for_classes(classes, of_classes) for bank in self.banks]
        return self if banks == self.banks else BankAverage(banks, self.head, self.weights)


AnyBank = Bank | BankAverage


def _likelihood(bank: Bank, head: str) -> float:
    measured: dict[str, Any] = (bank.about.get("calibration") or {}).get("by head", {})
    if not measured:
        raise ValueError(f"{bank.path} has no calibration to weigh it by; give the weights of the banks")
    of_head = measured.get(head) or next(iter(measured.values()))
    return float(np.exp(of_head["log_likelihood"]))
