"""What the benchmarks compute around the times: a baseline that is what it says, tables, plots."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cls2det.distill.classifier import ClassifierSettings
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det_ops import roi_crop

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))


@pytest.mark.parametrize(("padding_mode", "clamp"), [("border", False), ("zeros", True)])
def test_the_recreated_release_crops_as_roi_crop(padding_mode, clamp):
    from released import Released

    torch.manual_seed(0)
    teacher = CropClassifier(["a", "b"], crop_size=16)
    released = Released(teacher, ClassifierSettings(), teacher.classes, teacher.transform, padding_mode, clamp)
    images, index = torch.rand(2, 3, 40, 60), torch.tensor([0, 0, 1, 1])
    boxes = torch.tensor([[3.3, 4.1, 30.2, 35.7], [-8.4, -3.2, 25.1, 61.3], [40.3, 2.1, 75.2, 20.4], [10.2, 5.3, 12.9, 9.9]])
    results = []
    for crop in (
        lambda boxes: torch.cat(list(released.crops(images, boxes, index))),
        lambda boxes: roi_crop(images, boxes, index, 16, padding_mode=padding_mode, clip=clamp),
    ):
        leaf = boxes.clone().requires_grad_()
        crops = crop(leaf)
        results.append([crops.detach(), *torch.autograd.grad(crops.square().sum(), leaf)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_parts_add_up_and_backwards_go_to_their_own():
    from parts import CROPS, LOSSES, PARTS, STUDENT, Watch

    watch = Watch("cpu")
    watch.one_thread = True
    spin = torch.rand(400, 400)

    def crop(boxes):
        return (boxes @ spin).tanh()

    watched = watch.function(crop, CROPS)
    leaf = torch.rand(400, 400, requires_grad=True)
    assert torch.equal(watched(leaf), crop(leaf)), "a watch that is not running changes nothing"
    watch.start()
    given = watch.at_gradient(leaf * 2, STUDENT)
    watch.enter(LOSSES)
    loss = watched(given).square().sum()
    watch.leave()
    watch.switch(LOSSES)
    loss.backward()
    order = [part for part, _mark in watch._marks]
    wall, cpu = watch.stop()
    assert order == [STUDENT, LOSSES, CROPS, LOSSES, STUDENT, LOSSES, CROPS, LOSSES, STUDENT]
    assert set(wall) == set(cpu) == set(PARTS)
    assert wall[CROPS] > 0
    assert sum(wall.values()) == pytest.approx(1e3 * (watch._marks[-1][1][0] - watch._marks[0][1][0]))


def step_row(implementation, terms, seconds, teacher, memory):
    parts = {"student": 100.0, "crops": 1.0, "teacher on targets": teacher, "teacher on predictions": 3.0, "losses": 1.0}
    return {"implementation": implementation, "terms": terms, "ms": seconds, "cpu_ms": seconds, "parts_ms": parts,
            "parts_cpu_ms": parts if terms == "both" else {}, "memory": memory}  # fmt: skip


def test_tax_is_of_the_same_round_and_everything_is_written(tmp_path):
    from plot import main

    from tables import step_table

    contenders = [
        step_row("plain", "", [100.0, 200.0, 100.0], 0, 1_000_000_000),
        step_row("as released", "both", [300.0, 500.0, 300.0], 195, 3_000_000_000),
        step_row("eager", "both", [150.0, 300.0, 151.0], 45, 1_500_000_000),
        step_row("ours", "both", [110.0, 220.0, 110.0], 5, 1_040_000_000),
    ]
    row = {
        "student": "ssd",
        "images": 2,
        "size": [30, 40],
        "ground_truths": 3,
        "positives": 7,
        "rounds": 3,
        "contenders": contenders,
    }
    head, _plain, *lines = step_table([row])
    ours = dict(zip(head, lines[-1], strict=True))
    assert (ours["tax"], ours["tax by parts"]) == ("10.0 %", "10.0 %")
    assert (ours["released / this"], ours["eager / this"]) == ("20.00x", "5.00x")
    assert ours["extra memory MB"] == "40"
    ops = [
        {"op": "roi_crop", "shape": "s", "pass": "fwd", "ms": {"native": 1.0, "reference": 3.0, "other": 0.5}, "memory": None}
    ]
    (tmp_path / "cpu.json").write_text(json.dumps({"about": {"device": "a"}, "rows": ops, "training_steps": [row]}))
    main([str(tmp_path / "cpu.json"), "--out", str(tmp_path / "out")])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cpu.md", "cpu-operators.png", "cpu-steps.png"}
    text = (tmp_path / "out/cpu.md").read_text()
    assert "0.5x LOSES" in text
    assert "20.00x" in text


OP_ROW = {"op": "an_op", "shape": "s", "pass": "fwd", "ms": {"native": 2.0, "reference": 3.0}, "memory": None}
MACHINE = {"copy_gb_per_s": 10.0, "float32_gflop_per_s": 50.0, "last_cache_mib": 32.0}


def test_share_of_the_limit_and_cold_times_are_in_the_tables_of_runs_that_have_them():
    from tables import document, op_table

    rows = [
        OP_ROW | {"least": {"bytes": 5_000_000}, "cold_ms": {"native": 4.0, "reference": 3.0}},
        OP_ROW | {"least": {"flops": 70_000_000}, "cold_ms": {"native": 4.0, "reference": 30.0}},
        OP_ROW | {"least": {"bytes": 100}, "cold_ms": None},
        OP_ROW,  # of a run from before there were limits
    ]
    record = json.loads(json.dumps({"about": {"device": "a"}, "machine": MACHINE, "rows": rows}))
    head, *lines = op_table(record["rows"], record["machine"])
    new = [dict(zip(head, line, strict=True)) for line in lines]
    assert [line["of the limit"] for line in new] == ["25 % copy", "70 % float32", "< 1 % copy", "-"]
    assert [(line["cold ms"], line["cold ratio"]) for line in new[:3]] == [
        ("4.000", "0.8x LOSES"),
        ("4.000", "7.5x"),
        ("", ""),
    ]
    text = document(record)
    assert text.startswith("device a, copy bandwidth 10.0 GB/s, matrix product 50 GFLOP/s in float32, last cache 32 MiB\n")
    assert "25 % copy" in text and "can exceed 100 %" in text
    del record["machine"]
    assert "% copy" not in document(record)


def test_two_clocks_are_in_the_tables_of_a_gpu_only():
    from tables import document, op_table

    slow = {"native": 8.0, "reference": 12.0, "other": 4.0}
    row = OP_ROW | {"ms": {"native": 2.0, "reference": 3.0, "other": 5.0}, "least": {"bytes": 5_000_000}}
    head, first, second = op_table([row | {"alone_ms": slow}, row], MACHINE)
    assert head[4:6] == ["reference ms", "ratio"] and first[5] == "1.5x", "by the queue"
    assert head[-6:] == ["alone ms", "alone ratio", "alone, best", "ratio", "memory MB", "ratio"]
    assert first[-6:-2] == ["8.000", "1.5x", "other", "0.5x LOSES"] and second[-6:-2] == [""] * 4
    assert first[head.index("of the limit")] == "25 % copy", "of the queue's time"
    gpu, cpu = (document({"about": {"device": "a"}, "rows": rows}) for rows in ([row | {"alone_ms": slow}], [row]))
    assert "Two clocks" in gpu and "Two clocks" not in cpu and "alone" not in cpu


@pytest.mark.parametrize("name", [path.stem for path in sorted((BENCHMARKS / "results").glob("*-*.json"))])
def test_tables_of_committed_runs_are_made_from_their_numbers(name):
    from tables import document

    record = json.loads((BENCHMARKS / f"results/{name}.json").read_text())
    if "rows" in record:
        assert document(record) == (BENCHMARKS / f"results/{name}.md").read_text()


def test_a_gpu_is_timed_by_its_queue(monkeypatch):
    """With events and a sleep that count host operations in place of milliseconds."""
    import harness
    from harness import Contender, Workload, rounds_for, timed_by_all_clocks

    done = []

    class Event:
        def __init__(self, enable_timing):
            self.at = None

        def record(self):
            done.append("event")
            self.at = len(done)

        def query(self):
            return "sleep" not in done

        def synchronize(self):
            pass

        def elapsed_time(self, other):
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.clear())
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append("sleep"))
    workload = Workload(lambda values: done.append("call") or values.sum(), {"values": torch.ones(3)}, ())
    contender = Contender(workload, workload.function, "native", False)
    contender.device = "cuda"
    harness.cycles_per_ms.cache_clear()
    contender.timed(before=lambda: done.append("before"))
    assert done == ["sleep", "before", "event", "call", "event"]
    assert contender.queued == [True]
    assert harness.AHEAD_MARGIN < contender.ahead() <= harness.AHEAD_MOST
    contender.timed_alone()
    assert done == ["event", "call", "event"]
    assert timed_by_all_clocks(contender) == {"ms": 2, "alone_ms": 2}
    assert 5 <= rounds_for({"native": contender}, "cuda") <= 30
    harness.cycles_per_ms.cache_clear()


def test_training_steps_of_a_gpu_have_more_images():
    from test_bench_step import step_shape

    from shapes import STEPS

    images = {student: [step_shape(student, device)["images"] for device in ("cpu", "cuda")] for student in STEPS}
    assert images == {
        "ssd300_vgg16": [4, 32], "ssd512_vgg16": [2, 16], "fasterrcnn_qr50_fpn": [1, 8], "fasterrcnn_resnet50_fpn": [1, 4],
        "retinanet_resnet50_fpn": [1, 4],
    }  # fmt: skip
    small = {"images": 1, "size": (300, 300), "crop": 32}
    assert step_shape("ssd300_vgg16", "cuda", small=True) == step_shape("ssd300_vgg16", "cpu", small=True) == small


@pytest.mark.parametrize(
    ("given", "terms"),
    [("all", ["KD-cls", "KD-loc", "both"]), ("both,KD-loc", ["KD-loc", "both"]), ("KD-cls", ["KD-cls", "both"]), ("KD", None)],
)
def test_terms_of_the_timed_steps(given, terms):
    spec = importlib.util.spec_from_file_location("bench_conftest", BENCHMARKS / "conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    config = SimpleNamespace(getoption={"--bench-terms": given}.get)
    if terms is None:
        with pytest.raises(pytest.UsageError, match="no terms KD; there are KD-cls, KD-loc, both"):
            conftest.terms_of(config)
    else:
        assert conftest.terms_of(config) == terms


def test_memory_is_measured_of_the_contenders_that_were_timed():
    from steps import StepWorkload

    built = object.__new__(StepWorkload)
    built.built = {"plain": SimpleNamespace(run=1), "ours, both": SimpleNamespace(run=2)}
    assert built.runs() == {"plain": 1, "ours, both": 2}


def test_least_bytes_and_flops_by_hand():
    from test_bench_frozen_stem import flops

    from harness import Least, Workload, bytes_under
    from limits import least_work

    inputs = {"student": torch.zeros(2, 4), "teacher": torch.zeros(2, 3), "match": torch.zeros(2, dtype=torch.int64)}
    read = 4 * 8 + 4 * 6 + 8 * 2
    output, gradient = torch.zeros(5), torch.zeros(2, 4)

    def bytes_of(least: Least, *results: torch.Tensor) -> int:
        return least_work(Workload(torch.add, inputs, ("student",), least=least), results, len(results) > 1)["bytes"]

    assert bytes_of(Least(), output) == read + 20
    assert bytes_of(Least(), output, gradient) == 2 * (read + 20) + 32
    assert bytes_of(Least(reread=("match",)), output, gradient) == read + 2 * 20 + 32 + 16
    assert bytes_of(Least(lambda: {"teacher": 8}), output, gradient) == 2 * (read - 24 + 8 + 20) + 32

    boxes = torch.tensor([[2.5, 2.5, 4.5, 4.5], [3.5, 3.5, 5.5, 5.5], [3.5, 3.5, 5.5, 5.5]])  # 3 x 3 positions each, 4 shared
    assert bytes_under(torch.zeros(2, 5, 8, 8), boxes, torch.tensor([0, 0, 1]), 2) == (14 + 9) * 5 * 4

    stem = {"images": torch.rand(1, 3, 8, 8), "weight": torch.zeros(1, 3, 7, 7)}
    each = 2 * 3 * 7 * 7  # of the 4 x 4 places
    assert flops(False, **stem, bias=torch.ones(1)) == 16 * each
    assert flops(True, **stem, bias=torch.ones(1)) == (16 + 4) * each
    assert flops(True, **stem, bias=-torch.ones(1)) == 16 * each, "ReLU lets no gradient through"


@pytest.mark.parametrize("op", sorted(path.stem.removeprefix("test_bench_") for path in BENCHMARKS.glob("test_bench_*_*.py")))
def test_every_operator_has_a_small_shape_and_least_work(op):
    import shapes
    from harness import Contender, results
    from limits import least_work
    from memory import load_workload

    name = next(name for name in getattr(shapes, op.upper()) if name.startswith("small"))
    workload = load_workload(str(BENCHMARKS / f"test_bench_{op}.py"), name, "cpu")
    assert "triton" not in workload.baselines
    backward = bool(workload.leaves)
    (work,) = least_work(workload, results(Contender(workload, workload.function, "reference", backward)), backward).values()
    assert work > sum(workload.inputs[name].nbytes for name in workload.leaves)


def test_cold_calls_and_the_machine_limits(tmp_path, monkeypatch):
    import limits
    from harness import Contender, Workload

    for cpu, shared in enumerate(("0-1", "0-1", "2")):
        for index, level, size in ((0, "1", "32K"), (3, "3", "2048K")):
            folder = tmp_path / f"cpu{cpu}/cache/index{index}"
            folder.mkdir(parents=True)
            for key, value in {"level": level, "size": size, "shared_cpu_list": shared}.items():
                (folder / key).write_text(value + "\n")
    assert limits.cache_bytes("cpu", tmp_path) == 2 * 2048 * 1024
    assert limits.cache_bytes("cpu", tmp_path / "unknown") == limits.CACHE_BYTES

    monkeypatch.setattr(limits, "cache_bytes", lambda device: 2**20)
    monkeypatch.setattr(limits, "COPIED_BYTES", 2**20)
    monkeypatch.setattr(limits, "SIDE", {"cpu": 64})
    assert all(value > 0 for value in limits.machine_limits("cpu").values())
    calls = []
    workload = Workload(lambda values: calls.append(1) or values.sum(), {"values": torch.ones(3)}, ())
    monkeypatch.setattr(limits, "COLD_SECONDS", 0)
    medians = limits.cold_medians({"native": Contender(workload, workload.function, "reference", False)}, "cpu")
    assert medians["native"] > 0
    assert len(calls) == limits.COLD_ROUNDS[0]


def test_triton_kernel_is_the_same_loss():
    pytest.importorskip("triton")
    code = """if True:
        import torch
        from cls2det_ops import kd_softmax_loss, use_backend
        from triton_kd import kd_loss

        torch.manual_seed(0)
        student, teacher, match = torch.randn(7, 21).requires_grad_(), torch.randn(3, 20), torch.randint(3, (7,))
        with use_backend("reference"):
            expected = kd_softmax_loss(student, teacher, match, 2.0, "first")
        found = kd_loss(student, teacher, match, 2.0)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(3 * loss, student) for loss in (found, expected)))
    """
    path = os.pathsep.join([str(BENCHMARKS), *sys.path])
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def record(native: float, memory: int = 500_000, device: str = "a processor") -> dict:
    row = {"op": "an_op", "shape": "a shape", "pass": "fwd+bwd", "ms": {"native": native, "reference": 10.0}}
    about = {"device": device, "instructions": "AVX2", "threads": 1}
    return {"about": about, "rows": [row | {"memory": {"native": memory, "reference": 5_000_000}}]}


def test_compare_finds_what_became_worse(tmp_path, monkeypatch, capsys):
    import compare

    def outcome(now: dict) -> tuple[int, str]:
        (tmp_path / "now.json").write_text(json.dumps(now))
        monkeypatch.setattr(sys, "argv", ["compare.py", str(tmp_path / "now.json")])
        with pytest.raises(SystemExit) as exit:
            compare.main()
        return exit.value.code, capsys.readouterr().out

    results = tmp_path / "results"
    results.mkdir()
    monkeypatch.setattr(compare, "RESULTS", results)
    assert outcome(record(2.0))[0] == 3, "nothing to compare is not a success"
    (results / "2026-01-01-old.json").write_text(json.dumps(record(1.0)))
    (results / "2026-01-02-new.json").write_text(json.dumps(record(2.0)))
    (results / "2026-01-03-other.json").write_text(json.dumps(record(0.1, device="another")))
    assert outcome(record(2.2)) == (0, outcome(record(2.2))[1])
    newer = record(2.2) | {"machine": MACHINE}
    newer["rows"][0] |= {"least": {"bytes": 1}, "cold_ms": {"native": 1.0, "reference": 2.0}}
    assert outcome(newer)[0] == 0, "committed runs from before there were limits"
    code, said = outcome(record(4.0))
    assert code == 1 and "WORSE an_op a shape fwd+bwd: speed: 2.5, was 5" in said
    code, said = outcome(record(2.0, memory=2_000_000))
    assert code == 1 and "WORSE an_op a shape fwd+bwd: memory: 2.5, was 10" in said
    assert outcome(record(float("nan")))[0] == 1
    gpu = record(1.0) | {"about": {"device": "a GPU", "host": "a processor"}}
    gpu["rows"][0]["alone_ms"] = {"native": 5.0, "reference": 20.0}
    assert outcome(gpu)[0] == 3, "no committed run on a GPU"
    (results / "2026-01-04-a-gpu.json").write_text(json.dumps(gpu))
    (results / "2026-01-04-a-gpu-check.json").write_text(json.dumps({"about": {"device": "a GPU"}, "steps": []}))
    assert outcome(gpu)[0] == 0
    slower = record(2.0) | {"about": gpu["about"] | {"host": "another"}}
    code, said = outcome(slower)
    assert code == 1 and "WORSE an_op a shape fwd+bwd: speed: 5, was 10" in said
    assert outcome(record(2.2))[0] == 0, "the processor is held against its own runs"
    older = record(4.0)
    older["rows"][0]["op"] = "another"  # which the newest run has not measured
    (results / "2026-01-01-others.json").write_text(json.dumps(older))
    code, said = outcome(older | {"rows": [older["rows"][0] | {"ms": {"native": 9.0, "reference": 10.0}}]})
    assert code == 1 and "WORSE another a shape fwd+bwd: speed: 1.11, was 2.5" in said


def test_instruction_counts_are_read_from_callgrind():
    from instructions import KERNEL, first_shape

    line = (
        "  12,698,136 ( 0.21%)  ???:void cls2det::avx2::stem_images_backward<float>(cls2det::StemBackward<float> const&, long)"
    )
    assert KERNEL.match(line).groups() == ("12,698,136", "stem_images_backward")
    assert not KERNEL.match(line.replace("cls2det::avx2::", "at::"))
    assert first_shape(BENCHMARKS / "test_bench_roi_crop.py") == "ssd300 3x300x300 K480 S112"


def test_the_strongest_mode_of_compile_that_works_is_kept(monkeypatch):
    import harness
    from harness import Workload, contenders, warmed_and_checked

    def compiled(function, mode):
        def run(**inputs):
            if mode == "first":
                raise RuntimeError("it does not work here")
            return function(**inputs)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(harness, "COMPILE_MODES", {"cpu": ("first", "second", None)})
    twin = {"twin": lambda values: values.sum()}
    workload = Workload(lambda values: values.sum(), {"values": torch.ones(3)}, (), twin, compile=True)
    with pytest.warns(UserWarning, match=r"compiled \(first\) is left out"):
        kept = warmed_and_checked(contenders(workload, backward=False))
    assert list(kept) == ["native", "reference", "twin", "reference, compiled (second)", "twin, compiled (second)"]
