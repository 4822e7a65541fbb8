"""Regions: a class-free teacher's embeddings of boxes, its loss against plain PyTorch, every student, and what trains and is kept."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

import torchvision
from torchvision.ops import MultiScaleRoIAlign

from cls2det.distill import Distillation, Encoder, Regions, RegionsSettings
from cls2det.distill.regions import levels_of
from cls2det.models.positives import Positives
from cls2det.models.students import build_student, save_student
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.teachers.detector import map_channels
from cls2det.teachers.encoder import load_encoder
from cls2det.teachers.normalisation import Renormalise
from cls2det.training.detector import DetectorTraining
from cls2det_ops import debug_values, roi_crop
from training_cases import DIGITS, FITS, batch, distill, logged, weights_in

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SAME = {"image_mean": MEAN, "image_std": STD}


def network():
    torch.manual_seed(5)
    network = torchvision.models.resnet18().eval()
    network.fc = torch.nn.Identity()
    return network


def encoder(**options):
    return Encoder(network(), 32, mean=MEAN, std=STD, **options)


def positives(count=5):
    generator = torch.Generator().manual_seed(3)
    target_boxes = torch.tensor([[10.0, 10, 60, 70], [30, 20, 90, 60], [5, 40, 45, 95]])
    matched_idxs = torch.tensor([0, 0, 1, 2, 2])[:count]
    return Positives(
        images=torch.randn(2, 3, 96, 96, generator=generator),
        logits=torch.randn(count, 4),
        boxes=(target_boxes[matched_idxs] + torch.randn(count, 4, generator=generator)).requires_grad_(),
        image_index=torch.tensor([0, 0, 0, 1, 1])[:count],
        matched_idxs=matched_idxs,
        target_boxes=target_boxes,
        target_labels=torch.tensor([2, 3, 1]),
        target_image_index=torch.tensor([0, 0, 1]),
        head="softmax",
        background="first",
    )


def maps(*sides, channels=8):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(2, channels, side, side, generator=generator).requires_grad_() for side in sides]


def teachers_embeddings(batch, margins=(0.0, 0.25)):
    total = 0
    for margin in margins:
        x1, y1, x2, y2 = batch.target_boxes.unbind(1)
        width, height = x2 - x1, y2 - y1
        boxes = torch.stack([x1 - margin * width, y1 - margin * height, x2 + margin * width, y2 + margin * height], 1)
        crops = roi_crop(batch.images, boxes, batch.target_image_index, 32, padding_mode="border", clip=False)
        total = total + F.normalize(network()(crops), dim=1)
    return F.normalize(total, dim=1).detach()


def test_embeddings_are_of_the_box_and_of_a_larger_one():
    batch = positives()
    renormalise = Renormalise(MEAN, STD, MEAN, STD)
    ours = encoder().embeddings(batch.images, batch.target_boxes, batch.target_image_index, renormalise)
    assert ours.shape == (3, 512) and not ours.requires_grad
    torch.testing.assert_close(ours, teachers_embeddings(batch), rtol=1e-4, atol=1e-5)
    other = Renormalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), MEAN, STD)  # pictures of 0 to 1
    pictures = batch.images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    theirs = encoder().embeddings(pictures, batch.target_boxes, batch.target_image_index, other)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)


def students_embeddings(regions, batch, levels):
    """By torchvision's RoIAlign, which has the same samples as a crop averaged over the box, one map per box."""
    parts = torch.zeros(len(batch), regions.encoder.size)
    chosen = levels_of(batch.boxes.detach(), [level.shape[-1] / 96 for level in levels])
    for number, level in enumerate(levels):
        align = MultiScaleRoIAlign(["0"], 1, sampling_ratio=14)
        boxes = [batch.boxes.detach()[batch.image_index == image] for image in range(2)]
        pooled = align({"0": level}, boxes, [(96, 96)] * 2)
        parts = torch.where((chosen == number)[:, None], regions.adapters[number](pooled).flatten(1), parts)
    return F.normalize(parts, dim=1)


@pytest.mark.parametrize("form", ["l1", "queue"])
def test_the_term_is_that_of_the_formula(form):
    batch, levels = positives(), maps(48, 24)
    torch.manual_seed(0)
    regions = Regions(RegionsSettings(form=form, queue_size=16), encoder(), [8, 8], **SAME)
    queue = regions.queue.clone() if form == "queue" else None
    term = regions(batch, levels)["regions"]
    student, teacher = regions.embeddings(batch, levels), teachers_embeddings(batch)[batch.matched_idxs]
    if queue is None:
        expected = (student - teacher).abs().sum(1).mean()
    else:
        wanted = (teacher @ queue.T / 0.07).softmax(1)
        expected = (wanted * (wanted.log() - (student @ queue.T / 0.07).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(term, expected, rtol=1e-3, atol=1e-5)
    gradients = torch.autograd.grad(term, [*levels, *regions.parameters()], retain_graph=True)
    theirs = torch.autograd.grad(expected, [*levels, *regions.parameters()], retain_graph=True)
    for ours, expectation in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(ours, expectation, rtol=0.01, atol=1e-4 * expectation.abs().max().item() + 1e-7)
    assert torch.autograd.grad(term, batch.boxes, allow_unused=True)[0] is None


def test_the_students_embedding_is_of_its_own_box_on_the_map_for_its_size():
    batch, levels = positives(), maps(48, 24)
    torch.manual_seed(0)
    regions = Regions(RegionsSettings(), encoder(), [8, 8], **SAME)
    # RoIAlign's pixel centres lie half a pixel away from roi_crop's corners at this density, hence the tolerance
    cosine = F.cosine_similarity(regions.embeddings(batch, levels), students_embeddings(regions, batch, levels))
    assert cosine.min() > 0.9, cosine


def test_a_box_is_read_on_the_coarsest_map_with_fourteen_cells_along_it():
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 111, 111], [0, 0, 112, 112], [0, 0, 448, 112], [0, 0, 900, 900]])
    assert levels_of(boxes, [1 / 8, 1 / 16, 1 / 32]).tolist() == [0, 0, 0, 1, 2]


def test_the_queue_holds_the_newest_embeddings_and_goes_round():
    batch, levels = positives(), maps(48)
    regions = Regions(RegionsSettings(form="queue", queue_size=4), encoder(), [8], **SAME)
    newest = teachers_embeddings(batch)
    regions(batch, levels)
    torch.testing.assert_close(regions.queue[:3], newest, rtol=1e-3, atol=1e-5)
    regions(batch, levels)
    torch.testing.assert_close(regions.queue, newest[[1, 2, 2, 0]], rtol=1e-3, atol=1e-5)
    state = copy.deepcopy(regions.state_dict())
    regions.eval()(batch, levels)
    assert all(torch.equal(value, state[name]) for name, value in regions.state_dict().items())
    assert not [name for name in state if "encoder" in name]


def test_no_positives_give_nothing_and_every_adapter_a_gradient():
    regions = Regions(RegionsSettings(), encoder(), [8, 8], **SAME)
    term = regions(positives(0), maps(48, 24))["regions"]
    assert term == 0
    term.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in regions.parameters())


def model_of(student, settings):
    torch.manual_seed(0)
    built = build_student(student, 10)
    distillation = Distillation(built, settings={"regions": settings}, encoder=encoder())
    return DetectorTraining(built, DIGITS, distillation=distillation).train()


@pytest.mark.parametrize("student, form", [*((student, "l1") for student in FITS), ("ssd_compact", "queue")])
def test_every_student_learns_from_an_encoder(scenes, student, form):
    model = model_of(student, RegionsSettings(form=form, queue_size=64, weight=1.0))
    pictures, history = batch(scenes, 2), []
    encoders = {id(parameter) for parameter in model.distillation.regions.encoder.reader.parameters()}
    assert not encoders & {id(parameter) for parameter in model.parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    before = {name: value.clone() for name, value in model.named_parameters()}
    for step in range(8):
        torch.manual_seed(step)
        losses, terms = model.losses(*pictures)
        history.append(terms["regions"].item())
        if step == 0:  # as under DDP: nothing that trains is left without a gradient
            (terms["regions"] + sum(losses.values())).backward(retain_graph=True)
            assert [name for name, value in model.named_parameters() if value.grad is None] == []
            optimizer.zero_grad()
        terms["regions"].backward()
        optimizer.step()
    assert sum(history[-2:]) < 0.95 * sum(history[:2]), history
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert any(name.startswith("detector.backbone") or "backbone" in name for name in moved)
    assert any(name.startswith("distillation.regions.adapters") for name in moved)


def test_the_saved_student_has_no_adapter(tmp_path):
    model = model_of("ssd_compact", RegionsSettings())
    save_student(tmp_path / "weights.pt", model.detector, name="ssd_compact", classes=DIGITS)
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)["weights"]
    assert not [name for name in weights if "adapter" in name]
    assert {name.removeprefix("detector.") for name in model.state_dict() if name.startswith("detector.")} == set(weights)
    assert map_channels(model.detector) == [adapter.in_channels for adapter in model.distillation.regions.adapters]


def test_what_is_missing_is_told():
    student = build_student("ssd_compact", 10)
    with pytest.raises(ValueError, match="regions needs an image encoder as teacher: give --encoder"):
        Distillation(student, settings={"regions": RegionsSettings()})
    with pytest.raises(ValueError, match="regions reads the student's feature maps, and there are none"):
        Regions(RegionsSettings(), encoder(), [], **SAME)
    with pytest.raises(ValueError, match="an encoder needs a crop_size from 1 and margins from 0"):
        encoder(margins=())


def test_from_the_command_line_with_resume(scenes, teacher_weights, tmp_path, monkeypatch):
    """weights.pt of a teacher as the encoder; a broken run goes on with the adapters and the queue that it had."""
    training_step = DetectorTraining.training_step

    def run(folder, stop_at=None):
        def watched(self, batch, index):
            if self.global_step == stop_at:
                raise KeyboardInterrupt
            return training_step(self, batch, index)

        monkeypatch.setattr(DetectorTraining, "training_step", watched)
        options = {"distillers": ["regions"], "regions": RegionsSettings(form="queue", queue_size=32)}
        distill(scenes, tmp_path / folder, encoder=str(teacher_weights), **options)
        return weights_in(tmp_path / folder / "weights.pt")

    unbroken = run("unbroken")
    assert {float(row["regions"]) > 0 for row in logged(tmp_path / "unbroken")} == {True}
    with pytest.raises(KeyboardInterrupt):
        run("broken", stop_at=3)
    state = torch.load(tmp_path / "broken" / "last.ckpt", weights_only=True)["state_dict"]
    assert "distillation.regions.queue" in state and not any("encoder" in name for name in state)
    resumed = run("broken")
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    assert not any("adapter" in name for name in unbroken)


@pytest.mark.parametrize("source", ["resnet18", "timm:test_resnet"])
def test_an_encoder_by_name(source):
    if source.startswith("timm:"):
        pytest.importorskip("timm")
    encoder = load_encoder(source, "none", crop_size=64)
    images, boxes = torch.randn(1, 3, 96, 96), torch.tensor([[10.0, 10, 60, 70]])
    rows = encoder.embeddings(images, boxes, torch.tensor([0]), Renormalise(MEAN, STD, encoder.mean, encoder.std))
    assert rows.shape == (1, encoder.size) and encoder.size > 8 and rows.norm().item() == pytest.approx(1)
    with pytest.raises(ValueError, match="no network 'resnet19'"):
        load_encoder("resnet19", "none")
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_encoder("nothing.pt")


def test_the_queue_is_a_right_call_to_debug_mode():
    regions = Regions(RegionsSettings(form="queue", queue_size=16), encoder(), [8], **SAME)
    with warnings.catch_warnings(), debug_values():
        warnings.simplefilter("error")
        regions(positives(), maps(48))


def test_a_teacher_with_two_heads_is_an_encoder_without_either(tmp_path):
    pytest.importorskip("timm")
    architecture = "timm:deit_tiny_distilled_patch16_224"
    teacher = CropClassifier(["a", "b", "c"], architecture=architecture, crop_size=32)
    teacher.save(tmp_path / "weights.pt")
    assert load_encoder(str(tmp_path / "weights.pt")).size == 192
