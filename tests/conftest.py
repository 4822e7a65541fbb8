"""Fixtures that run a test once per back end, and the count of tests on each at the end."""

from __future__ import annotations

import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # for backends and helpers, whatever the import mode

import cls2det_ops
from backends import BACKENDS, Backend

# Small tensors gain nothing from more threads, and a busy machine loses much. test_determinism.py sets its own number.
torch.set_num_threads(1)
torch.backends.cudnn.allow_tf32 = False  # convolutions in float32, whose rounding the tests allow for

FIXTURES = ("backend", "kernel_backend", "emulated_backend", "native_backend")
OUTCOMES: dict[str, Counter[str]] = {name: Counter() for name in BACKENDS}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backends", help="run only the tests on these back ends, such as cpu,emulated")
    parser.addoption("--kills", type=int, default=5, help="how often test_faulty_runs.py kills a training (slow tests)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    names = config.getoption("--backends")
    if not names:
        return
    if unknown := set(names.split(",")) - BACKENDS.keys():
        raise pytest.UsageError(f"--backends takes {', '.join(BACKENDS)}, found {', '.join(unknown)}")

    def is_wanted(item: pytest.Item) -> bool:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        return any(params.get(name) in names.split(",") for name in FIXTURES)

    config.hook.pytest_deselected(items=[item for item in items if not is_wanted(item)])
    items[:] = filter(is_wanted, items)


def pytest_report_header() -> list[str]:
    state = ", ".join(f"{name} ({backend.missing or 'runs'})" for name, backend in BACKENDS.items())
    return [
        f"cls2det_ops {cls2det_ops.__version__} from {cls2det_ops.__file__}",
        f"torch {torch.__version__}, threads {torch.get_num_threads()}, back ends: {state}",
    ]


def _backend_fixture(*names: str):
    @pytest.fixture(params=names)
    def fixture(request: pytest.FixtureRequest) -> Backend:
        chosen = BACKENDS[request.param]
        request.node.user_properties.append(("backend", chosen.name))
        if chosen.missing:
            pytest.skip(f"{chosen.name}: {chosen.missing}")
        return chosen

    return fixture


backend = _backend_fixture(*BACKENDS)
kernel_backend = _backend_fixture("cpu", "emulated", "cuda")  # what plain PyTorch does not promise
emulated_backend = _backend_fixture("emulated")
native_backend = _backend_fixture("cpu", "cuda")  # and what needs the operators themselves: torch.compile, threads


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        for key, name in report.user_properties:
            if key == "backend":
                OUTCOMES[name][report.outcome] += 1


def pytest_terminal_summary(terminalreporter) -> None:
    if not any(OUTCOMES.values()):
        return
    terminalreporter.section("tests on each back end")
    for name, outcomes in OUTCOMES.items():
        counts = ", ".join(
            f"{outcomes[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped") if outcomes[outcome]
        )
        why = f" ({BACKENDS[name].missing})" if BACKENDS[name].missing else ""
        terminalreporter.write_line(f"{name:<10} {counts or 'none'}{why}")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the demo's scenes, as COCO-format data."""
    for module in ("torchvision", "pycocotools", "sklearn", "skimage"):
        pytest.importorskip(module)
    from cls2det.study.scenes import SceneSettings, make_scenes

    return make_scenes(tmp_path_factory.mktemp("data") / "scenes", SceneSettings(train=16, val=5, test=4))


@pytest.fixture(scope="session")
def teacher_weights(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small teacher of those scenes, trained on them."""
    pytest.importorskip("lightning")
    from training_cases import train_teacher

    return train_teacher(scenes, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def old_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of version 0.1, see tests/data/README.md. Not to be written to: copy what a test changes."""
    folder = tmp_path_factory.mktemp("old_runs")
    with tarfile.open(Path(__file__).parent / "data" / "old_runs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder
