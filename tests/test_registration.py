"""Every registered operator passes torch's opcheck; every public one has a reference, a test file and a benchmark."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

import cls2det_ops
from cls2det_ops import _library, reference
from helpers import BOX_ARGUMENTS
from op_cases import DIFFERENTIABLE_OPS, PUBLIC_OPS, make_case

WITHOUT_GRADIENT = set(PUBLIC_OPS) - set(DIFFERENTIABLE_OPS)
COMPOSITES = {"roi_kd_loss"}  # made of public operators: their references are its reference
ROOT = Path(__file__).parents[1]
BOXES = (True, False)  # border, clip


def sample(name: str, dtype: torch.dtype, device: str) -> list[tuple]:
    """Positional arguments for one call with gradients wanted and one without, by the schemas of csrc/library.cpp."""
    acc = torch.float64 if dtype == torch.float64 else torch.float32

    def tensors(case_name: str, *arguments: str, grad: bool) -> list[torch.Tensor]:
        case = make_case(case_name)
        found = []
        for argument in arguments:
            value = case.tensors[argument].to(device)
            if value.is_floating_point():
                value = value.to(acc if argument in BOX_ARGUMENTS else dtype)
            found.append(value.requires_grad_(grad and argument in case.gradients))
        return found

    def zeros(*shape: int, like: torch.dtype = acc) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, like)

    feature_loss = ("features", "boxes", "image_index", "features", "target_boxes", "target_image_index", "matched_idxs")
    crop, pool = ("images", "boxes", "image_index"), ("features", "boxes", "image_index")
    matched = ("features", "target_features", "matched_idxs")
    maps, masks = ("student", "teacher"), ("mask", "channel_mask")
    logits = ("student_logits", "teacher_logits", "matched_idxs")
    calls = {
        "roi_crop": lambda g: (*tensors(name, *crop, grad=g), 3, 4, *BOXES),
        "roi_crop_backward": lambda g: (zeros(9, 5, 3, 4, like=dtype), *tensors("roi_crop", *crop, grad=False), *BOXES, g, True),
        "roi_avg_pool": lambda g: (*tensors(name, *pool, grad=g), 3, 2, 6, 6, 0.5, *BOXES),
        "roi_avg_pool_backward": lambda g: (
            zeros(9, 5, 3, 2, like=dtype), *tensors("roi_avg_pool", *pool, grad=False), 6, 6, 0.5, *BOXES, True, g,
        ),
        "roi_feature_loss": lambda g: (
            *tensors(name, *feature_loss[:3], grad=g), *tensors(name, *feature_loss[3:], grad=False),
            3, 2, 6, 6, 0.5, 0.5, *BOXES, 0, 1.0, g,
        ),
        "roi_feature_loss_backward": lambda g: (
            zeros(9), *tensors("roi_feature_loss", *feature_loss, grad=False), 3, 2, 6, 6, 0.5, 0.5, *BOXES, 2, 0.5,
        ),
        "matched_feature_loss": lambda g: (*tensors(name, *matched, grad=g), 3, 2, 1, 1.0, g),
        "matched_feature_loss_backward": lambda g: (
            zeros(9), zeros(9, 5, 3, 2), *tensors("matched_feature_loss", "features", grad=False),
        ),
        "masked_feature_loss": lambda g: (*tensors(name, *maps, grad=g), *tensors(name, *masks, grad=False)),
        "masked_feature_loss_backward": lambda g: (
            zeros(9), *tensors("masked_feature_loss", *maps, *masks[:1], grad=False), None, True, g,
        ),
        "attention_means": lambda g: (*tensors(name, "features", grad=g), g),
        "attention_means_backward": lambda g: (
            zeros(9, 11, 14), zeros(9, 5), *tensors("attention_means", "features", grad=False), g,
        ),
        "frozen_stem": lambda g: (*tensors(name, "images", grad=g), *tensors(name, "weight", "bias", grad=False), 2, 1, g),
        "frozen_stem_backward": lambda g: (
            zeros(9, 5, 3, 4, like=dtype), torch.full((9, 5, 3, 4), 4, dtype=torch.uint8, device=device),
            *tensors("frozen_stem", "weight", grad=False), 11, 14, 2, 1,
        ),
        "imitation_mask": lambda g: (*tensors(name, "anchors", "boxes", "image_index", grad=False), 2, [430, 250, 20], 0.5, 2),
        "kd_softmax_loss": lambda g: (*tensors(name, *logits, grad=g), 2.0, 1, g),
        "kd_sigmoid_loss": lambda g: (*tensors(name, *logits, grad=g), 2.0, int(g), 0, g),
        "scale_rows": lambda g: (zeros(9), zeros(9, 6, like=dtype), zeros(9, 6, like=dtype)),
    }  # fmt: skip
    return [calls[name](wanted) for wanted in (True, False)]


def registered() -> list[str]:
    names = {
        name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("cls2det::")
    }
    return sorted(names)


OPERATORS = registered() or ["none: the extension is not built"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(native_backend, name, dtype):
    """Schema (no aliasing, no hidden mutation), fake kernel, autograd registration, and AOT dispatch of each operator."""
    pytest.importorskip("expecttest")  # torch's opcheck needs it
    for arguments in sample(name, dtype, native_backend.device):
        torch.library.opcheck(getattr(torch.ops.cls2det, name).default, arguments)


@pytest.mark.parametrize("name", OPERATORS)
def test_kernels_of_every_dispatch_key(native_backend, name):
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has(f"cls2det::{name}", native_backend.device.upper())
    assert torch._library.simple_registry.singleton.find(f"cls2det::{name}").fake_impl.kernel is not None, "no fake kernel"
    if name not in WITHOUT_GRADIENT:
        assert has(f"cls2det::{name}", "Autograd"), "no autograd formula: gradients would be silently missing or wrong"


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_native_call_reaches_the_kernels_and_reference_call_does_not(native_backend, name):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: set[str] = set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.add(str(function))
            return function(*args, **(kwargs or {}))

    case = make_case(name)
    tensors = {key: value.to(native_backend.device) for key, value in case.tensors.items()}
    with native_backend.context(), Seen() as seen:
        case.function(**tensors, **case.options)
    assert any("cls2det" in found for found in seen.names)
    with cls2det_ops.use_backend("reference"), Seen() as seen:
        case.function(**tensors, **case.options)
    assert not any("cls2det" in found for found in seen.names)


@pytest.mark.parametrize("name", DIFFERENTIABLE_OPS)
@pytest.mark.filterwarnings("ignore")
def test_a_trace_holds_the_operator(native_backend, name):
    """The short way of eager calls must not show in a TorchScript trace, where it would be a Python function."""
    case = make_case(name)
    tensors = [value.to(native_backend.device).requires_grad_(key in case.gradients) for key, value in case.tensors.items()]

    def function(*values: torch.Tensor) -> torch.Tensor:
        return case.function(**dict(zip(case.tensors, values, strict=True)), **case.options)

    with native_backend.context():
        graph = str(torch.jit.trace(function, tuple(tensors), check_trace=False).graph)
    assert "cls2det::" in graph and "^" not in graph


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_public_operator_has_reference_test_and_benchmark(name):
    assert name in COMPOSITES or inspect.isfunction(getattr(reference, name, None)), f"reference.py lacks {name}"
    assert (ROOT / "tests" / f"test_{name}.py").is_file()
    assert (ROOT / "benchmarks" / f"test_bench_{name}.py").is_file()
    assert not name.startswith("_") and getattr(cls2det_ops, name).__module__ == f"cls2det_ops.ops.{name}"


@pytest.mark.parametrize("name", PUBLIC_OPS)
def test_public_docstring_tells_what_a_user_needs(name):
    function = getattr(cls2det_ops, name)
    text = inspect.getdoc(function)
    for needed in ("Args:", "Returns:", "Gradients flow to", "Raises:", ".. math::"):
        assert needed in text or needed.rstrip(":") + ": " in text, f"the docstring of {name} lacks {needed}"
    for argument in inspect.signature(function).parameters:
        assert argument in text, f"the docstring of {name} does not mention {argument}"


def test_every_registered_operator_belongs_to_a_public_one():
    if _library.cpu_missing:
        pytest.skip(_library.cpu_missing)
    for name in registered():
        assert name.removesuffix("_backward") in [*PUBLIC_OPS, "scale_rows"], f"{name} has no public function"
