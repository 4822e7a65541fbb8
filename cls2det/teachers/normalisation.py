"""From the student's normalisation of pictures to a teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Renormalise:
    """Pictures (N, 3, …) normalised with one mean and deviation, as another network takes them: one scale and shift.

    Args:
        image_mean: of each channel of images in [0, 1], as the pictures are normalised: (x - mean) / std
        image_std: of each channel
        mean: of each channel, as they are to be
        std: of each channel

    Raises:
        ValueError: other than three numbers, or a deviation that is not above 0
    """

    def __init__(self, image_mean: Sequence[float], image_std: Sequence[float], mean: Sequence[float], std: Sequence[float]):
        for name, values in (("image_mean", image_mean), ("image_std", image_std)):
            if len(values) != 3 or (name == "image_std" and min(values) <= 0):
                raise ValueError(f"{name} must be three numbers, those of image_std above 0; found {tuple(values)}")
        self.scale: Tensor | None = None  # where nothing changes
        self.shift: Tensor | None = None
        if (list(mean), list(std)) != (list(image_mean), list(image_std)):
            columns = (
                torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (image_mean, image_std, mean, std)
            )
            from_mean, from_std, to_mean, to_std = columns
            self.scale, self.shift = (from_std / to_std).float(), ((from_mean - to_mean) / to_std).float()

    def to(self, device: torch.device | str) -> None:
        if self.scale is not None and self.shift is not None:
            self.scale, self.shift = self.scale.to(device), self.shift.to(device)

    def __call__(self, pictures: Tensor) -> Tensor:
        return pictures if self.scale is None or self.shift is None else pictures * self.scale + self.shift
