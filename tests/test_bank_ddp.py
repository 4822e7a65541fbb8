"""Two processes that train with one bank: each reads the rows of its own boxes, and a step is the mean of their two."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

import cls2det
import ddp_bank
from bank_cases import CLASSES, KD_CLS, data, make, teacher, written
from cls2det.data.augment import get_augmentation
from cls2det.data.dataset import DetectionData
from cls2det.data.loader import collate, mix
from cls2det.distill import ClassifierDistiller, Distillation
from cls2det.models.students import build_student
from cls2det.teachers.bank import Bank
from cls2det.training.detector import DetectorTraining

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")

PYTHONPATH = os.pathsep.join(str(Path(path).parent) for path in (__file__, Path(cls2det.__file__).parent))


@pytest.fixture(scope="module")
def two(data, written, tmp_path_factory):
    """What each of the two recorded."""
    out = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", ddp_bank.__file__]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run([*command, str(data), str(written), str(out)], env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]


def shares(root, step):
    """The batch of each process: of one order of the data, each takes every second picture."""
    opened = DetectionData(root, "train", augment=get_augmentation("ssd"), labelled_only=True, origins=True)
    order = torch.randperm(len(opened), generator=torch.Generator().manual_seed(mix(ddp_bank.SEED, 0, 0))).tolist()
    first = step * ddp_bank.BATCH * 2
    for rank in range(2):
        places = range(first + rank, first + 2 * ddp_bank.BATCH, 2)
        yield collate([opened[order[place], mix(ddp_bank.SEED, 1, place)] for place in places])


def test_each_process_reads_the_rows_of_its_own_boxes(data, written, two):
    bank, everything = Bank(written), []
    for step in range(ddp_bank.STEPS):
        for rank, (_, targets) in enumerate(shares(data, step)):
            ids, rows = two[rank]["reads"][step].values()
            origins = [row for target in targets for row in target["origins"].tolist()]
            assert ids.tolist() == [annotation_id for annotation_id, *_ in origins]
            for found, (annotation_id, draw, _, mirrored) in zip(rows, origins, strict=True):
                place = bank.annotation_ids.tolist().index(annotation_id)
                expected = bank.arrays["logits"][place, draw % bank.views, int(mirrored)]
                assert torch.equal(found, torch.from_numpy(expected).float())
            everything += ids.tolist()
    assert len(set(everything)) == len(everything) > 0, "a box was read twice in one pass over the data"
    assert all(len(process["reads"]) == ddp_bank.STEPS for process in two)


def test_the_gradients_are_the_mean_of_those_of_each_share_in_one_process(data, written, two):
    for step in range(ddp_bank.STEPS):
        first, second = (process["steps"][step] for process in two)
        assert all(torch.equal(value, second["gradients"][name]) for name, value in first["gradients"].items())
        expected, kd_cls = {}, []
        for images, targets in shares(data, step):
            student = build_student("ssd_compact", len(CLASSES))
            student.load_state_dict(first["weights"])
            distiller = ClassifierDistiller(None, KD_CLS, CLASSES, student.get_submodule("transform"), bank=Bank(written))
            training = DetectorTraining(student, CLASSES, distillation=Distillation(student, distiller)).train()
            own, terms = training.losses(images, targets)
            sum([*own.values(), *terms.values()]).backward()
            kd_cls.append(terms["kd_cls"].item())
            for name, value in student.named_parameters():
                if value.grad is not None:
                    expected[name] = expected.get(name, 0) + value.grad / 2
        assert min(kd_cls) > 0.01 and abs(kd_cls[0] - kd_cls[1]) > 1e-3, "the shares do not differ enough to show anything"
        assert expected.keys() == first["gradients"].keys()
        for name, value in expected.items():
            tolerance = 1e-5 * value.abs().max().item() + 1e-7
            torch.testing.assert_close(first["gradients"][name], value, rtol=1e-3, atol=tolerance)


def test_a_bank_under_torchrun_is_refused(data, teacher, tmp_path, monkeypatch):
    """Each of its processes would make the whole of it, into one file."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"starts its processes itself \(--devices\)"):
        make(data, tmp_path / "bank", teacher)
