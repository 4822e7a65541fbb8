"""Two processes with an all-reduced normalizer give the loss and gradients of one process that sees both images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import cls2det_ops
import ddp_worker
from cls2det_ops import use_backend
from helpers import assert_close
from op_cases import DIFFERENTIABLE_OPS

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")


@pytest.fixture(scope="module", params=["reference", "native"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """What the two processes found; while the test runs, this one uses the same back end."""
    if request.param == "native" and cls2det_ops._library.cpu_missing:
        pytest.skip(cls2det_ops._library.cpu_missing)
    folder = tmp_path_factory.mktemp("ddp")
    env = os.environ | {
        "PYTHONPATH": str(Path(cls2det_ops.__file__).parents[1]), "OMP_NUM_THREADS": "1", "CLS2DET_BACKEND": request.param,
    }  # fmt: skip
    arguments = [str(folder / "rendezvous"), str(folder / "found.pt")]
    workers = [
        subprocess.Popen(
            [sys.executable, ddp_worker.__file__, str(rank), *arguments], env=env, stderr=subprocess.PIPE, text=True
        )
        for rank in range(ddp_worker.WORLD)
    ]
    try:
        errors = [worker.communicate(timeout=120)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert all(worker.returncode == 0 for worker in workers), "\n".join(errors)
    with use_backend(request.param):
        yield torch.load(arguments[1], weights_only=True)


@pytest.mark.parametrize("name", DIFFERENTIABLE_OPS)
def test_every_operator(results, name):
    loss, grads = results[name]
    expected, expected_grads = ddp_worker.op_results(name, None)
    assert expected > 0
    assert_close(loss, expected, tolerance=1e-5)
    for argument, grad in expected_grads.items():
        assert grad.any()
        assert_close(grads[argument], grad, tolerance=1e-5)


@pytest.mark.parametrize("index", range(len(ddp_worker.STEPS)))
def test_steps_of_a_detector(results, index):
    """Also when one of the two, or both, have no positive in a step: no process waits for a gradient that never comes."""
    step = ddp_worker.STEPS[index]
    student = ddp_worker.Student()
    total = torch.tensor(float(sum(ddp_worker.POSITIVES[image] for image in step)))
    sum(ddp_worker.loss_of(student, image, total.clamp(min=1)) for image in step).backward()
    for name, expected in ddp_worker.gradients(student).items():
        assert_close(results["steps"][index][name], expected, tolerance=1e-5)
        assert expected.any() == (total > 0)
