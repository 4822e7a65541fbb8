"""Two processes with an all-reduced normalizer give the gradients of one process that sees both images."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import cls2det_ops
from cls2det_ops import use_backend
from helpers import assert_close

WORKER = Path(__file__).with_name("ddp_worker.py")


def load_worker():
    spec = importlib.util.spec_from_file_location("ddp_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")
@pytest.mark.parametrize("backend_name", ["reference", "native"])
def test_two_processes_equal_one(tmp_path, backend_name):
    """Also when one of the two, or both, have no positive in a step: no process waits for a gradient that never comes."""
    if backend_name == "native" and cls2det_ops._library.cpu_missing:
        pytest.skip(cls2det_ops._library.cpu_missing)
    env = os.environ | {
        "PYTHONPATH": str(Path(cls2det_ops.__file__).parents[1]), "OMP_NUM_THREADS": "1", "CLS2DET_BACKEND": backend_name,
    }  # fmt: skip
    arguments = [str(tmp_path / "rendezvous"), str(tmp_path / "gradients.pt")]
    workers = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), "2", *arguments], env=env, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [worker.communicate(timeout=120)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert all(worker.returncode == 0 for worker in workers), "\n".join(errors)
    found = torch.load(tmp_path / "gradients.pt")

    worker = load_worker()
    for step, grads in zip(worker.STEPS, found, strict=True):
        student = worker.Student()
        total = torch.tensor(float(sum(worker.POSITIVES[image] for image in step)))
        with use_backend(backend_name):
            sum(worker.loss_of(student, image, total.clamp(min=1)) for image in step).backward()
        for name, expected in worker.gradients(student).items():
            assert_close(grads[name], expected, tolerance=1e-5)
            assert expected.any() == (total > 0)
