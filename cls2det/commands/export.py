"""``cls2det export``: the student alone, in formats that run without this package.

What works, for single images unless said otherwise, with torch 2.14.1 and torchvision 0.29.1; "any" and "fixed" are the sizes of
images that the written file takes:

| student                            | state_dict | torchscript     | torch_export | onnx  |
|------------------------------------|------------|-----------------|--------------|-------|
| SSD, SSDLite                       | yes        | any, lists      | any          | any   |
| Faster R-CNN, RetinaNet, FCOS      | yes        | any, lists      | fixed        | any   |
| DETR                               | yes        | fixed (traced)  | fixed        | fixed |

The files hold resizing, normalisation and non-maximum suppression; a loaded one is given pixels and gives boxes. TorchScript and
ONNX compute the scale of the resizing in float32: images of some sizes come out one pixel smaller than in PyTorch, which can
move scores in the third digit (not those of SSD, whose images are brought to one size).

Results equal PyTorch's up to rounding; of scores in ONNX Runtime 1.3e-4 was the most that was seen. Where non-maximum suppression
or the choice of the best proposals hangs on less, other boxes can be kept: of objects' many near-duplicates, or in a student that
has learnt nothing.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torch.export import Dim
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import boxes as box_ops

from cls2det.files import write_json
from cls2det.models.students import STUDENTS, TrainedStudent, build_student, load_student

Format = Literal["state_dict", "torchscript", "torch_export", "onnx"]
Detections = dict[str, Tensor]  # boxes (n, 4), labels (n,), scores (n,)
Load = Callable[[], Callable[[Tensor], Detections]]  # reads what was written; that turns an image into its detections

FILES = {
    "state_dict": "student.state_dict.pt",
    "torchscript": "student.torchscript.pt",
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
ROUNDING = 1e-6  # of a pixel's range: what a student is shown more or less of when it is asked how much hangs on rounding
TIES = " (nearly equal scores or overlaps, as an untrained student has many, leave it to rounding which boxes are kept)"


def export(
    weights: Path,
    out: Path,
    formats: list[Format] = ["state_dict", "torchscript", "torch_export", "onnx"],  # noqa: B006 (not changed)
    image_size: int = 0,
    check: bool = True,
) -> dict:
    """Write a trained student in formats that run without this package.

    Writes a file per format and ``export.json``, which says how each is used, what images it takes and, for a format that
    does not work for this student, why.

    Args:
        weights: weights.pt of ``cls2det train`` or ``distill``
        out: folder for what is written
        formats: state_dict (the detector's weights alone), torchscript, torch_export, onnx
        image_size: side of the square image that formats of a fixed size are made for; 0: the student's own
        check: run what was written on random images and compare with the trained student
    """
    student = load_student(weights)
    if not formats or set(formats) - FILES.keys():
        raise ValueError(f"formats: expected some of {', '.join(FILES)}, found {', '.join(formats) or 'none'}")
    side = image_size or student.image_size or STUDENTS[student.name].size
    images = _probes(student.detector, side)
    Path(out).mkdir(parents=True, exist_ok=True)
    entries = {name: _write(name, student, images, Path(out), check) for name in formats}
    report = write_json(Path(out) / "export.json", _about(student, side) | {"formats": entries})
    failures = {name: f"{name}: {entry['fails']}" for name, entry in entries.items() if "fails" in entry}
    if len(failures) == len(entries) or any(entries[name].get("differs") for name in failures):
        raise ValueError("; ".join(failures.values()))
    for name, entry in entries.items():
        print(failures.get(name) or f"{name}: {Path(out) / entry['file']}")
        if entry.get("check", {}).get("detections") == 0:
            print(f"{name}: the student finds nothing in random images, so no more than this was compared")
    return report


def _write(name: Format, student: TrainedStudent, images: list[Tensor], out: Path, check: bool) -> dict[str, Any]:
    """Write one format; its entry in the report, which has "fails" if there is no file."""
    file = out / FILES[name]
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of tracing and of deprecation: what counts is the comparison
            entry, load = EXPORTERS[name](student, images[0], file)
            if check:
                entry["check"] = _compare(load, student.detector, images if entry["sizes"] == "any" else images[:1])
        return {"file": file.name, **entry}
    except _Differs as error:
        entry = {"fails": f"what was written differs from the trained student: {error}{TIES}", "differs": True}
    except Exception as error:  # exporters raise all kinds, undocumented
        entry = {"fails": _shortened(error)}
    file.unlink(missing_ok=True)
    return entry


def _about(student: TrainedStudent, side: int) -> dict[str, Any]:
    transform = student.detector.transform
    return {
        "student": student.name,
        "classes": list(student.classes),
        "normalisation": "inside: give pixels in [0, 1], neither resized nor normalised",
        "mean": list(transform.image_mean),
        "std": list(transform.image_std),
        "image_size": side,
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
    }


def _state_dict(student: TrainedStudent, _image: Tensor, file: Path) -> tuple[dict, Load]:
    torch.save(student.detector.state_dict(), file)
    name, classes, size = student.name, len(student.classes), student.image_size

    def load() -> Callable[[Tensor], Detections]:
        detector = build_student(name, classes, size)
        detector.load_state_dict(torch.load(file, weights_only=True))
        detector.eval()
        return lambda image: detector([image])[0]

    use = f"cls2det.models.students.build_student({name!r}, {classes}, {size}).load_state_dict(torch.load(file))"
    return {"use": use, "inputs": f"a list of {IMAGE}", "outputs": {"of each image": OUTPUTS}, "sizes": "any"}, load


def _torchscript(student: TrainedStudent, image: Tensor, file: Path) -> tuple[dict, Load]:
    """torch.jit.script, with lists of images of any size; where that fails, torch.jit.trace with one image of this size."""
    try:
        module = torch.jit.script(student.detector)
    except Exception as error:  # in as many kinds as there is Python that TorchScript does not know
        return _traced(student.detector, image, file, why=_shortened(error))
    module.save(str(file))

    def load() -> Callable[[Tensor], Detections]:
        scripted = torch.jit.load(str(file))
        return lambda image: scripted([image])[1][0]

    entry = {
        "use": "import torchvision; losses, detections = torch.jit.load(file)(images)",
        "inputs": f"a list of {IMAGE}",
        "outputs": {"losses": "empty", "of each image": OUTPUTS},
        "sizes": "any",
    }
    return entry, load


def _traced(detector: nn.Module, image: Tensor, file: Path, why: str) -> tuple[dict, Load]:
    torch.jit.trace(_OneImage(detector), (image,), check_trace=False).save(str(file))

    def load() -> Callable[[Tensor], Detections]:
        traced = torch.jit.load(str(file))
        return lambda image: _named(traced(image))

    entry = {"use": "import torchvision; boxes, labels, scores = torch.jit.load(file)(image)", "not scripted": why}
    return entry | _one_image(image, "fixed"), load


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
    one_size = detector.transform.fixed_size is not None
    with _exportable():
        program = torch.export.export(
            _OneImage(detector),
            (image,),
            dynamic_shapes={"image": {1: Dim.DYNAMIC, 2: Dim.DYNAMIC}} if one_size else None,
            strict=hasattr(detector, "roi_heads"),  # without it, RoI pooling wants to know how many proposals there are
        )
    return program, "any" if one_size else "fixed"


def _onnx(student: TrainedStudent, image: Tensor, file: Path) -> tuple[dict, Load]:
    """torchvision's detectors through the TorchScript exporter, which leaves the size open; DETR through torch.export.

    (The TorchScript exporter writes DETR's attention wrongly: scores off by 0.03, with torch 2.14.)
    """
    _need("onnx", "onnxscript")
    names = {"input_names": ["image"], "output_names": list(OUTPUTS)}
    if type(student.detector).__module__.startswith("torchvision."):
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


EXPORTERS = {"state_dict": _state_dict, "torchscript": _torchscript, "torch_export": _torch_export, "onnx": _onnx}


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
    """While torch.export looks on, two functions of torchvision do without branches that hang on how many boxes there are."""
    originals = box_ops.batched_nms, BoxCoder.decode
    box_ops.batched_nms, BoxCoder.decode = _batched_nms, _decode
    try:
        yield
    finally:
        box_ops.batched_nms, BoxCoder.decode = originals


def _decode(self: BoxCoder, rel_codes: Tensor, boxes: list[Tensor]) -> Tensor:
    """Boxes (n, classes, 4) from deltas (n, 4 · classes) and the n anchors or proposals of all images."""
    return self.decode_single(rel_codes, torch.cat(boxes)).unflatten(1, (rel_codes.shape[1] // 4, 4))


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """NMS within each class, by moving the classes so far apart that their boxes do not meet.

    Two boxes that meet no other are put in last and taken out again: torchvision's declaration of ``nms`` for export says that
    it keeps at least two, and an exported program that keeps fewer stops there.
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


class _Differs(ValueError):
    pass


def _probes(detector: nn.Module, side: int, tries: int = 6) -> list[Tensor]:
    """A square image and a larger one of another shape: of random blobs, fine to coarse, those in which the detector finds most.

    Where there is a choice, images in which rounding decides nothing (see ``_steady``): in others a right file may differ as well.
    The larger is brought to the detector's size by 1/2: a scale that is no rounded number, see above.
    """
    draws = torch.Generator().manual_seed(0)

    def blobs(number: int, height: int, width: int) -> Tensor:
        grid = torch.rand(1, 3, 3 * 2**number, 3 * 2**number, generator=draws)
        return nn.functional.interpolate(grid, (height, width), mode="bilinear")[0]

    best = []
    with torch.no_grad():
        for height, width in ((side, side), (2 * side, 3 * side)):
            candidates = [blobs(number, height, width) for number in range(tries)]
            found = [(image, detector([image])[0]) for image in candidates]
            found.sort(key=lambda pair: -len(pair[1]["scores"]))
            steady = (image for image, there in found if len(there["scores"]) and _steady(detector, image, there))
            best.append(next(steady, found[0][0]))
    return best


def _steady(detector: nn.Module, image: Tensor, there: Detections) -> bool:
    """Whether no two scores are equal, and the detector finds the same in the image with noise as small as rounding.

    Non-maximum suppression and the choice of the best proposals are steps: an untrained Faster R-CNN, whose proposals are all
    alike, finds other boxes in float64 than in float32, and other ones in ONNX Runtime. The same boxes move by a few times
    what the check allows, other ones by far more. Noise leaves scores that have come to exactly 1 as they are, and tied.
    """
    if len(there["scores"].unique()) < len(there["scores"]):
        return False
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    try:
        box, score = _difference(detector([image + ROUNDING * noise])[0], there, side=max(image.shape))
    except _Differs:
        return False
    return box <= 10 * BOX_TOLERANCE and score <= 10 * SCORE_TOLERANCE


def _compare(load: Load, detector: nn.Module, images: list[Tensor]) -> dict[str, Any]:
    """Largest differences over all detections; raises ``_Differs`` if there are others, or if they are too large."""
    try:
        written = load()
    except ImportError as error:
        return {"skipped": f"{error}: pip install 'cls2det[onnx]'"}
    wanted = [detector([image])[0] for image in images]  # each alone: a batch is padded to a common size
    found = [written(image) for image in images]
    apart = [_difference(*pair, side=max(image.shape)) for *pair, image in zip(found, wanted, images, strict=True)]
    box, score = torch.tensor(apart).amax(0).tolist()  # of a tensor, not max(): NaN must come through
    if not (box <= BOX_TOLERANCE and score <= SCORE_TOLERANCE):
        allowed = f"(allowed: {BOX_TOLERANCE} of the image's side, {SCORE_TOLERANCE})"
        raise _Differs(f"boxes by up to {box:.2g}, scores by up to {score:.2g} {allowed}")
    return {
        "images": [list(image.shape[-2:]) for image in images],
        "detections": sum(len(there["scores"]) for there in wanted),
        "box difference": box,
        "score difference": score,
    }


def _difference(here: Detections, there: Detections, side: float) -> tuple[float, float]:
    """Largest difference of boxes, in shares of ``side``, and of scores; each detection against the nearest that is left.

    Not position by position: detections of nearly equal scores change places by rounding.
    """
    if len(here["scores"]) != len(there["scores"]):
        raise _Differs(f"{len(here['scores'])} detections in place of {len(there['scores'])}")
    boxes = (here["boxes"][None] - there["boxes"][:, None]).abs().amax(2) / side
    scores = (here["scores"][None] - there["scores"][:, None]).abs()
    open_to = here["labels"][None] == there["labels"][:, None]
    largest = torch.zeros(2)
    for row in range(len(scores)):
        if not open_to[row].any():
            label, score = there["labels"][row].item(), there["scores"][row].item()
            raise _Differs(f"label {label} with score {score:.4f} is missing from {len(scores)} detections")
        nearest = (boxes[row] + scores[row]).masked_fill(~open_to[row], torch.inf).nan_to_num(1e9, 1e10).argmin()
        largest = torch.maximum(largest, torch.stack((boxes[row, nearest], scores[row, nearest])))
        open_to[:, nearest] = False
    return largest[0].item(), largest[1].item()


def _shortened(error: Exception, length: int = 300) -> str:
    text = re.sub(r"\x1b\[\d+m|\s+", " ", f"{type(error).__name__}: {error}")
    return text if len(text) <= length else text[:length] + " …"
