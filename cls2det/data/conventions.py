"""Whether boxes look as if they were not [x, y, width, height] in pixels of the image, judged over a whole split.

A verdict needs two things that boxes as they should be do not show together: many reach out of their image, and in another
convention nearly none does.
"""

from __future__ import annotations

import numpy as np

FEW = 10  # boxes that are too few for a verdict
FEW_TO_SCALE = 20  # the same where the only sign is that a part of all images is empty
REACHING = 5  # boxes out of their image that ask for another reading
MANY = 0.1  # share of boxes that reach out where corners or another scale are the reason
MISFITS = 0.005  # share of boxes that may not fit the other reading: annotations have faults of their own

CORNERS = "[x1, y1, x2, y2], two corners"
CENTRES = "[x, y, width, height] with x and y of the centre"


def suspect_convention(boxes: np.ndarray, sizes: np.ndarray) -> str | None:
    """What the boxes are likely to be instead, and how to change them; None where they are not suspect.

    Args:
        boxes: (n, 4) as in the file, of single objects
        sizes: (n, 2) width and height of the image of each
    """
    if len(boxes) < FEW:
        return None
    shares = (boxes <= 1).all(1) & (boxes[:, 2:] > 0).all(1)
    if shares.sum() >= (1 - MISFITS) * len(boxes):
        order = _other_order(boxes, np.ones_like(sizes))
        as_what = f", and as {order}" if order else ""
        return (
            f"the boxes look like shares of the image's size, from 0 to 1{as_what}. Expected are pixels: multiply by the image's "
            f"width and height{_remedy(order)}"
        )
    if order := _other_order(boxes, sizes):
        reaching = int(_reach_out(boxes, sizes).sum())
        return (
            f"{reaching} of {len(boxes)} boxes reach out of their image as [x, y, width, height], and nearly none does as {order}. "
            f"If the boxes are that, change them{_remedy(order)}"
        )
    return _scaled(boxes, sizes)


def _other_order(boxes: np.ndarray, sizes: np.ndarray) -> str | None:
    """The convention that fits, where [x, y, width, height] does not."""
    reaching = _reach_out(boxes, sizes).sum()
    if reaching < REACHING:
        return None
    most, (slack_x, slack_y) = min(MISFITS * len(boxes), 0.1 * reaching), _slack(sizes).T
    x, y, right, bottom = boxes.T
    outside = (right > sizes[:, 0] + slack_x) | (bottom > sizes[:, 1] + slack_y)
    as_corners = reaching > MANY * len(boxes) and ((right < x) | (bottom < y) | outside).sum() <= most
    half = boxes[:, 2:] / 2
    margin = np.minimum(boxes[:, :2] - half + _slack(sizes), sizes + _slack(sizes) - boxes[:, :2] - half)
    as_centres = (margin < 0).any(1).sum() <= most
    if as_corners and as_centres:
        return f"{CORNERS}, or {CENTRES}"
    return CORNERS if as_corners else CENTRES if as_centres else None


def _remedy(order: str | None) -> str:
    if order is None:
        return ""
    if order == CORNERS:
        return ": width = x2 - x1, height = y2 - y1"
    if order == CENTRES:
        return ": subtract half of width and height from x and y"
    return " to [x of the left side, y of the upper side, width, height]"


def _scaled(boxes: np.ndarray, sizes: np.ndarray) -> str | None:
    """Annotated on pictures of another size: all objects in the upper left part of the images, or far beyond them."""
    ends = (boxes[:, :2] + boxes[:, 2:]) / sizes
    beyond = ((boxes[:, :2] >= sizes) | (boxes[:, 2:] > 1.2 * sizes)).any(1).sum()
    if beyond >= max(REACHING, MANY * len(boxes)):
        text = f"{beyond} of {len(boxes)} boxes begin outside of their image, or are larger than it"
    elif len(boxes) >= FEW_TO_SCALE and _is_corner(boxes[:, :2] / sizes, ends):
        text = f"no object reaches beyond {ends.max(0)[0]:.0%} of its image's width and {ends.max(0)[1]:.0%} of its height"
    else:
        return None
    return (
        f"{text}. If the images were annotated at another size, multiply the boxes by the size of the images here over the size "
        "there; width and height of the images are those of the files"
    )


def _is_corner(starts: np.ndarray, ends: np.ndarray) -> bool:
    """Whether a right and a lower strip stay empty in all images, each far wider than the left and the upper one."""
    empty = 1 - ends.max(0)
    return bool((empty > 0.3).all() and (starts.min(0) < empty / 4).all())


def _reach_out(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    over = boxes[:, :2] + boxes[:, 2:] > sizes + _slack(sizes)
    return np.asarray(over.any(1))


def _slack(sizes: np.ndarray) -> np.ndarray:
    """How far a box may reach over the border by rounding, or carelessness."""
    return 0.01 * sizes + np.where(sizes > 1, 1.0, 0.0)
