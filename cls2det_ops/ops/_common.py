"""What every operator module shares: registration that needs the compiled schemas, and the reduction of rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import _checks as check
from .._library import build_info


def register_fake(name: str) -> Callable:
    """Decorator: the shapes and dtypes of an operator, for torch.compile and export. No-op without compiled schemas."""
    return torch.library.register_fake(f"cls2det::{name}") if build_info else lambda function: function


_FUNCTIONS: dict[str, Callable] = {}  # by operator: the formula of register_autograd as a torch.autograd.Function


def register_autograd(name: str, setup_context: Callable, backward: Callable) -> None:
    """The gradient of an operator, for the dispatcher and for :func:`run`."""
    if not build_info:
        return
    torch.library.register_autograd(f"cls2det::{name}", backward, setup_context=setup_context)
    operator = getattr(torch.ops.cls2det, name).default

    def forward(ctx, *inputs):
        with torch._C._AutoDispatchBelowAutograd():
            output = operator(*inputs)
        setup_context(ctx, inputs, output)
        return output

    formula = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    _FUNCTIONS[name] = type(name, (torch.autograd.Function,), formula).apply


_REDUCED: dict[str, Callable] = {}  # by loss: the same with the sum over its rows and the division


def register_loss(name: str, setup_context: Callable, backward: Callable) -> None:
    """:func:`register_autograd` of an operator whose first or only output is the rows of a loss, for :func:`run_loss` too."""
    register_autograd(name, setup_context, backward)
    if not build_info:
        return
    operator = getattr(torch.ops.cls2det, name).default

    def forward(ctx, *inputs):
        *inputs, number, mean = inputs
        with torch._C._AutoDispatchBelowAutograd():
            output = operator(*inputs)
            rows = output if isinstance(output, Tensor) else output[0]
            ctx.rows, ctx.others = rows.shape[0], 0 if rows is output else len(output) - 1
            ctx.number = max(ctx.rows, 1) if mean else number
            total = rows.mean() if mean and ctx.rows else rows.sum()  # one launch on a GPU where sum and division are two
            total = total if number is None else total / number
        setup_context(ctx, inputs, output)
        return total

    def sum_backward(ctx, grad):
        if grad is not None:
            grad = (grad if ctx.number is None else grad / ctx.number).expand(ctx.rows)
        return (*backward(ctx, grad, *[None] * ctx.others), None, None)

    formula = {"forward": staticmethod(forward), "backward": staticmethod(sum_backward)}
    _REDUCED[name] = type(f"{name}_sum", (torch.autograd.Function,), formula).apply


def run_loss(name: str, arguments: tuple, weight: Tensor | None, normalizer: float | Tensor | None, reduction: str) -> Tensor:
    """Call the operator of a loss and do as :func:`reduce_rows`. Sum and division are nodes of the graph that cost a small loss
    more than its kernel: in eager mode they are part of its own node."""
    if weight is None and reduction != "none" and torch.is_grad_enabled() and _eager():
        check.choice(name, "reduction", reduction, check.REDUCTIONS)
        if normalizer is not None:
            normalizer = divisor(name, normalizer, check.accumulate_dtype(arguments[0].dtype))
        return _REDUCED[name](*arguments, normalizer, normalizer is None and reduction == "mean")
    output = run(name, *arguments)
    return reduce_rows(name, output if isinstance(output, Tensor) else output[0], weight, normalizer, reduction)


def _eager() -> bool:
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active())


def run(name: str, *arguments: object) -> Tensor | tuple[Tensor, ...]:
    """Call an operator. In eager mode the dispatcher's way to a formula in Python and back costs more than a small kernel:
    there the formula is applied before the dispatcher is asked, and left out where nothing is recorded."""
    operator = getattr(torch.ops.cls2det, name).default
    if not _eager():
        return operator(*arguments)
    if torch.is_grad_enabled():
        return _FUNCTIONS[name](*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def refuse_second_derivative(name: str) -> None:
    """Make differentiating through a backward operator an error instead of a silently wrong number."""

    def refuse(ctx: object, *grads: Tensor) -> None:
        raise NotImplementedError(f"cls2det_ops.{name.removesuffix('_backward')} has no second derivative (create_graph=True)")

    register_autograd(name, lambda ctx, inputs, output: None, refuse)


def map_like(map: Tensor) -> Tensor:
    """A new map, channels-last where the images of ``map`` are: what make_map and is_channels_last in csrc/dense_map.h do."""
    image = map[:1]
    last = image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()
    return torch.empty_like(map, memory_format=torch.channels_last if last else torch.contiguous_format)


def wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def save_row_gradients(count: int) -> Callable:
    """setup_context of a loss whose forward left d rows / d input behind as its second output, of the first ``count`` inputs."""

    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], *inputs[:count])
        ctx.arguments = [None if isinstance(value, Tensor) else value for value in inputs]  # tensors are saved above

    return setup_context


def reduce_rows(
    function: str, rows: Tensor, weight: Tensor | None, normalizer: float | Tensor | None, reduction: str
) -> Tensor:
    """Weight and reduce the (K,) rows of a loss; see the public losses for what each argument means."""
    check.choice(function, "reduction", reduction, check.REDUCTIONS)
    if weight is not None:
        _check_weight(function, weight, rows)
        weight = check.constant(weight, rows.dtype)
        rows = torch.where(weight == 0, 0, rows * weight)  # a row of weight 0 is out, even if it is NaN
    if normalizer is not None:
        normalizer = divisor(function, normalizer, rows.dtype)
    elif reduction == "mean":
        normalizer = max(rows.shape[0], 1)
    result = rows if reduction == "none" else rows.sum()
    return result if normalizer is None else result / normalizer


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


def register_box_sampling(name: str) -> None:
    """Fakes and gradients of an operator (map, boxes, image_index, out_h, out_w, *options) -> (N, C, out_h, out_w) with the
    backward operator (grad, map, boxes, image_index, *options, need_map, need_boxes) -> (grad_map, grad_boxes)."""

    @register_fake(name)
    def _(map, boxes, image_index, out_h, out_w, *options):
        return map.new_empty(boxes.shape[0], map.shape[1], out_h, out_w)

    @register_fake(f"{name}_backward")
    def _(grad, map, boxes, image_index, *options):
        need_map, need_boxes = options[-2:]
        return map.new_empty(map.shape if need_map else (0,)), boxes.new_empty(boxes.shape if need_boxes else (0,))

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:3])
        ctx.options = inputs[5:]

    def backward(ctx, grad):
        needed = ctx.needs_input_grad[:2]
        grads = run(f"{name}_backward", grad, *ctx.saved_tensors, *ctx.options, *needed)
        grads = [found if need else None for found, need in zip(grads, needed, strict=True)]
        return (*grads, *[None] * (3 + len(ctx.options)))

    register_autograd(name, setup_context, backward)
    refuse_second_derivative(f"{name}_backward")


@register_fake("scale_rows")
def _(grad_rows: Tensor, row_grads: Tensor, input: Tensor) -> Tensor:
    return row_grads.new_empty(row_grads.shape, dtype=input.dtype)


refuse_second_derivative("scale_rows")
