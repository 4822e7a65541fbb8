"""Training steps: what distillation costs beside the plain step, as released, in eager PyTorch, and ours.

`--bench-steps` chooses the students that are timed at their full size, `--bench-terms` the terms; a step on a CPU takes seconds,
and there are fifteen contenders. With `--benchmark-disable` all run, on small images: results are checked and nothing is timed.
"""

import pytest

from shapes import STEPS
from steps import StepWorkload


def step_shape(student: str, device: str, small: bool = False) -> dict:
    shape = dict(STEPS[student])
    smaller, on_gpu = shape.pop("small", None), shape.pop("cuda")
    if small and smaller is None:
        pytest.skip("another student of its family runs small")
    return shape | (smaller if small else on_gpu if device == "cuda" else {})


def workload(student: str, device: str, small: bool = False) -> StepWorkload:
    return StepWorkload(student, device=device, **step_shape(student, device, small))


@pytest.mark.parametrize("student", STEPS)
def test_step(bench_step, student):
    bench_step(workload, student)
