"""The losses of transformers' detectors that match by the Hungarian method: in float32, and by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from cls2det.errors import LibraryChanged

try:
    LIBRARY = f"transformers {version('transformers')} (5.24 is known to fit)"
except PackageNotFoundError:  # then there is no such detector either
    LIBRARY = "transformers"

MATCHER = "HungarianMatcher"  # how the class of every matcher ends
# What a loss of transformers has in its name, and the term of ours that it belongs to; any other is of the classes.
TERMS = {"giou": "bbox_giou", "bbox": "bbox_regression", "fgl": "bbox_distribution", "ddf": "bbox_distribution"}
# Of each image: "class_labels" (n,) from 0, "boxes" (n, 4) as centre and sides in shares of "size", (2,): height and width.
Labels = list[dict[str, Tensor]]


def losses_by_name(network: Any, losses: Mapping[str, Tensor], *, has_objects: bool) -> dict[str, Tensor]:
    """transformers' losses, weighted as it weights them, added up by kind over decoder layers and denoising.

    Args:
        network: that gave them
        losses: its ``loss_dict``
        has_objects: whether any image has one; where none has, every weight gets a gradient of 0
    """
    terms: dict[str, Tensor] = {}
    for name, loss in losses.items():
        if name.startswith("loss_"):  # not cardinality_error, which is logged alone
            term = next((term for part, term in TERMS.items() if part in name), "classification")
            weighted = _weight(network, term) * loss
            terms[term] = terms[term] + weighted if term in terms else weighted
    if not has_objects:  # nothing is denoised, and DDP waits for the gradients of all
        unused = torch.stack([weight.sum() for weight in network.parameters() if weight.requires_grad]).sum()
        terms["classification"] = terms["classification"] + 0 * unused
    return terms


def _weight(network: Any, term: str) -> float:
    config = network.config
    if hasattr(config, "weight_loss_bbox"):  # RT-DETR and D-FINE give them weighted
        return 1.0
    if term == "classification":
        return float(config.class_loss_coefficient) if isinstance_of(network, "LwDetr", "RfDetr") else 1.0
    names = {"bbox_regression": "bbox_loss_coefficient", "bbox_giou": "giou_loss_coefficient"}
    return float(getattr(config, names.get(term, ""), 1.0))


def check_sum(network: nn.Module, total: Tensor, losses: Mapping[str, Tensor]) -> None:
    """LibraryChanged unless ``losses_by_name`` adds up to the network's own loss."""
    ours = torch.stack(list(losses_by_name(network, losses, has_objects=True).values())).sum()
    if not torch.allclose(ours, total, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise LibraryChanged(
            LIBRARY, f"the losses of {type(network).__name__}, {', '.join(losses)}, do not add up to its loss"
        )


def isinstance_of(network: nn.Module, *families: str) -> bool:
    """Whether a network is of one of transformers' families: by the beginning of its class's name, without an import."""
    return type(network).__name__.startswith(families)


def loss_in_float32(loss_function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """transformers' loss, under mixed precision too: the matching goes through numpy, which has no bfloat16."""

    def widened(value: Tensor) -> Tensor:
        return value.float() if value.is_floating_point() else value

    arguments, keywords = tree_map_only(Tensor, widened, (arguments, keywords))
    with torch.autocast(arguments[0].device.type, enabled=False):
        return loss_function(*arguments, **keywords)


def matchers(loss_function: Callable[..., Any]) -> list[Any]:
    """The matchers' classes in the module of one of transformers' losses; empty where it does not match."""
    names = vars(sys.modules[loss_function.__module__])
    return [value for name, value in names.items() if name.endswith(MATCHER) and isinstance(value, type)]
