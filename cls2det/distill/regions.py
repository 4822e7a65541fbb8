"""Regions: the student's features at its positives follow a frozen encoder's embeddings of the ground truths' crops.

No classes take part: any image encoder can teach, also one that knows nothing of the data. With s_k the student's embedding of
positive k (its maps averaged over the box, through a linear adapter, of length 1), t_g the encoder's of ground truth g, and
m(k) the match:

- "l1", the image term of ViLD (Gu et al., ICLR 2022, eq. 4): (1 / K) Σ_k ‖s_k - t_m(k)‖₁
- "queue": (1 / K) Σ_k KL(softmax(t_m(k) Q / T) ‖ softmax(s_k Q / T)) with Q the encoder's last embeddings of earlier
  ground truths (under DDP those of the first process): the student need not copy an embedding, only what it lies close to

The adapters train with the student and are dropped with the training: no weights.pt and no export has them.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cls2det.distill.banked import cut_boxes, origins_of, whole_boxes
from cls2det.models.positives import Positives
from cls2det.settings import RegionsSettings
from cls2det.teachers.bank import Bank
from cls2det.teachers.crops import PADDING
from cls2det.teachers.encoder import Encoder
from cls2det.teachers.normalisation import Renormalise
from cls2det_ops import kd_softmax_loss, matched_feature_loss, roi_avg_pool

CELLS = 14  # a box belongs to the coarsest map on which its side (the root of its area) has as many cells, as in FPN's eq. 1


class Regions(nn.Module):
    """``regions(positives, maps)`` gives {"regions": term}, unweighted: multiply it with ``settings.weight``.

    Its parameters are the adapters': give them to the optimizer, beside the detector's. The encoder is not among them.

    Args:
        settings: of the term
        encoder: the teacher; None where a bank takes its place
        channels: of each of the student's maps
        image_mean: of each channel, as ``positives.images`` are normalised, of images in [0, 1]
        image_std: of each channel
        bank: whose embeddings are read in place of the encoder's, by ``positives.origins``
        bank_visible: boxes of which augmentation left a smaller share go to the encoder or, without one, are left out of the term,
            whose divisor still counts their positives

    Raises:
        ValueError: no maps; neither an encoder nor a bank, or embeddings of two sizes
    """

    queue: Tensor
    place: Tensor  # of the next embedding in the queue, modulo its size

    def __init__(
        self,
        settings: RegionsSettings,
        encoder: Encoder | None,
        channels: Sequence[int],
        *,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        bank: Bank | None = None,
        bank_visible: float = 0.5,
    ):
        super().__init__()
        if not channels:
            raise ValueError("regions reads the student's feature maps, and there are none")
        self.settings, self.encoder, self.bank, self.bank_visible = settings, encoder, bank, bank_visible
        sizes = [*([encoder.size] if encoder is not None else []), *([bank.embedding_size] if bank is not None else [])]
        if len(set(sizes)) != 1:
            what = f"embeddings of {sizes[0]} and of {sizes[1]} numbers" if sizes else "neither"
            raise ValueError(f"regions needs an encoder, a bank of embeddings, or both of one size; found {what}")
        self.size = sizes[0]
        if encoder is not None:
            self.renormalise = Renormalise(image_mean, image_std, encoder.mean, encoder.std)
        self.adapters = nn.ModuleList(nn.Conv2d(count, self.size, settings.pool_size) for count in channels)
        if settings.form == "queue":  # random directions until it has been filled once
            self.register_buffer("queue", F.normalize(torch.randn(settings.queue_size, self.size), dim=1))
            self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def to_device(self, device: torch.device) -> None:
        """Move the encoder, which ``to`` does not know of."""
        if self.encoder is not None:
            self.encoder.to(device)
            self.renormalise.to(device)

    def forward(self, positives: Positives, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """
        Args:
            positives: of a training forward
            maps: (B, C, h, w) of the whole images, with graph, fine to coarse

        Returns:
            a scalar, with gradient to the maps and the adapters, and none to the boxes
        """
        settings = self.settings
        targets, cut = self._targets(positives)
        if settings.max_positives is not None:
            positives = positives.thinned(settings.max_positives)
        student, count = self.embeddings(positives, maps), max(len(positives), 1)
        if cut is not None:  # both sides are 0 there, and their difference too
            whole = whole_boxes(len(targets), cut, targets.device)[:, None]
            student, targets = student * whole[positives.matched_idxs], targets * whole
        if settings.form == "queue":
            term = self._queue_term(student, targets, positives.matched_idxs, count, cut)
        else:
            rows, target_rows = student[:, :, None, None], targets[:, :, None, None]
            mean = matched_feature_loss(rows, target_rows, positives.matched_idxs, 1, loss="l1", normalizer=count)
            term = self.size * mean
        return {"regions": term}

    def _targets(self, positives: Positives) -> tuple[Tensor, Tensor | None]:
        """Embeddings (G, D) of the ground truths; the rows that are left out, on the host, or None."""
        boxes, image_index, device = positives.target_boxes, positives.target_image_index, positives.images.device
        if self.bank is None:
            assert self.encoder is not None
            return self.encoder.embeddings(positives.images, boxes, image_index, self.renormalise), None
        targets = self.bank.embeddings_of(origins_of(positives)).to(device, non_blocking=True)
        cut = cut_boxes(positives, self.bank_visible)
        if not len(cut):
            return targets, None
        if self.encoder is None:
            return targets, cut
        rows = cut.to(device, non_blocking=True)
        live = self.encoder.embeddings(positives.images, boxes[rows], image_index[rows], self.renormalise)
        return targets.index_copy_(0, rows, live), None

    def embeddings(self, positives: Positives, maps: Sequence[Tensor]) -> Tensor:
        """The student's (K, D), of length 1."""
        boxes, size = positives.boxes.detach(), self.settings.pool_size
        scales = [level.shape[-1] / positives.images.shape[-1] for level in maps]
        levels = levels_of(boxes, scales)
        parts = []
        for level, (adapter, features, scale) in enumerate(zip(self.adapters, maps, scales, strict=True)):
            # every box on every map, and one map of each counts: nothing waits for a GPU, and DDP has every adapter's gradient
            pooled = roi_avg_pool(
                features,
                boxes,
                positives.image_index,
                size,
                max(CELLS, size),
                scale,
                padding_mode=PADDING,
                clip=False,
            )
            parts.append(adapter(pooled).flatten(1).float() * (levels == level)[:, None])
        return F.normalize(functools.reduce(operator.add, parts), dim=1)

    def _queue_term(self, student: Tensor, targets: Tensor, matched_idxs: Tensor, count: int, cut: Tensor | None) -> Tensor:
        queue = self.queue.T / self.settings.temperature  # a copy: the graph keeps this step's
        loss = kd_softmax_loss(student @ queue, targets @ queue, matched_idxs, 1.0, background="none", normalizer=count)
        if self.training:
            if cut is not None:
                is_whole = ~torch.isin(torch.arange(len(targets)), cut)
                targets = targets[is_whole.nonzero().flatten().to(targets.device)]
            newest = targets[-len(self.queue) :]
            places = (self.place + torch.arange(len(newest), device=queue.device)) % len(self.queue)
            self.queue[places] = newest
            self.place += len(newest)
        return loss


def levels_of(boxes: Tensor, scales: Sequence[float]) -> Tensor:
    """The map (N,) of each box (N, 4): the coarsest on which its side has ``CELLS`` cells, or the finest.

    Args:
        scales: of each map, cells per pixel, fine to coarse
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).float().clamp(min=0).prod(1).sqrt()
    levels = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    for level, scale in enumerate(scales):
        levels = torch.where(sides * scale >= CELLS, level, levels)
    return levels
