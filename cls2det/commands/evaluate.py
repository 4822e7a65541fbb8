"""``cls2det evaluate``: COCO's numbers of a trained detector, and its detections."""

from __future__ import annotations

from cls2det.commands.options import EvaluateOptions
from cls2det.data.dataset import DetectionData
from cls2det.data.fingerprint import fingerprint
from cls2det.evaluation.coco import MAX_DETECTIONS, evaluate_detector
from cls2det.files import make_folder, write_json
from cls2det.models.students import load_student
from cls2det.training.optimizer import torch_device
from cls2det.training.progress import Progress, progress_bar


def evaluate(options: EvaluateOptions, progress: Progress | None = None) -> dict:
    """Detect and compare; returns the content of evaluation.json."""
    student = load_student(options.weights)
    data = DetectionData(
        options.data_root,
        options.split,
        max_pixels=options.max_pixels,
        classes=student.classes,
        classes_of=str(options.weights),
    )
    if options.out:
        make_folder(options.out)
    with progress_bar("evaluating", progress) as report_progress:
        table = evaluate_detector(
            student.detector,
            data,
            classes=student.classes,
            device=torch_device(options.device),
            batch_size=options.batch_size,
            loader_workers=options.loader_workers,
            max_detections=options.max_detections,
            progress=report_progress,
        )
    detections = table.pop("detections")
    table |= {"data_root": str(options.data_root), "split": options.split, "annotations": fingerprint(data)}
    if options.max_detections != MAX_DETECTIONS:
        table["max_detections"] = options.max_detections
    if options.out:
        write_json(options.out / "detections.json", detections, indent=None)
        write_json(options.out / "evaluation.json", table)
    return table
