"""``cls2det export``: the student alone, in formats that run without this package.

What works, for single images unless the table says otherwise, with torch 2.14.1 and torchvision 0.29.1; "any" and "fixed" are
the sizes of images that the file takes:

| student                            | state_dict | torch_export | onnx  |
|------------------------------------|------------|--------------|-------|
| SSD, SSDLite                       | any, lists | any          | any   |
| Faster R-CNN, RetinaNet, FCOS      | any, lists | fixed        | any   |
| DETR                               | any, lists | fixed        | fixed |
| RT-DETRv2, D-FINE                  | any, lists | any          | any   |
| hf:, images brought to one size    | any, lists | any          | any   |
| hf:, other images                  | any, lists | fixed        | fixed |

The files contain resizing, normalisation and non-maximum suppression; a loaded one takes pixels and gives boxes. ONNX computes
the scale of the resizing in float32: images of some sizes come out one pixel smaller than in PyTorch, which can move scores in
the third digit (not those of SSD, whose images are brought to one size).

Results equal PyTorch's up to rounding; scores in ONNX Runtime differed by 1.3e-4 at most. Where two overlaps or two scores are
closer than that, other boxes can be kept: near-duplicates of an object, or any box of a student that has learnt nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from torch import Tensor, nn
from torch.export import Dim
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import boxes as box_ops

from cls2det.commands.options import ExportOptions
from cls2det.evaluation.finite import NotFinite, finite_heads
from cls2det.files import make_folder, write_json
from cls2det.models.students import TrainedStudent, load_student, reduce_larger
from cls2det.models.students.hungarian import RT_DETRS
from cls2det.models.students.hungarian_loss import isinstance_of

Detections = dict[str, Tensor]  # boxes (n, 4), labels (n,), scores (n,)
Load = Callable[[], Callable[[Tensor], Detections]]  # reads what was written; that turns an image into its detections

FILES = {
    "state_dict": "student.state_dict.pt",
    "torch_export": "student.pt2",
    "onnx": "student.onnx",
}
IMAGE = "image: float32 (3, height, width), RGB, in [0, 1]"
OUTPUTS = {
    "boxes": "float32 (n, 4), xyxy in pixels of the image",
    "labels": "int64 (n,), 1 is the first class",
    "scores": "float32 (n,) in [0, 1]",
}
BOX_TOLERANCE = 1e-4  # of the image's longer side
SCORE_TOLERANCE = 5e-4  # an untrained Faster R-CNN's scores on the same boxes differ by 1.3e-4 in ONNX Runtime
# Standard deviation in an image in [0, 1]. An untrained Faster R-CNN moves 3 to 22 times as far as in ONNX Runtime.
NOISE = 1e-6
TIES = " (nearly equal scores or overlaps, as an untrained student has many, leave it to rounding which boxes are kept)"


def export(options: ExportOptions) -> dict[str, Any]:
    """Write the files; returns the content of export.json.

    Raises:
        ValueError: no format works for the student, or a file gives other detections than the student
    """
    student, out = load_student(options.weights), options.out
    if "torchscript" in options.formats:
        raise ValueError("formats: torch is dropping TorchScript, and so did cls2det; take torch_export or onnx")
    if not options.formats or set(options.formats) - FILES.keys():
        expected = f"expected one or more of {', '.join(FILES)}"
        raise ValueError(f"formats: {expected}, found {', '.join(options.formats) or 'none'}")
    if options.image_size is not None and options.image_size < 1:
        raise ValueError(f"image_size: expected a side of at least 1 pixel, found {options.image_size}")
    side = options.image_size or student.image_size or _own_size(student.detector)
    about = _about(student, side)
    reduce_larger(student.detector, None)  # it depends on the picture's size, which no exporter follows
    try:
        images = probes(student.detector, side)
    except NotFinite as error:
        raise ValueError(f"{options.weights}: in an image of random blobs, {error}") from None
    make_folder(out)
    entries = {name: _write(name, student, images, out, check=options.check) for name in options.formats}
    report = write_json(out / "export.json", about | {"formats": entries})
    failures = {name: f"{name}: {entry['fails']}" for name, entry in entries.items() if "fails" in entry}
    if len(failures) == len(entries) or any(entries[name].get("differs") for name in failures):
        raise ValueError("; ".join(failures.values()))
    earlier = [file for name, file in FILES.items() if name not in entries and (out / file).exists()]
    if earlier:
        print(f"{', '.join(earlier)} in {out} of an earlier export: export.json says nothing of it any more", file=sys.stderr)
    for name, entry in entries.items():
        print(failures.get(name) or f"{name}: {out / entry['file']}")
        if entry.get("check", {}).get("detections") == 0:
            print(f"{name}: the student finds nothing in random images, so no more than this was compared")
    return report


def _write(name: str, student: TrainedStudent, images: list[Tensor], out: Path, *, check: bool) -> dict[str, Any]:
    """Write one format; its entry in the report, which has "fails" if there is no file."""
    file = out / FILES[name]
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of tracing and of deprecation: what counts is the comparison
            entry, load = EXPORTERS[name](student, images[0], file)
            if check:
                entry["check"] = _compare(load, student.detector, images if entry["sizes"] == "any" else images[:1])
        return {"file": file.name, **entry}
    except DetectionsDiffer as error:
        entry = {"fails": f"what was written differs from the trained student: {error}{TIES}", "differs": True}
    except Exception as error:  # exporters raise all kinds, undocumented
        entry = {"fails": _shortened(error)}
    file.unlink(missing_ok=True)
    return entry


def _about(student: TrainedStudent, side: int) -> dict[str, Any]:
    transform: GeneralizedRCNNTransform = student.detector.transform
    largest = transform.max_image_side
    return {
        "student": student.name,
        "classes": list(student.classes),
        "normalisation": "inside: give pixels in [0, 1], neither resized nor normalised",
        "mean": list(transform.image_mean),
        "std": list(transform.image_std),
        "image_size": side,
        **({"max_image_side": f"{largest}: reduce larger pictures to it first, with antialiasing"} if largest else {}),
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
    }


def _own_size(detector: nn.Module) -> int:
    transform: GeneralizedRCNNTransform = detector.transform
    return int((transform.fixed_size or transform.min_size)[0])


def _state_dict(student: TrainedStudent, _image: Tensor, file: Path) -> tuple[dict, Load]:
    torch.save(student.detector.state_dict(), file)

    def load() -> Callable[[Tensor], Detections]:
        detector = student.untrained()
        detector.load_state_dict(torch.load(file, weights_only=True))
        detector.eval()
        return lambda image: detector([image])[0]

    anchors = f", anchors={student.anchors}" if student.anchors else ""
    build = f"build_student({student.name!r}, {len(student.classes)}, {student.image_size}{anchors})"
    if getattr(student.detector, "description", None):  # with the number of classes and the sizes in it
        build = "load_student('weights.pt').untrained()"
    use = f"cls2det.models.students.{build}.load_state_dict(torch.load(file))"
    return {"use": use, "inputs": f"a list of {IMAGE}", "outputs": {"of each image": OUTPUTS}, "sizes": "any"}, load


def _torch_export(student: TrainedStudent, image: Tensor, file: Path) -> tuple[dict, Load]:
    program, sizes = _program(student.detector, image)
    torch.export.save(program, file)

    def load() -> Callable[[Tensor], Detections]:
        loaded = torch.export.load(file).module()
        return lambda image: _named(loaded(image))

    entry = {"use": "import torchvision; boxes, labels, scores = torch.export.load(file).module()(image)"}
    return entry | _one_image(image, sizes), load


def _program(detector: nn.Module, image: Tensor) -> tuple[torch.export.ExportedProgram, str]:
    """The graph, NMS included, and its sizes: any for detectors that bring every image to one size, that of ``image`` for others."""
    transform: GeneralizedRCNNTransform = detector.transform
    one_size = transform.fixed_size is not None
    with _exportable():
        program = torch.export.export(
            _OneImage(detector),
            (image,),
            dynamic_shapes={"image": {1: Dim.DYNAMIC, 2: Dim.DYNAMIC}} if one_size else None,
            strict=hasattr(detector, "roi_heads"),  # otherwise RoI pooling asks how many proposals there are
        )
    return program, "any" if one_size else "fixed"


def _onnx(student: TrainedStudent, image: Tensor, file: Path) -> tuple[dict, Load]:
    """torchvision's detectors and RT-DETR's kin by tracing, which leaves the size open; DETR through torch.export.

    (Tracing writes DETR's attention wrongly: scores off by 0.03, with torch 2.14. That of RT-DETR it writes rightly, in an
    eighth of the time.)
    """
    _need("onnx", "onnxscript")
    names: dict[str, Any] = {"input_names": ["image"], "output_names": list(OUTPUTS)}
    network = getattr(student.detector, "network", None)
    if network is None or isinstance_of(network, *RT_DETRS):
        sizes = "any"
        axes = {"image": {1: "height", 2: "width"}} | {name: {0: "detections"} for name in OUTPUTS}
        torch.onnx.export(_OneImage(student.detector), (image,), file, dynamo=False, dynamic_axes=axes, **names)
    else:
        program, sizes = _program(student.detector, image)
        torch.onnx.export(program, (image,), file, dynamo=True, external_data=False, verbose=False, **names)

    def load() -> Callable[[Tensor], Detections]:
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return lambda image: _named([torch.from_numpy(output) for output in session.run(None, {"image": image.numpy()})])

    use = "boxes, labels, scores = onnxruntime.InferenceSession(file).run(None, {'image': image})"
    return {"use": use} | _one_image(image, sizes), load


EXPORTERS = {"state_dict": _state_dict, "torch_export": _torch_export, "onnx": _onnx}


class _OneImage(nn.Module):
    """(3, H, W) to boxes, labels, scores: exporters take tensors, not lists of dictionaries."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        detections = self.detector([image])[0]
        return tuple(detections[name] for name in OUTPUTS)


def _named(outputs: tuple[Tensor, ...] | list[Tensor]) -> Detections:
    return dict(zip(OUTPUTS, outputs, strict=True))


def _one_image(image: Tensor, sizes: str) -> dict:
    inputs = IMAGE if sizes == "any" else IMAGE.replace("height, width", ", ".join(map(str, image.shape[-2:])))
    return {"inputs": inputs, "outputs": OUTPUTS, "sizes": sizes}


@contextlib.contextmanager
def _exportable() -> Iterator[None]:
    """Two functions of torchvision are replaced by ones without branches on the number of boxes, which torch.export refuses.

    transformers leaves out the checks of its attention, which ONNX does not know.
    """
    originals = box_ops.batched_nms, BoxCoder.decode
    box_ops.batched_nms, BoxCoder.decode = _batched_nms, _decode
    try:
        with patch.dict(os.environ, {"TRANSFORMERS_DISABLE_TORCH_CHECK": "1"}):
            yield
    finally:
        box_ops.batched_nms, BoxCoder.decode = originals


def _decode(self: BoxCoder, rel_codes: Tensor, boxes: list[Tensor]) -> Tensor:
    """Boxes (n, classes, 4) from deltas (n, 4 · classes) and the n anchors or proposals of all images."""
    return self.decode_single(rel_codes, torch.cat(boxes)).unflatten(1, (rel_codes.shape[1] // 4, 4))


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """NMS within each class: the classes are moved so far apart that their boxes do not overlap.

    Two boxes that overlap no other are added at the end and removed again: torchvision declares to torch.export that ``nms``
    keeps at least two boxes, and an exported program that keeps fewer stops there.
    """
    aside = boxes.new_tensor([[-2.0, -2.0, -1.0, -1.0], [-4.0, -4.0, -3.0, -3.0]])
    beyond = torch.cat((boxes, aside)).max().clamp(min=0) + 1
    apart = torch.cat((boxes + (idxs.to(boxes) * beyond)[:, None], aside))
    return box_ops.nms(apart, torch.cat((scores, scores.new_tensor([-1.0, -2.0]))), iou_threshold)[:-2]


def _need(*packages: str) -> None:
    for package in packages:
        try:
            __import__(package)
        except ImportError as error:
            raise ImportError(f"ONNX needs {package} ({error}): pip install 'cls2det[onnx]'") from error


class DetectionsDiffer(ValueError):
    """A file gives other detections than the student that it was written from."""


def probes(detector: nn.Module, side: int, tries: int = 6) -> list[Tensor]:
    """A square image, and a larger one of another shape, which is brought to the detector's size by a scale of about 1/2.

    Each is one of several images of random blobs, coarse to fine: of those with half of the most detections or more, the one
    whose detections change least under noise of the size of rounding. Where noise decides which box is kept, another library
    may keep another. Raises ``NotFinite`` if the detector gives NaN for one of them.
    """
    generator = torch.Generator().manual_seed(0)
    chosen = []
    with torch.no_grad(), finite_heads(detector):
        for height, width in ((side, side), (2 * side, 3 * side)):
            images, counts, changes = [], [], []
            for number in range(tries):
                grid = torch.rand(1, 3, 3 * 2**number, 3 * 2**number, generator=generator)
                image = nn.functional.interpolate(grid, (height, width), mode="bilinear")[0]
                noise = NOISE * torch.randn(3, *image.shape, generator=generator)
                detections, *others = detector([image, *(image + noise)])
                images.append(image)
                counts.append(len(detections["scores"]))
                changes.append(max(_change(other, detections, max(height, width)) for other in others))
            enough = [number for number in range(tries) if 2 * counts[number] >= max(counts)]
            chosen.append(images[min(enough, key=changes.__getitem__)])
    return chosen


def _change(result: Detections, expected: Detections, side: float) -> float:
    """In tolerances; infinite if other boxes are kept."""
    try:
        box, score = largest_differences(result, expected, side)
    except DetectionsDiffer:
        return float("inf")
    return max(box / BOX_TOLERANCE, score / SCORE_TOLERANCE)


def _compare(load: Load, detector: nn.Module, images: list[Tensor]) -> dict[str, Any]:
    """Largest differences over all detections; raises ``DetectionsDiffer`` if there are others, or if they are too large."""
    try:
        exported = load()
    except ImportError as error:
        return {"skipped": f"{error}: pip install 'cls2det[onnx]'"}
    expected = [detector([image])[0] for image in images]  # one by one: a batch is padded to a common size
    differences = [
        largest_differences(exported(image), detections, side=max(image.shape))
        for image, detections in zip(images, expected, strict=True)
    ]
    box, score = torch.tensor(differences).amax(0).tolist()  # of a tensor, not max(): NaN must come through
    if not (box <= BOX_TOLERANCE and score <= SCORE_TOLERANCE):
        allowed = f"(allowed: {BOX_TOLERANCE} of the image's side, {SCORE_TOLERANCE})"
        raise DetectionsDiffer(f"boxes by up to {box:.2g}, scores by up to {score:.2g} {allowed}")
    return {
        "images": [list(image.shape[-2:]) for image in images],
        "detections": sum(len(detections["scores"]) for detections in expected),
        "box difference": box,
        "score difference": score,
    }


def largest_differences(result: Detections, expected: Detections, side: float) -> tuple[float, float]:
    """Largest difference of boxes, in shares of ``side``, and of scores; each expected detection against the nearest result.

    Not position by position: detections of nearly equal scores change places by rounding. NaN gives NaN.

    Raises:
        DetectionsDiffer: another number of detections, or other labels
    """
    if len(result["scores"]) != len(expected["scores"]):
        raise DetectionsDiffer(f"{len(result['scores'])} detections in place of {len(expected['scores'])}")
    boxes = (result["boxes"][None] - expected["boxes"][:, None]).abs().amax(2) / side
    scores = (result["scores"][None] - expected["scores"][:, None]).abs()
    free = result["labels"][None] == expected["labels"][:, None]
    largest = torch.zeros(2)
    for row in range(len(scores)):
        if not free[row].any():
            label, score = expected["labels"][row].item(), expected["scores"][row].item()
            raise DetectionsDiffer(f"label {label} with score {score:.4f} is missing from {len(scores)} detections")
        nearest = (boxes[row] + scores[row]).masked_fill(~free[row], torch.inf).nan_to_num(1e9, 1e10).argmin()
        largest = torch.maximum(largest, torch.stack((boxes[row, nearest], scores[row, nearest])))
        free[:, nearest] = False
    return largest[0].item(), largest[1].item()


def _shortened(error: Exception, length: int = 300) -> str:
    text = re.sub(r"\x1b\[\d+m|\s+", " ", f"{type(error).__name__}: {error}")
    return text if len(text) <= length else text[:length] + " …"
