"""Teachers of other libraries: what reading them by a frozen graph, by hooks and plainly costs a training step.

`--bench-teachers` chooses whose are timed. With `--benchmark-disable` all run, small: agreement is checked and nothing is timed.
"""

import pytest

from shapes import STEPS
from teachers import CONTESTANTS, TeacherWorkload

LIBRARY = {name: name.split()[0] for name in CONTESTANTS}


def workload(name: str, device: str, small: bool = False) -> TeacherWorkload:
    shape = {key: value for key, value in STEPS["ssd300_vgg16"].items() if key in ("images", "size")}
    return TeacherWorkload(name, device, shape | {"images": 1 if small else 2}, small)


@pytest.mark.parametrize("name", CONTESTANTS)
def test_teacher(bench_teacher, name):
    pytest.importorskip(LIBRARY[name])
    bench_teacher(workload, name)
