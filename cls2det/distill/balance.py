"""Automatic weights: each term pulls at the detector's head with a share of the detection loss's strength.

    balance = GradientBalance(share=0.3)
    factors = balance(detection_loss, terms, tap.outputs, tap.maps)      # by name, at every step
    loss = detection_loss + sum(factors[name] * term for name, term in terms.items())

A weight that is good for one detector is often far too large for another, because their losses have gradients of other sizes at
the head. The share means the same for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class GradientBalance(nn.Module):
    """``balance(detection, terms, *places)`` gives the factor of each term, a scalar tensor.

    Every few calls (forwards: with gradient accumulation several make a step) the norm of each term's gradient is measured against
    the detection loss's (``gradient_ratios``). The logarithm of the ratio is smoothed over measurements and averaged over DDP's
    processes. The factor is the share over the smoothed ratio. A measurement without a gradient, or with one that is not finite,
    is passed over; before the first one factors are 1. A measurement waits for a GPU, other calls do not.

    It has no parameters. Its state is in ``state_dict``, so that a resumed training goes on with the same factors.

    Args:
        share: of the detection loss's gradient that each term is held to
        every: calls between measurements
        smoothing: weight of the former value in each measurement, in [0, 1)
        bound: factors lie between 1 / bound and bound

    Raises:
        ValueError: a setting out of its range
    """

    def __init__(self, share: float = 0.3, *, every: int = 10, smoothing: float = 0.9, bound: float = 100.0):
        super().__init__()
        if share <= 0 or every < 1 or not 0 <= smoothing < 1 or bound < 1:
            raise ValueError(
                "a balance needs a share above 0, every from 1, smoothing in [0, 1) and a bound from 1; "
                f"found {share}, {every}, {smoothing} and {bound}"
            )
        self.share, self.every, self.smoothing, self.bound = share, every, smoothing, bound
        self.calls = 0
        self.log_ratios: dict[str, Tensor] = {}

    def forward(self, detection: Tensor, terms: Mapping[str, Tensor], *places: Sequence[Tensor]) -> dict[str, Tensor]:
        """
        Args:
            detection: the detector's own loss, a scalar with graph
            terms: weighted by the settings, scalars with graph
            places: see ``gradient_ratios``

        Returns:
            factors by name, without gradient
        """
        if self.calls % self.every == 0:
            self._measure(gradient_ratios(detection, dict(terms), *places))
        self.calls += 1
        return {name: self._factor(name, detection.device) for name in terms}

    def _factor(self, name: str, device: torch.device) -> Tensor:
        if name not in self.log_ratios:
            return torch.ones((), device=device)
        factor = self.share * torch.exp(-self.log_ratios[name].to(device))
        return torch.nan_to_num(factor, nan=1.0).clamp(1 / self.bound, self.bound)

    @torch.no_grad()
    def _measure(self, ratios: Mapping[str, Tensor]) -> None:
        if not ratios:
            return
        values = torch.stack([ratio.float() for ratio in ratios.values()]).log()
        counts = values.isfinite().float()
        sums, distributed = torch.where(counts > 0, values, 0.0), torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            both = torch.stack([sums, counts])
            distributed.all_reduce(both)
            sums, counts = both.unbind()
        means = sums / counts  # NaN where nobody measured anything
        for name, new in zip(ratios, means.unbind(), strict=True):
            old = self.log_ratios.get(name, torch.full_like(new, torch.nan)).to(new.device)
            smoothed = self.smoothing * old + (1 - self.smoothing) * new
            self.log_ratios[name] = torch.where(new.isnan(), old, torch.where(old.isnan(), new, smoothed))

    def get_extra_state(self) -> dict[str, Any]:
        return {"calls": self.calls, "log_ratios": dict(self.log_ratios)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.calls, self.log_ratios = state["calls"], dict(state["log_ratios"])


def gradient_ratios(detection: Tensor, terms: Mapping[str, Tensor], *places: Sequence[Tensor]) -> dict[str, Tensor]:
    """Norm of each term's gradient over that of the detection loss, at the first of ``places`` that the term reaches.

    Places are the head's outputs, then the backbone's maps: a term on features has no gradient at the head's outputs. Graphs are
    kept. A term with a ratio above 1 outweighs the detection loss, one with a small ratio may still help. A term without a
    gradient has the ratio 0.
    """

    def norm(loss: Tensor, place: Sequence[Tensor]) -> Tensor:
        if not place or not loss.requires_grad:  # a detector without maps has none to look at
            return torch.zeros((), device=loss.device)
        gradients = torch.autograd.grad(loss, place, retain_graph=True, allow_unused=True)
        parts = [gradient.float().norm() for gradient in gradients if gradient is not None]
        return torch.stack(parts).norm() if parts else torch.zeros((), device=loss.device)

    detection_norms: dict[
        int, Tensor
    ] = {}  # by place, where a term reaches it: at the maps it costs a part of a backward pass
    ratios = {}
    for name, term in terms.items():
        ratios[name] = torch.zeros((), device=detection.device)
        for number, place in enumerate(places):
            if (value := norm(term, place)) > 0:
                if number not in detection_norms:
                    detection_norms[number] = norm(detection, place)
                ratios[name] = value / detection_norms[number]
                break
    return ratios
