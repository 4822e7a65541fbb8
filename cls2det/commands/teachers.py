"""The classifier that the options of ``distill`` and ``bank`` name."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from cls2det.data.dataset import DetectionData
from cls2det.models.students import head_of
from cls2det.models.zero_shot import PREFIX, load_zero_shot
from cls2det.teachers.class_map import ClassTable
from cls2det.teachers.crop_classifier import CropClassifier


class NamesTeacher(Protocol):
    """What is read of the options."""

    @property
    def teacher(self) -> Path | None: ...
    @property
    def prompts(self) -> list[str] | None: ...
    @property
    def teacher_crop_size(self) -> int | None: ...
    @property
    def class_mapping(self) -> ClassTable | None: ...
    @property
    def student(self) -> str | None: ...
    @property
    def image_size(self) -> int | None: ...


def load_teacher(options: NamesTeacher, data: DetectionData) -> CropClassifier:
    """A teacher of the data's classes: that of a file, or a zero-shot one."""
    source = str(options.teacher)
    if not source.startswith(PREFIX):
        if options.prompts or options.teacher_crop_size:
            raise ValueError(f"prompts and teacher_crop_size are for a teacher {PREFIX}NAME; found teacher {source}")
        teacher = CropClassifier.load(source)
        head = head_of(options.student or teacher.student)
        return teacher.for_classes(data.classes, str(data.annotation_file), options.class_mapping, head=head)
    if options.class_mapping:
        raise ValueError(f"class_mapping is for a trained teacher; {source} takes the data's own names, see prompts")
    if options.student is None:
        raise ValueError(f"{source} does not say whose pictures it is shown: give --student")
    network, loss = load_zero_shot(source, data.classes, options.prompts, size=options.teacher_crop_size)
    return CropClassifier(
        data.classes,
        architecture=source,
        student=options.student,
        image_size=options.image_size,
        crop_size=options.teacher_crop_size or network.size,
        loss=loss,
        network=network,
    ).eval()
