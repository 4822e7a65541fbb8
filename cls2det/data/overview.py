"""What a split holds, in numbers: pictures, objects, classes, sizes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cls2det.data.dataset import DetectionData

SHARES = (0.05, 0.5, 0.95)  # of the objects that are smaller


def overview(data: DetectionData) -> dict[str, Any]:
    """Plain values by name. Sizes are in pixels of the pictures; the size of an object is the square root of its box's area."""
    sizes, counts, boxes = data.targets.sizes(), data.targets.counts(), data.targets.boxes().double()
    sides = boxes[:, 2:] - boxes[:, :2]
    order = sizes.prod(1).argsort()
    return {
        "annotations": str(data.annotation_file),
        "images": len(data),
        "images without objects": int((counts == 0).sum()),
        "objects": len(boxes),
        "crowds": int(data.columns.crowds.sum()),
        "objects per image": {"mean": counts.double().mean().item(), "most": int(counts.max())},
        "classes": data.class_counts(),
        "image size": {
            name: sizes[order[place]].int().tolist()
            for name, place in (("smallest", 0), ("median", len(order) // 2), ("largest", -1))
        },
        "object size": shares_below(object_sizes(boxes)),
        "height over width": shares_below(sides[:, 1] / sides[:, 0]),
    }


def object_sizes(boxes: Tensor) -> Tensor:
    """(n,) square roots of the areas of boxes (n, 4) xyxy."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()


def shares_below(values: Tensor) -> dict[str, float] | None:
    """The values that 5, 50 and 95 % of all lie below, by "5 %" and so on; None of nothing."""
    if not len(values):
        return None
    ordered = values.double().sort().values  # torch.quantile takes no more than 16 million
    return {f"{share:.0%}".replace("%", " %"): ordered[int(share * (len(ordered) - 1))].item() for share in SHARES}
