"""What distillation adds to whole steps, by pairs that alternate: python benchmarks/pairs.py ssd_compact --pairs 200

A step is forward, backward and optimizer. A pair is a plain step and a distilled one, whichever comes first in turn; what is
printed is the mean of their differences, without the tenth that is largest and the tenth that is smallest, with its standard
error, as a share of the plain step's median. On a CPU the clock is the process's own, which other work moves little; on a GPU it
is the host's, from an idle GPU to the last kernel. Detector, batch and teacher are those of steps.py.

Whole steps of a large detector vary by more than a bank adds. So the last column has what the distiller alone takes after the
detector's forward: positives, terms, and their gradients at the head's outputs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cls2det.data.origins import make_origins
from cls2det.distill.classifier import ClassifierDistiller
from cls2det.settings import ClassifierSettings
from cls2det.teachers import bank_file
from cls2det.teachers.bank import Bank
from shapes import SMALL_STUDENTS, STEPS, TERMS
from steps import CLASSES, SETTINGS, StepWorkload

BOXES = 10_000  # of the bank
MAP_MODE = {"feature_mode": "map", "loc_weight": 0.0}
CONTENDERS: dict[str, tuple[bool, dict[str, Any]]] = {  # whether a bank serves KD-cls, and settings
    "bank: KD-cls": (True, TERMS["KD-cls"]),
    "bank: KD-cls, and KD-loc by map": (True, MAP_MODE),
    "live: KD-cls": (False, TERMS["KD-cls"]),
    "live: all, exact": (False, {}),
}


def make_bank(path: Path) -> Bank:
    """Random logits of ``BOXES`` boxes as they are and mirrored, in four views."""
    shapes = {"annotation_ids": ("I64", (BOXES,)), "labels": ("I64", (BOXES,)), "logits": ("F16", (BOXES, 4, 2, len(CLASSES)))}

    def fill(arrays: dict[str, Any]) -> None:
        arrays["annotation_ids"][:] = range(1, BOXES + 1)
        arrays["logits"][:] = torch.randn(arrays["logits"].shape).numpy()

    about = {"classes": CLASSES, "views": 4, "flip": True}
    bank_file.begin(path, about, shapes, 1, fill)
    bank_file.Part(path, 1).finish(about)
    return Bank(path, check=False)


class Pair:
    """A plain step and a distilled one of the same detector, from the same random state."""

    def __init__(self, workload: StepWorkload, bank: Bank | None, settings: dict[str, Any]):
        chosen = ClassifierSettings(**SETTINGS | settings)
        teacher = workload.teacher if bank is None or chosen.kd_loc_weight else None
        self.workload = workload
        self.distiller = ClassifierDistiller(teacher, chosen, CLASSES, workload.detector.transform, bank=bank)
        self.distiller.to(torch.device(workload.device))
        self.optimizer = torch.optim.SGD(workload.detector.parameters(), lr=1e-9, momentum=0.9)

    def plain(self) -> None:
        self._step(self.workload.detector(*self.workload.batch))

    def distilled(self) -> None:
        with self.workload.tap as tap:
            losses = self.workload.detector(*self.workload.batch)
        self._step(losses | self.distiller(tap.student_outputs.positives))

    def _step(self, terms: dict[str, Tensor]) -> None:
        self.optimizer.zero_grad()
        cast(Tensor, sum(terms.values())).backward()
        self.optimizer.step()

    def seconds(self, step: Callable[[], None]) -> float:
        torch.manual_seed(0)  # of proposals that are sampled
        if self.workload.device == "cpu":
            start = time.process_time()
            step()
            return time.process_time() - start
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def alone(self, rounds: int = 30) -> float:
        """Median seconds of the distiller: positives, terms, and their gradients at the head's outputs."""
        with self.workload.tap as tap:
            self.workload.detector(*self.workload.batch)

        def distill() -> None:
            terms = self.distiller(tap.student_outputs.positives)
            torch.autograd.grad(cast(Tensor, sum(terms.values())), tap.outputs, retain_graph=True, allow_unused=True)

        distill()
        return statistics.median(self.seconds(distill) for _ in range(rounds))

    def measure(self, pairs: int) -> tuple[float, float, float]:
        """Seconds of the plain step; the share that distillation adds, and its standard error."""
        for step in 2 * (self.plain, self.distilled):
            step()
        plain, added = [], []
        for number in range(pairs):
            order = (self.plain, self.distilled) if number % 2 else (self.distilled, self.plain)
            times = {step: self.seconds(step) for step in order}
            plain.append(times[self.plain])
            added.append(times[self.distilled] - times[self.plain])
        cut = pairs // 10
        added = sorted(added)[cut : pairs - cut]
        whole = statistics.median(plain)
        return whole, statistics.fmean(added) / whole, statistics.stdev(added) / len(added) ** 0.5 / whole


def workload_of(student: str, device: str) -> StepWorkload:
    shape = {**STEPS, **SMALL_STUDENTS}[student]
    shape = {key: value for key, value in shape.items() if key not in ("small", "cuda")} | (
        shape["cuda"] if device == "cuda" else {}
    )
    workload = StepWorkload(student, device=device, **shape)
    first = 1
    for target in workload.batch[1]:
        count = len(target["boxes"])
        cast(dict[str, Any], target)["origins"] = make_origins(range(first, first + count), draws=range(count))
        first += count
    return workload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", choices=[*STEPS, *SMALL_STUDENTS])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS)[:2])
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        bank = make_bank(Path(folder) / "bank.safetensors")
        print(f"| student | contender | plain step, ms | added, % | alone, % |  pairs: {options.pairs}, {options.device}")
        print("|---|---|---:|---:|---:|", flush=True)
        for student in options.students:
            workload = workload_of(student, options.device)
            for name in options.contenders:
                with_bank, settings = CONTENDERS[name]
                pair = Pair(workload, bank if with_bank else None, settings)
                whole, share, error = pair.measure(options.pairs)
                figures = f"{1000 * whole:.1f} | {100 * share:+.1f} ± {100 * error:.1f} | {100 * pair.alone() / whole:+.2f}"
                print(f"| {student} | {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
