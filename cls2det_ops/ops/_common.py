"""What every operator module shares: registration that needs the compiled schemas, the call, and the reduction of rows."""

from __future__ import annotations

import functools
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _checks as check
from .._library import build_info, operators
from .._namespace import NAMESPACE


@functools.cache
def arguments_of(name: str) -> Any:
    """The named tuple of an operator's arguments, after its schema in csrc."""
    schema = getattr(operators(), name).default._schema
    return namedtuple(name, [argument.name for argument in schema.arguments])


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a function (arguments by name) -> empty results of the right shapes and dtypes, for torch.compile and export.

    It does nothing without compiled schemas.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if build_info:
            named = arguments_of(name)
            torch.library.register_fake(f"{NAMESPACE}::{name}", lambda *arguments: function(named(*arguments)))
        return function

    return register


class Operator(NamedTuple):
    kernel: Callable[..., Any]  # by the dispatcher
    function: Callable[..., Any]  # by a torch.autograd.Function
    names: tuple[str, ...]  # of the arguments of both, in their order


_OPERATORS: dict[str, Operator] = {}  # filled by register_autograd


def register_autograd(name: str, save: Callable[..., None], backward: Callable[..., Any]) -> None:
    """The gradient of an operator, for the dispatcher and for :func:`run`.

    ``save(ctx, arguments, output)`` keeps what the backward needs; ``backward(ctx, needs, *grads)`` gives the gradients by
    argument name. ``arguments`` and ``needs`` (which gradients are asked for) are tuples with the names of the schema.
    """
    if not build_info:
        return
    operator = getattr(operators(), name).default
    named = arguments_of(name)
    names = named._fields
    all_names = frozenset(names)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, named(*inputs), output)

    def formula(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        by_name = backward(ctx, named(*ctx.needs_input_grad[: len(names)]), *grads)
        if not by_name.keys() <= all_names:  # a gradient under another name would be lost
            raise KeyError(f"{name} has no argument {', '.join(by_name.keys() - all_names)}")
        return tuple(map(by_name.get, names))

    torch.library.register_autograd(f"{NAMESPACE}::{name}", formula, setup_context=setup_context)

    def forward(ctx: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = operator(*inputs)
        save(ctx, named(*inputs), output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(formula)}
    formulas: type[torch.autograd.Function] = type(name, (torch.autograd.Function,), members)
    _OPERATORS[name] = Operator(operator, formulas.apply, names)


def is_traced() -> bool:
    """Whether a compiler or a transform looks on: what depends on sizes then belongs into torch's operators."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


def run(name: str, **arguments: Any) -> Any:
    """Call an operator with its arguments by name.

    In eager mode the dispatcher's way to a formula in Python and back costs more than a small kernel. There the formula is
    applied before the dispatcher is asked, and left out where nothing is recorded (benchmarks/NOTES.md has what both save).
    """
    if is_traced():
        return getattr(operators(), name).default(**arguments)
    kernel, function, names = _OPERATORS[name]
    values = map(arguments.__getitem__, names)
    if torch.is_grad_enabled():
        return function(*values)
    with torch._C._AutoDispatchBelowAutograd():
        return kernel(*values)


def refuse_second_derivative(name: str) -> None:
    """Make differentiating through a backward operator an error instead of a silently wrong number."""

    def refuse(ctx: Any, needs: tuple[bool, ...], *grads: Tensor) -> None:
        raise NotImplementedError(f"cls2det_ops.{name.removesuffix('_backward')} has no second derivative (create_graph=True)")

    register_autograd(name, lambda ctx, arguments, output: None, refuse)


def map_order(map: Tensor) -> torch.memory_format:
    """Channels-last where the images of ``map`` are: what is_channels_last in csrc says."""
    image = map[:1]
    last = image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def map_like(map: Tensor) -> Tensor:
    """A new map in that order, as make_map in csrc gives it."""
    return torch.empty_like(map, memory_format=map_order(map))


def wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def save_row_gradients(tensors: Sequence[str], options: Sequence[str] = ()) -> Callable[..., None]:
    """``save`` of a loss whose second output is d rows / d input: it keeps that output and these tensors, in this order, and
    the other arguments that the backward needs, by name, in ``ctx.options``."""

    def save(ctx: Any, arguments: Any, output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], *[getattr(arguments, name) for name in tensors])
        ctx.options = {name: getattr(arguments, name) for name in options}

    return save


def factor_of_rows(
    function: str, rows: Tensor, normalizer: float | Tensor | None, reduction: str
) -> tuple[float, float | Tensor | None, str]:
    """What kernels multiply the rows of a loss by, and the normalizer and reduction that are left for :func:`reduce_rows`.

    A mean, or a division by a number, is then no launch of its own on a GPU, in either direction. ``rows`` is any argument
    with a row per row of the loss, not yet checked.
    """
    check.choice(function, "reduction", reduction, check.REDUCTIONS)
    if isinstance(normalizer, Tensor) or is_traced():  # a compiled step is to serve any number of rows
        return 1.0, normalizer, reduction
    factor = 1.0
    if normalizer is not None:
        factor = 1 / check.positive(function, "normalizer", normalizer)
    elif reduction == "mean" and isinstance(rows, Tensor) and rows.dim() > 0:
        factor = 1 / max(rows.shape[0], 1)
    return factor, None, "none" if reduction == "none" else "sum"


def reduce_rows(
    function: str, rows: Tensor, weight: Tensor | None, normalizer: float | Tensor | None, reduction: str
) -> Tensor:
    """Weight and reduce the (K,) rows of a loss; see the public losses for what each argument means."""
    check.choice(function, "reduction", reduction, check.REDUCTIONS)
    if weight is not None:
        _check_weight(function, weight, rows)
        weight = check.constant(weight, rows.dtype)
        rows = torch.where(weight == 0, 0, rows * weight)  # a row of weight 0 is out, even if it is NaN
    if reduction == "mean" and normalizer is None and rows.shape[0] > 0:
        return rows.mean()  # one launch on a GPU, and one node of the graph, where sum and division are two
    result = rows if reduction == "none" else rows.sum()
    return result if normalizer is None else result / divisor(function, normalizer, rows.dtype)


def divisor(function: str, normalizer: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """A checked normalizer, as a number or as a scalar of ``dtype``."""
    if not isinstance(normalizer, Tensor):
        return check.positive(function, "normalizer", normalizer)
    if normalizer.numel() != 1:
        raise check.fail(function, "normalizer", "a number or a tensor of one element", f"{normalizer.numel()} elements")
    normalizer = check.constant(normalizer, dtype).reshape(())
    return torch.where(normalizer <= 0, 1, normalizer)  # no positives on any process: a zero, not NaN


def without_weightless(function: str, matched_idxs: Tensor, weight: Tensor | None) -> Tensor:
    """matched_idxs with the rows of weight 0 ignored: in plain PyTorch a NaN there would reach their gradient."""
    if weight is None:
        return matched_idxs
    _check_weight(function, weight, matched_idxs)
    return torch.where(weight == 0, -1, matched_idxs)


def _check_weight(function: str, weight: Tensor, rows: Tensor) -> None:
    check.floating(function, "weight", weight, (rows.shape[0],))
    check.same_device(function, rows=rows, weight=weight)


def register_box_sampling(name: str, map: str, options: Sequence[str]) -> None:
    """Fakes and gradients of an operator that samples boxes from a map, the argument ``map``: (N, C, out_h, out_w).

    Its backward operator has the same ``options`` and gives the gradients to map and boxes.
    """

    @register_fake(name)
    def _(arguments: Any) -> Tensor:
        images: Tensor = getattr(arguments, map)
        return images.new_empty(arguments.boxes.shape[0], images.shape[1], arguments.out_h, arguments.out_w)

    @register_fake(f"{name}_backward")
    def _(arguments: Any) -> tuple[Tensor, Tensor]:
        images, boxes, need_map = getattr(arguments, map), arguments.boxes, getattr(arguments, f"need_{map}")
        return (
            images.new_empty(images.shape if need_map else (0,)),
            boxes.new_empty(boxes.shape if arguments.need_boxes else (0,)),
        )

    def save(ctx: Any, arguments: Any, output: Tensor) -> None:
        ctx.save_for_backward(getattr(arguments, map), arguments.boxes, arguments.image_index)
        ctx.options = {option: getattr(arguments, option) for option in options}

    def backward(ctx: Any, needs: Any, grad: Tensor) -> dict[str, Tensor | None]:
        images, boxes, image_index = ctx.saved_tensors
        need_map, need_boxes = getattr(needs, map), needs.boxes
        sources = {map: images, "boxes": boxes, "image_index": image_index}
        needed = {f"need_{map}": need_map, "need_boxes": need_boxes}
        grad_map, grad_boxes = run(f"{name}_backward", grad=grad, **sources, **ctx.options, **needed)
        return {map: grad_map if need_map else None, "boxes": grad_boxes if need_boxes else None}

    register_autograd(name, save, backward)
    refuse_second_derivative(f"{name}_backward")


@register_fake("scale_rows")
def _(arguments: Any) -> Tensor:
    rows: Tensor = arguments.row_grads
    return rows.new_empty(rows.shape, dtype=arguments.input.dtype)


refuse_second_derivative("scale_rows")
