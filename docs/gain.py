"""Draw docs/gain.png, the picture of the README, from the study's table: `python docs/gain.py`."""

import csv
from pathlib import Path

from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
LABELS = {  # the study's names of its arms, as one says them
    "+ KD-cls": "KD-cls",
    "+ all": "KD-cls + KD-loc + loc",
    "+ all, teacher of own images": "the same, teacher trained on the student's 300 images",
    "baseline, tuned": "no teacher, detector's own loss weights tuned",
    "+ loc": "loc (pixels, no teacher)",
    "+ KD-loc": "KD-loc",
    "+ loc + KD-loc": "KD-loc + loc",
    "one-hot for KD-cls": "control: true class in place of the teacher's scores",
    "box weight 3 for KD-loc": "control: box weight 3 in place of KD-loc (2 elsewhere)",
    "box weight for KD-loc": "control: box weight 4 in place of KD-loc",
}
WITH_KD_CLS, WITHOUT = "#1b7837", "#777777"

with (FOLDER / "study" / "arms.csv").open(newline="", encoding="utf-8") as file:
    arms = {row["arm"]: (float(row["gain"]), float(row["standard error"])) for row in csv.DictReader(file) if row["gain"]}
figure = Figure(figsize=(8, 3.1), layout="constrained")
axes = figure.subplots()
for place, arm in enumerate(reversed(LABELS)):
    gain, error = arms[arm]
    color = WITH_KD_CLS if arm.startswith(("+ KD-cls", "+ all")) else WITHOUT
    axes.errorbar(gain, place, xerr=error, fmt="o", color=color, capsize=3)
axes.axvline(0, color="black", linewidth=0.8)
axes.set_yticks(range(len(LABELS)), list(reversed(LABELS.values())))
axes.set_xlabel("gain in mAP, five seeds, ± standard error")
axes.grid(axis="x", color="#dddddd")
axes.set_axisbelow(True)
axes.spines[["top", "right", "left"]].set_visible(False)
axes.tick_params(axis="y", length=0)
figure.savefig(FOLDER / "gain.png", dpi=150, metadata={"Software": None})
