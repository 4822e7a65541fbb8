"""What commands print: numbers with unit and split, AP by class, and lines in a log where no bar can move."""

import io
import re

import pytest

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from rich.console import Console

from cls2det.commands.printing import print_result
from cls2det.evaluation.by_class import classes_heading, worst_and_best
from cls2det.training.progress import is_live, log_lines, progress_bar, progress_display


def printed(result):
    screen = io.StringIO()
    print_result(result, Console(file=screen, width=120))
    return screen.getvalue()


def test_numbers_have_unit_and_split():
    text = printed({"mAP": 31.234, "seconds": 12.0, "images": 63, "split": "test", "APl": None, "quick": True, "ece": 4.0})
    assert re.search(r"mAP +│ 31\.23 +│ % on test ", text) and re.search(r"seconds +│ 12\.00 +│ s of training", text)
    assert re.search(r"ece +│ 4\.00 +│ % on test, expected calibration error", text) and re.search(r"images +│ 63 ", text)
    assert "APl" not in text and "quick" not in text and "│ test" not in text


@pytest.mark.parametrize(("count", "shown"), [(3, 3), (40, 12)])
def test_ap_by_class_shows_all_or_the_worst_and_the_best(count, shown):
    by_class = {f"[kind {number}]": float((7 * number) % count) for number in range(count)} | {"absent": None}
    counts = {name: 0 if value is None else 5 for name, value in by_class.items()}
    text = printed({"AP by class": by_class, "objects by class": counts, "split": "val"})
    assert len(re.findall(r"\[kind \d+\]", text)) == shown and "percent on val" in text
    assert ("absent" in text) == (count == 3) and "(1 without an object)" in " ".join(text.split())
    if count == 40:
        assert "the 6 worst and 6 best of 41 classes" in " ".join(text.split())
        values = [float(value) for value in re.findall(r"5 +(\d+\.\d)", text)]
        assert values == [0.0, 1, 2, 3, 4, 5, 34, 35, 36, 37, 38, 39]


def test_worst_and_best_of_classes_that_are_mostly_absent():
    rows = [{"class": str(number), "objects": 0, "AP": None} for number in range(30)]
    rows[7] = {"class": "7", "objects": 1, "AP": 50.0}
    assert worst_and_best(rows, "AP") == [rows[7]]
    assert classes_heading(rows, [rows[7]], "val") == "AP by class, percent on val (29 without an object)"  # none is the worst


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_log_has_lines_now_and_then():
    screen, clock = io.StringIO(), Clock()
    report = log_lines(Console(file=screen, width=40), clock)
    for step in range(10, 201, 10):
        clock.now = step / 2  # 2 steps a second
        report("training", step, 200, "loss 1.000", ends=True)
    assert screen.getvalue().splitlines() == [
        "training: 30 of 200 steps, loss 1.000, 10 s, 85 s left",
        "training: 150 of 200 steps, loss 1.000, 70 s, 25 s left",
        "training: 200 of 200 steps, loss 1.000, 95 s",
    ]
    clock.now = 1000.0
    report("training", 5, 50, "")  # another stretch begins: no rate is known yet
    assert screen.getvalue().splitlines()[-1] == "training: 5 of 50 steps, 0 s"


def test_a_log_has_no_escape_codes(monkeypatch, capsys):
    """Even where FORCE_COLOR, as on some build servers, makes rich take it for a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Console().is_terminal and not is_live(Console())
    with progress_bar("training") as report:
        report(1, 2, "loss 1")
        report(2, 2, "loss 0.5")
    with progress_display(Console()) as display:
        display.update(display.add_task("a", text=""), completed=1)
    text = capsys.readouterr().out
    assert "\x1b" not in text and re.fullmatch(r"training: 2 of 2 steps, loss 0\.5, \d+ s\n", text)
