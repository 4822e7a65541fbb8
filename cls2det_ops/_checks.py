"""Argument checks shared by the public functions: every message names function, argument, expected and found.

Shapes, dtypes and devices are always checked. Values (indices, boxes, logits) are checked only in debug mode,
because reading them would make a GPU wait for its host; the kernels are safe for any value without it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INDEX_DTYPES = (torch.int64, torch.int32)
PADDING_MODES = ("zeros", "border")
LOSSES = ("l1", "l2", "smooth_l1")
BACKGROUNDS = ("none", "first", "last")
REDUCTIONS = ("none", "sum", "mean")
LARGEST_SIZE = 4096  # of crops, bins and samples along one axis

_debug = os.environ.get("CLS2DET_DEBUG", "0") not in ("", "0")


def debug_enabled() -> bool:
    return _debug


@contextlib.contextmanager
def debug_values(enabled: bool = True) -> Iterator[None]:
    """Check the values of indices, boxes and logits in every call inside the block, and raise ``ValueError``.

    What no right call can hold is an error. What :func:`explain` says of a loss at boxes is a warning, once in a process for
    each sentence. Costs a device synchronisation per argument. ``CLS2DET_DEBUG=1`` in the environment switches it on for the
    process.
    """
    global _debug
    before, _debug = _debug, enabled
    try:
        yield
    finally:
        _debug = before


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else: the dtype of sums, boxes and losses."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def constant(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in ``dtype`` and without a gradient. A tensor that is so already is returned as it is."""
    return in_dtype(tensor.detach() if tensor.requires_grad else tensor, dtype)


def fail(function: str, argument: str, expected: str, found: object) -> ValueError:
    return ValueError(f"{function}: {argument} must be {expected}, found {found}")


def floating(function: str, argument: str, tensor: Tensor, shape: tuple[int | str, ...], of: str | None = None) -> None:
    """A floating-point tensor of the given shape; strings in it stand for any size of at least zero.

    ``of`` is what it has a row each for.
    """
    _tensor(function, argument, tensor)
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{function}: {argument} must be float32, float64, float16 or bfloat16, found {tensor.dtype}")
    _shape(function, argument, tensor, shape, of)


def index(function: str, argument: str, tensor: Tensor, length: int, of: str) -> Tensor:
    """An int32 or int64 vector with one entry for each row of ``of``; returned as int64."""
    _tensor(function, argument, tensor)
    if tensor.dtype not in INDEX_DTYPES:
        raise TypeError(f"{function}: {argument} must be int64 or int32, found {tensor.dtype}")
    if tensor.dim() != 1 or tensor.shape[0] != length:
        raise fail(function, argument, f"a vector with one entry for each row of {of} ({length})", _shape_text(tensor))
    return in_dtype(tensor, torch.int64)


def feature_map(function: str, argument: str, tensor: Tensor) -> None:
    floating(function, argument, tensor, ("B", "C", "H", "W"))
    if tensor.shape[2] == 0 or tensor.shape[3] == 0:
        raise fail(function, argument, "a map of at least one pixel", _shape_text(tensor))


def size_pair(function: str, argument: str, size: int | tuple[int, int]) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or any(isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)) or n < 1 for n in pair):
        raise fail(function, argument, "a positive integer or a pair (height, width) of them", size)
    if max(pair) > LARGEST_SIZE:
        raise fail(function, argument, f"at most {LARGEST_SIZE} along each axis", size)
    return pair


def choice(function: str, argument: str, value: str, allowed: tuple[str, ...]) -> int:
    if value not in allowed:
        raise fail(function, argument, "one of " + ", ".join(map(repr, allowed)), repr(value))
    return allowed.index(value)


def positive(function: str, argument: str, value: float) -> float:
    _number(function, argument, value)
    if not value > 0 or value == float("inf"):
        raise fail(function, argument, "a positive finite number", value)
    return float(value)


def number(function: str, argument: str, value: float) -> None:
    """A number, or a tensor of one element."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return
    _number(function, argument, value)


def not_negative(function: str, argument: str, value: float) -> float:
    _number(function, argument, value)
    if not 0 <= value < float("inf"):
        raise fail(function, argument, "a finite number of at least 0", value)
    return float(value)


def count(function: str, argument: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{function}: {argument} must be whole numbers, found {value!r}")
    if value < 0:
        raise fail(function, argument, "at least 0", value)
    return value


def flag(function: str, argument: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{function}: {argument} must be True or False, found {value!r}")
    return value


def same_device(function: str, **tensors: Tensor | None) -> None:
    first = device = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if device is None:
            first, device = name, tensor.device
        elif tensor.device != device:
            raise fail(function, name, f"on {device} like {first}", tensor.device)


def index_values(function: str, argument: str, tensor: Tensor, size: int, of: str, ignored: bool = False) -> None:
    """Debug mode only: every entry in [0, size); with ``ignored``, negative ones are the caller's way to leave a row out."""
    if tensor.is_meta:  # it has no values
        return
    outside = tensor >= size if ignored else (tensor < 0) | (tensor >= size)
    bad = outside.nonzero().flatten().tolist()
    if bad:
        row = bad[0]
        expected = f"below {size}, the rows of {of} (negative: ignored)" if ignored else f"in [0, {size}), the rows of {of}"
        raise fail(function, argument, expected, f"{tensor[row].item()} at row {row} ({len(bad)} such)")


def box_values(function: str, argument: str, boxes: Tensor) -> None:
    """Debug mode only: finite boxes with x1 <= x2 and y1 <= y2."""
    if boxes.is_meta:
        return
    good = boxes.isfinite().all(1) & (boxes[:, 0] <= boxes[:, 2]) & (boxes[:, 1] <= boxes[:, 3])
    bad = (~good).nonzero().flatten().tolist()
    if bad:
        row = bad[0]
        raise fail(
            function, argument, "finite with x1 <= x2 and y1 <= y2", f"{boxes[row].tolist()} at row {row} ({len(bad)} such)"
        )


def finite_values(function: str, argument: str, tensor: Tensor) -> None:
    """Debug mode only: no NaN and no infinity."""
    if tensor.is_meta:
        return
    bad = int((~tensor.isfinite()).sum())
    if bad:
        raise fail(function, argument, "finite", f"{bad} values that are NaN or infinite, of {tensor.numel()}")


def _number(function: str, argument: str, value: object) -> None:
    if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)) or isinstance(value, bool):
        way_out = ": convert it with float()" if hasattr(value, "__float__") and not isinstance(value, bool) else ""
        raise TypeError(f"{function}: {argument} must be a number, found {type(value).__name__}{way_out}")


def _tensor(function: str, argument: str, value: object) -> None:
    if isinstance(value, Tensor):
        return
    if isinstance(value, (list, tuple)) and value and all(isinstance(part, Tensor) for part in value):
        joined = "pad the pictures to one size and stack them"
        if not argument.startswith(("images", "features", "target_features")):
            joined = "concatenate them and count matches in the whole batch (cls2det's Positives.from_lists does both)"
        form = f"a {type(value).__name__} of {len(value)} tensors"
        raise TypeError(f"{function}: {argument} must be one torch.Tensor for all images, found {form}: {joined}")
    raise TypeError(f"{function}: {argument} must be a torch.Tensor, found {type(value).__name__}")


def _shape(function: str, argument: str, tensor: Tensor, shape: tuple[int | str, ...], of: str | None = None) -> None:
    fits = tensor.dim() == len(shape)
    if fits:
        for got, want in zip(tensor.shape, shape, strict=True):
            if not isinstance(want, str) and got != want:
                fits = False
    if not fits:
        expected = "of shape (" + ", ".join(map(str, shape)) + ")" + (f", a row for each of {of}" if of else "")
        form = _shape_text(tensor)
        if "boxes" in argument and tensor.dim() == 2 and tensor.shape[1] == 5:
            form += ": torchvision's rois have the image in column 0; give boxes[:, 1:], and boxes[:, 0].long() as its index"
        raise fail(function, argument, expected, form)


def _shape_text(tensor: Tensor) -> str:
    return "shape (" + ", ".join(str(n) for n in tensor.shape) + ")"
