"""Training steps: what distillation costs beside the plain step, as released, in eager PyTorch, and ours.

`--bench-steps` chooses the students that are timed at their full size; a step on a CPU takes seconds, and there are fifteen
contenders. With `--benchmark-disable` all run, on small images: results are checked and nothing is timed.
"""

import pytest

from shapes import STEPS
from steps import StepWorkload


def workload(student: str, device: str, small: bool = False) -> StepWorkload:
    shape = dict(STEPS[student])
    smaller = shape.pop("small", None)
    if small and smaller is None:
        pytest.skip("another student of its family runs small")
    return StepWorkload(student, device=device, **shape | (smaller if small else {}))


@pytest.mark.parametrize("student", STEPS)
def test_step(bench_step, student):
    bench_step(workload, student)
