"""What the benchmarks compute around the times: baselines that compute the same, checks of results, ratios, and their comparison."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import compare as comparison
from instructions import KERNEL

import harness
import limits
from cls2det.distill.classifier import ClassifierSettings
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det_ops import roi_crop
from harness import Contender, Least, Workload, contenders, load, operator_benchmarks, results, warmed_and_checked
from limits import least_work
from memory import one_row
from parts import CROPS, LOSSES, PARTS, STUDENT, Watch
from released import Released
from tables import document, op_table, step_table

BENCHMARKS = Path(harness.__file__).parent


@pytest.mark.parametrize(("padding_mode", "clamp"), [("border", False), ("zeros", True)])
def test_the_recreated_release_crops_as_roi_crop(padding_mode, clamp):
    torch.manual_seed(0)
    teacher = CropClassifier(["a", "b"], crop_size=16)
    settings = ClassifierSettings()
    released = Released(teacher, settings, teacher.classes, teacher.transform, padding_mode=padding_mode, clamp=clamp)
    images, index = torch.rand(2, 3, 40, 60), torch.tensor([0, 0, 1, 1])
    boxes = torch.tensor([[3.3, 4.1, 30.2, 35.7], [-8.4, -3.2, 25.1, 61.3], [40.3, 2.1, 75.2, 20.4], [10.2, 5.3, 12.9, 9.9]])
    outcomes = []
    for crop in (
        lambda boxes: torch.cat(list(released.crops(images, boxes, index))),
        lambda boxes: roi_crop(images, boxes, index, 16, padding_mode=padding_mode, clip=clamp),
    ):
        leaf = boxes.clone().requires_grad_()
        crops = crop(leaf)
        outcomes.append([crops.detach(), *torch.autograd.grad(crops.square().sum(), leaf)])
    for actual, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_parts_add_up_and_backwards_go_to_their_own():
    watch = Watch("cpu")
    watch.one_thread = True
    spin = torch.rand(400, 400)

    def crop(boxes):
        return (boxes @ spin).tanh()

    watched = watch.function(crop, CROPS)
    leaf = torch.rand(400, 400, requires_grad=True)
    assert torch.equal(watched(leaf), crop(leaf)), "a watch that is not running changes nothing"
    watch.start()
    leaf_alias = watch.at_gradient(leaf * 2, STUDENT)
    watch.enter(LOSSES)
    loss = watched(leaf_alias).square().sum()
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


STEP_ROW = {
    "student": "ssd", "images": 2, "size": [30, 40], "ground_truths": 3, "positives": 7, "rounds": 3,
    "contenders": [
        step_row("plain", "", [100.0, 200.0, 100.0], teacher=0, memory=1_000_000_000),
        step_row("as released", "both", [300.0, 500.0, 300.0], teacher=195, memory=3_000_000_000),
        step_row("eager", "both", [150.0, 300.0, 151.0], teacher=45, memory=1_500_000_000),
        step_row("ours", "both", [110.0, 220.0, 110.0], teacher=5, memory=1_040_000_000),
    ],
}  # fmt: skip
OP_ROW = {"op": "an_op", "shape": "s", "pass": "fwd", "ms": {"native": 2.0, "reference": 3.0, "rival": 5.0}, "memory": None}
MACHINE = {"copy_gb_per_s": 10.0, "float32_gflop_per_s": 50.0, "last_cache_mib": 32.0}


def test_ratios_of_training_steps_by_hand():
    head, _plain, *lines = step_table([STEP_ROW])
    ours = dict(zip(head, lines[-1], strict=True))
    assert (ours["tax"], ours["tax by parts"]) == ("10.0 %", "10.0 %"), "each step against the plain one of its round"
    assert (ours["released / this"], ours["eager / this"]) == ("20.00x", "5.00x")
    assert ours["extra memory MB"] == "40"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, {"ratio": "1.5x", "ratio to best": "1.5x", "of the limit": "-"}),
        ({"ms": {"native": 2.0, "reference": 3.0, "rival": 1.0}}, {"ratio to best": "0.5x LOSES"}),
        ({"least": {"bytes": 5_000_000}}, {"of the limit": "25 % copy"}),
        ({"least": {"flops": 70_000_000}}, {"of the limit": "70 % float32"}),
        ({"cold_ms": {"native": 4.0, "reference": 3.0}}, {"cold ms": "4.000", "cold ratio": "0.8x LOSES"}),
        (  # of a GPU, by the other clock
            {"alone_ms": {"native": 8.0, "reference": 12.0, "rival": 4.0}},
            {"ratio": "1.5x", "alone ms": "8.000", "alone ratio": "1.5x", "alone, best": "rival"},
        ),
    ],
)
def test_ratios_of_operators_by_hand(row, expected):
    head, line = op_table([OP_ROW | row], MACHINE)
    cells = dict(reversed(list(zip(head, line, strict=True))))  # the first of those under one title
    cells["ratio to best"] = line[head.index("which") + 1]
    assert cells.items() >= expected.items()


def test_plot_writes_tables_and_pictures(tmp_path):
    from plot import main

    (tmp_path / "cpu.json").write_text(json.dumps({"about": {}, "rows": [OP_ROW], "training_steps": [STEP_ROW]}))
    main([str(tmp_path / "cpu.json"), "--out", str(tmp_path / "out")])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cpu.md", "cpu-operators.png", "cpu-steps.png"}


@pytest.mark.parametrize("name", [path.stem for path in sorted((BENCHMARKS / "results").glob("*-*.json"))])
def test_tables_of_committed_runs_are_made_from_their_numbers(name):
    record = json.loads((BENCHMARKS / f"results/{name}.json").read_text())
    if "rows" in record:
        assert document(record) == (BENCHMARKS / f"results/{name}.md").read_text()


def test_a_gpu_is_timed_by_its_queue(monkeypatch):
    """With events and a sleep that count host operations in place of milliseconds."""
    log = []

    class Event:
        def __init__(self, **_options):
            self.at = None

        def record(self):
            log.append("event")
            self.at = len(log)

        def query(self):
            return "sleep" not in log

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.clear())
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("sleep"))
    workload = Workload(lambda values: log.append("call") or values.sum(), {"values": torch.ones(3)}, ())
    contender = Contender(workload, workload.function, "native", False)
    contender.device = "cuda"
    harness.cycles_per_ms.cache_clear()
    contender.timed(before=lambda: log.append("before"))
    assert log == ["sleep", "before", "event", "call", "event"]
    assert contender.queued == [True]
    assert harness.AHEAD_MARGIN < contender.ahead() <= harness.AHEAD_MOST
    contender.timed_alone()
    assert log == ["event", "call", "event"]
    assert harness.timed_by_all_clocks(contender) == {"ms": 2, "alone_ms": 2}
    assert 5 <= harness.rounds_for({"native": contender}, "cuda") <= 30
    harness.cycles_per_ms.cache_clear()


def test_least_bytes_and_flops_by_hand():
    flops = load(operator_benchmarks()["frozen_stem"]).flops
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
    assert harness.bytes_under(torch.zeros(2, 5, 8, 8), boxes, torch.tensor([0, 0, 1]), 2) == (14 + 9) * 5 * 4

    stem = {"images": torch.rand(1, 3, 8, 8), "weight": torch.zeros(1, 3, 7, 7)}
    place = 2 * 3 * 7 * 7  # flops of each of the 4 x 4 places
    assert flops(False, **stem, bias=torch.ones(1)) == 16 * place
    assert flops(True, **stem, bias=torch.ones(1)) == (16 + 4) * place
    assert flops(True, **stem, bias=-torch.ones(1)) == 16 * place, "ReLU lets no gradient through"


@pytest.mark.parametrize("op", operator_benchmarks())
def test_every_operator_has_a_small_shape_and_least_work(op):
    benchmark = load(operator_benchmarks()[op])
    workload = benchmark.workload(next(name for name in benchmark.SHAPES if name.startswith("small")), "cpu")
    backward = bool(workload.leaves)
    small = one_row(workload)
    results(Contender(small, small.function, "reference", backward))  # the call that warms up before memory is measured
    (work,) = least_work(workload, results(Contender(workload, workload.function, "reference", backward)), backward).values()
    assert work > sum(workload.inputs[name].nbytes for name in workload.leaves)


def test_the_last_cache_is_all_its_instances(tmp_path):
    for cpu, shared in enumerate(("0-1", "0-1", "2")):
        for index, level, size in ((0, "1", "32K"), (3, "3", "2048K")):
            folder = tmp_path / f"cpu{cpu}/cache/index{index}"
            folder.mkdir(parents=True)
            for key, value in {"level": level, "size": size, "shared_cpu_list": shared}.items():
                (folder / key).write_text(value + "\n")
    assert limits.cache_bytes("cpu", tmp_path) == 2 * 2048 * 1024
    assert limits.cache_bytes("cpu", tmp_path / "unknown") == limits.CACHE_BYTES


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
        loss = kd_loss(student, teacher, match, 2.0)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(*(torch.autograd.grad(3 * value, student) for value in (loss, expected)))
    """
    path = os.pathsep.join([str(BENCHMARKS), *sys.path])
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def record(native: float, memory: int = 500_000, device: str = "a processor", op: str = "an_op") -> dict:
    row = {"op": op, "shape": "a shape", "pass": "fwd+bwd", "ms": {"native": native, "reference": 10.0}}
    about = {"device": device, "instructions": "AVX2", "threads": 1}
    return {"about": about, "rows": [row | {"memory": {"native": memory, "reference": 5_000_000}}]}


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """compare(run): exit code and output of compare.py beside the runs in ``compare.folder``."""

    def outcome(run: dict, *arguments: str) -> tuple[int, str]:
        (tmp_path / "now.json").write_text(json.dumps(run))
        monkeypatch.setattr(sys, "argv", ["compare.py", str(tmp_path / "now.json"), *arguments])
        with pytest.raises(SystemExit) as exit:
            comparison.main()
        return exit.value.code, capsys.readouterr().out

    outcome.folder = tmp_path / "results"
    outcome.folder.mkdir()
    monkeypatch.setattr(comparison, "RESULTS", outcome.folder)
    monkeypatch.setattr(comparison, "COUNTS", outcome.folder / "instructions.json")
    return outcome


def commit(compare, name: str, content: dict) -> None:
    (compare.folder / f"{name}.json").write_text(json.dumps(content))


def test_compare_finds_what_became_worse(compare):
    assert compare(record(2.0))[0] == 3, "nothing to compare is not a success"
    commit(compare, "2026-01-01-old", record(1.0))
    commit(compare, "2026-01-02-new", record(2.0))
    commit(compare, "2026-01-03-elsewhere", record(0.1, device="another"))
    assert compare(record(2.2))[0] == 0
    assert compare(record(float("nan")))[0] == 1
    code, output = compare(record(4.0))
    assert code == 1 and "WORSE an_op a shape fwd+bwd: speed: 2.5, was 5" in output
    code, output = compare(record(2.0, memory=2_000_000))
    assert code == 1 and "WORSE an_op a shape fwd+bwd: memory: 2.5, was 10" in output


def test_compare_takes_the_newest_run_that_has_a_figure(compare):
    commit(compare, "2026-01-01-old", record(4.0, op="another"))
    commit(compare, "2026-01-02-new", record(2.0))
    code, output = compare(record(9.0, op="another"))
    assert code == 1 and "WORSE another a shape fwd+bwd: speed: 1.11, was 2.5" in output


def test_compare_keeps_to_runs_on_the_same_kind_of_machine(compare):
    commit(compare, "2026-01-01-a-cpu", record(2.0))
    gpu = record(1.0) | {"about": {"device": "a GPU", "host": "a processor"}}
    assert compare(gpu)[0] == 3
    commit(compare, "2026-01-02-a-gpu", gpu)
    commit(compare, "2026-01-02-a-gpu-check", {"about": {"device": "a GPU"}, "steps": []})
    assert compare(gpu)[0] == 0
    code, output = compare(record(2.0) | {"about": {"device": "a GPU", "host": "another"}})
    assert code == 1 and "WORSE an_op a shape fwd+bwd: speed: 5, was 10" in output
    assert compare(record(2.2))[0] == 0, "the processor's runs are compared with each other"


def test_compare_finds_kernels_that_execute_more(compare, tmp_path):
    commit(compare, "2026-01-01-old", record(2.0))
    commit(compare, "instructions", {"a_kernel": 1000, "gone": 10})
    (tmp_path / "counts.json").write_text(json.dumps({"a_kernel": 1019, "gone": 10}))
    assert compare(record(2.0), "--instructions", str(tmp_path / "counts.json"))[0] == 0
    (tmp_path / "counts.json").write_text(json.dumps({"a_kernel": 1030}))
    code, output = compare(record(2.0), "--instructions", str(tmp_path / "counts.json"))
    assert code == 1 and "WORSE instructions, a_kernel" in output and "WORSE instructions, gone: gone" in output


def test_instruction_counts_are_read_from_callgrind():
    line = (
        "  12,698,136 ( 0.21%)  ???:void cls2det::avx2::stem_images_backward<float>(cls2det::StemBackward<float> const&, long)"
    )
    assert KERNEL.match(line).groups() == ("12,698,136", "stem_images_backward")
    assert not KERNEL.match(line.replace("cls2det::avx2::", "at::"))


def test_the_strongest_mode_of_compile_that_works_is_kept(monkeypatch):
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


@pytest.mark.parametrize("wrong", [lambda values: values.sum() * 1.01, lambda values: values.sum() * float("nan")])
def test_a_contender_with_a_wrong_result_is_not_timed(wrong):
    workload = Workload(lambda values: values.sum(), {"values": torch.ones(3)}, (), {"rival": wrong})
    with pytest.raises(AssertionError, match="rival differs from the reference"):
        warmed_and_checked(contenders(workload, backward=False))
