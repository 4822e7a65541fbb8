"""The bank: its file, what is in it against the live teacher, stops and processes, averages."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from bank_cases import CLASSES, KD_CLS, batch, data, make, positives, teacher, written
from cls2det.commands import bank as commands
from cls2det.data.augment import AUGMENTATIONS, MIRRORING, get_augmentation
from cls2det.data.dataset import DetectionData
from cls2det.data.loader import collate, train_loader
from cls2det.data.origins import make_origins
from cls2det.distill import BankAverage, BoxDistiller, ClassifierSettings, Regions, RegionsSettings
from cls2det.models.positives import Positives
from cls2det.models.students import build_student
from cls2det.teachers import bank_file
from cls2det.teachers.bank import Bank
from cls2det.teachers.calibration import best_temperature, log_likelihood
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.teachers.detector import map_channels
from cls2det.teachers.encoder import load_encoder
from cls2det.teachers.zero_shot import zero_shot_teacher

# ---- origins: annotation ids through augmentation, loader and detector


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_origins_follow_the_boxes(data, name):
    opened = DetectionData(data, "train", augment=get_augmentation(name), origins=True)
    plain = DetectionData(data, "train", augment=get_augmentation(name))
    whole = {
        id: (box, label)
        for target in opened.targets
        for id, box, label in zip(target["annotation_ids"].tolist(), target["boxes"], target["labels"], strict=True)
    }
    mirrored = []
    for index in range(len(opened)):
        for seed in range(6):
            image, target = opened[index, seed]
            same_image, same_target = plain[index, seed]
            assert torch.equal(image, same_image) and torch.equal(target["boxes"], same_target["boxes"])
            assert torch.equal(target["labels"], same_target["labels"]) and "annotation_ids" not in target
            origins = target["origins"]
            assert len(origins) == len(target["boxes"]) and (origins["visible"] >= 0).all() and (origins["visible"] <= 1).all()
            boxes = torch.stack([whole[id][0] for id in origins["annotation_id"].tolist()])
            assert torch.equal(target["labels"], torch.stack([whole[id][1] for id in origins["annotation_id"].tolist()]))
            if name in ("none", "flip", "ssd", "ssdlite"):  # which do not scale
                shares = (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
                assert np.allclose(origins["visible"], shares.numpy(), atol=1e-5)
            assert len(set(origins["mirrored"].tolist())) == 1
            is_mirrored = bool(origins["mirrored"][0])
            mirrored.append(is_mirrored)
            is_whole = origins["visible"] > 0.999
            before, after = boxes[is_whole][:, 0], target["boxes"][is_whole][:, 0] * (-1 if is_mirrored else 1)
            widths = (boxes[:, 2] - boxes[:, 0])[is_whole]
            if is_mirrored:
                after = after - (target["boxes"][is_whole][:, 2] - target["boxes"][is_whole][:, 0])
            if len(before) > 1 and (before[0] - before[1]).abs() > widths.max() * 0.1:
                assert (before[0] < before[1]) == (after[0] < after[1])  # their order from left to right
    assert any(mirrored) == (name in MIRRORING) and not all(mirrored)


def test_views_are_drawn_by_seed_and_place_whatever_the_workers(data):
    opened = DetectionData(data, "train", augment=get_augmentation("flip"), labelled_only=True, origins=True)

    def draws(workers, epoch=0):
        loader = train_loader(opened, batch_size=4, steps_per_epoch=3, seed=5, loader_workers=workers)
        loader.sampler.set_epoch(epoch)
        return [target["origins"] for _, targets in loader for target in targets]

    first = np.concatenate(draws(0))
    assert np.array_equal(first, np.concatenate(draws(2)))
    assert not np.array_equal(first["draw"], np.concatenate(draws(0, epoch=1))["draw"])
    assert len(set((first["draw"] % 3).tolist())) == 3
    one, again, other = (opened[0, seed][1]["origins"]["draw"].tolist() for seed in (7, 7, 8))
    assert one == again and one != other


def test_origins_of_the_other_forms_of_positives():
    boxes = torch.tensor([[0.0, 0, 9, 9], [5, 5, 20, 20], [0, 0, 9, 9]])
    origins = make_origins([7, 3, 7], mirrored=[True, False, True])
    common = {"images": torch.zeros(1, 3, 30, 30), "head": "softmax", "background": "first"}
    matched = Positives.from_matched(
        **common,
        logits=torch.zeros(3, 3),
        boxes=boxes,
        image_index=torch.zeros(3),
        matched_boxes=boxes,
        matched_labels=torch.tensor([1, 2, 1]),
        origins=origins,
    )
    assert len(matched.origins) == 2
    assert [matched.origins["annotation_id"][row] for row in matched.matched_idxs] == [7, 3, 7]
    lists = {"logits": [torch.zeros(3, 3)], "boxes": [boxes], "matched_idxs": [torch.arange(3)]}
    lists |= {"target_boxes": [boxes], "target_labels": [torch.ones(3)]}
    assert len(Positives.from_lists(**common, **lists, origins=[origins]).origins) == 3
    with pytest.raises(ValueError, match="expected origins of 3 ground truths, found 2"):
        Positives.from_lists(**common, **lists, origins=[origins[:2]])


# ---- the file


def test_what_is_in_the_file(data, teacher, written):
    bank = Bank(written)
    opened = DetectionData(data, "train", origins=True)
    boxes = sum(len(target["boxes"]) for target in opened.targets)
    assert bank.annotation_ids.tolist() == list(range(1, boxes + 1)) and bank.classes == CLASSES
    assert bank.arrays["logits"].shape == (boxes, 3, 2, 3) and bank.arrays["logits"].dtype == np.float16
    about = bank.about
    assert about["loss"] == "ce" and about["teacher"]["source"] == str(teacher) and len(about["teacher"]["digest"]) == 16
    assert about["data"]["boxes"][0] == boxes and about["augmentation"] == "ssd" and about["flip"] is True
    measured = about["calibration"]["by head"]["softmax"]
    logits, truth = torch.tensor(bank.arrays["logits"][:, 0, 0]).float(), torch.tensor(bank.arrays["labels"]) - 1
    assert measured["accuracy"] == pytest.approx(100 * (logits.argmax(1) == truth).double().mean().item())
    assert measured["log_likelihood"] == pytest.approx(log_likelihood(logits, truth, sigmoid=False))
    assert set(bank.arrays) == {"annotation_ids", "labels", "logits"}
    pixels = [bank(np.array([1]), [side], draws=[view]) for side in (False, True) for view in range(3)]
    assert len({tuple(row.flatten().tolist()) for row in pixels}) == 6  # views and sides differ


def test_other_readers_of_safetensors_read_it(written):
    numpy = pytest.importorskip("safetensors.numpy")
    tensors = numpy.load_file(written)
    assert all(np.array_equal(tensors[name], array) for name, array in Bank(written).arrays.items())


@torch.no_grad()
def test_rows_are_the_teachers_logits_of_the_crop_and_of_the_mirrored_crop(data, teacher, written):
    bank, network = Bank(written), CropClassifier.load(teacher)
    opened = DetectionData(data, "train", origins=True)
    for index in (0, 5):
        crops, _ = network.crops_of_batch(collate([opened[index]]))
        ids = opened.targets[index]["annotation_ids"]
        expected, mirrored = network(crops), network(crops.flip(3))
        assert torch.allclose(bank(ids, draws=[0] * len(ids)), expected, atol=0.02)
        assert torch.allclose(bank(ids, np.ones(len(ids)), draws=[0] * len(ids)), mirrored, atol=0.02)
        assert (expected - mirrored).abs().max() > 0.05


def test_views_are_drawn_from_the_generator(written):
    bank, ids = Bank(written), np.arange(1, 20)
    first, again = (bank(ids, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    other = bank(ids, generator=torch.Generator().manual_seed(2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    views = bank_rows(bank, ids)
    assert all(any(torch.equal(row, view) for view in views[:, place]) for place, row in enumerate(first))
    assert bank([]).shape == (0, 3)
    with pytest.raises(ValueError, match=r"nothing of 2 annotations \(-1, 999\)"):
        bank([1, 999, -1])


def bank_rows(bank, ids):
    return torch.stack([bank(ids, draws=np.full(len(ids), view)) for view in range(bank.views)])


def test_margins_enlarge_the_crop(data, teacher, tmp_path):
    make(data, tmp_path / "two", teacher, views=2, margins=[0.0, 0.3])
    make(data, tmp_path / "wide", teacher, margins=[0.3])
    two, wide = Bank(tmp_path / "two"), Bank(tmp_path / "wide")
    ids = two.annotation_ids
    assert torch.equal(two(ids, draws=np.ones(len(ids))), wide(ids))
    assert (two(ids, draws=np.zeros(len(ids))) - wide(ids)).abs().max() > 0.05


def test_views_of_mirrored_pictures_are_turned_back(data, teacher, tmp_path):
    make(data, tmp_path / "bank", teacher, views=4, margins=[0.0] * 4, augmentation="flip")
    views = Bank(tmp_path / "bank").arrays["logits"].astype(np.float32)
    assert np.allclose(views, views[:, :1], atol=0.02) and np.abs(views[:, :, 0] - views[:, :, 1]).max() > 0.05


class Stopped(Exception):
    pass


def stop_at(step):
    def progress(done, total, text):
        if done >= step:
            raise Stopped

    return progress


def test_a_stopped_command_goes_on_to_the_same_bytes(data, teacher, tmp_path):
    options = {"views": 2, "augmentation": "ssd", "batch_size": 2}
    make(data, tmp_path / "whole", teacher, **options)
    path = tmp_path / "stopped"
    with pytest.raises(Stopped):
        make(data, path, teacher, progress=stop_at(6), **options)
    assert not path.exists()
    with pytest.raises(FileNotFoundError, match="there is one that is not finished"):
        Bank(path)
    with pytest.raises(FileExistsError, match="with other options or data"):
        make(data, path, teacher, views=2, augmentation="ssdlite", batch_size=2)
    result = make(data, path, teacher, **options)
    assert result["crops of this call"] == 36 * 4 * 6 // 12
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["stopped", "whole"]
    before = path.stat().st_mtime_ns
    assert make(data, path, teacher, **options)["crops of this call"] == 0  # it is there
    assert path.stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="is a bank with other options or data"):
        make(data, path, teacher, **options | {"views": 3})


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(data, teacher, tmp_path):
    for devices in (1, 2):
        make(data, tmp_path / str(devices), teacher, views=3, augmentation="ssd", batch_size=5, devices=devices)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_shares_of_several_processes_and_workers_make_the_same_bytes(data, teacher, written, tmp_path, monkeypatch):
    done = []

    def in_turn(options, steps, left, images, report):
        for rank in reversed(range(options.devices)):
            commands._work(rank, options, steps, left)
            done.append(int(bank_file.Part(options.out, steps).done.sum()))

    monkeypatch.setattr(commands, "_in_processes", in_turn)
    options = {"views": 3, "augmentation": "ssd", "batch_size": 2}
    make(data, tmp_path / "one", teacher, **options)
    make(data, tmp_path / "three", teacher, devices=3, **options)
    assert done == [2, 4, 6]
    make(data, tmp_path / "workers", teacher, loader_workers=2, **options)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "three").read_bytes() == (tmp_path / "workers").read_bytes()
    small, whole = Bank(tmp_path / "one").arrays, Bank(written).arrays
    assert np.allclose(small["logits"], whole["logits"], atol=0.02)  # other batches, other sums


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a teacher .*, of an encoder .*, or of both; found neither"),
        ({"teacher": 1, "views": 2}, "would be the same crops again"),
        ({"teacher": 1, "views": 0}, "views must be at least 1, got 0"),
        ({"teacher": 1, "margins": [0.0, 0.1]}, "2 margins, and 1 views"),
        ({"teacher": 1, "margins": [-0.1]}, "margins must be shares from 0"),
        ({"encoder": "resnet18", "encoder_weights": "none"}, "give --student"),
        ({"teacher": 1, "student": "ssdlite_mobilenet_v2"}, "train the teacher with --student"),
    ],
)
def test_options_that_make_no_sense(data, teacher, tmp_path, options, message):
    options = {name: teacher if name == "teacher" else value for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        make(data, tmp_path / "bank", **options)
    assert not list(tmp_path.iterdir())


# ---- the terms


@pytest.mark.parametrize("name", ["ssd_compact", "fasterrcnn_compact", "retinanet_compact", "detr_compact"])
def test_kd_cls_by_the_bank_is_that_of_the_live_teacher(data, tmp_path, name):
    if name.startswith("detr"):
        pytest.importorskip("transformers")
    torch.manual_seed(3)
    loss = "bce" if name.startswith("retinanet") else "ce"
    live = CropClassifier(CLASSES, student=name, loss=loss).eval()
    live.save(tmp_path / "weights.pt")
    make(data, tmp_path / "bank", tmp_path / "weights.pt", flip=True)
    student = build_student(name, 3).train()
    images, targets = batch(data, "flip", 6)
    assert len({bool(target["origins"]["mirrored"][0]) for target in targets}) == 2
    taken = positives(student, images, targets).positives
    common = {"image_mean": student.transform.image_mean, "image_std": student.transform.image_std}
    by_bank = BoxDistiller(None, KD_CLS, bank=Bank(tmp_path / "bank"), **common)
    by_teacher = BoxDistiller(live, KD_CLS, **common)
    ours, theirs = by_bank(taken)["kd_cls"], by_teacher(taken)["kd_cls"]
    assert ours.item() == pytest.approx(theirs.item(), rel=2e-3)
    assert by_bank.accuracy == by_teacher.accuracy
    (gradient,) = torch.autograd.grad(ours, taken.logits, retain_graph=True)
    (expected,) = torch.autograd.grad(theirs, taken.logits)
    assert gradient.abs().max() > 0 and torch.allclose(gradient, expected, atol=2e-3 * expected.abs().max().item())
    # the mirrored view is what makes them equal: without it, they differ more
    blind = dataclasses.replace(taken, origins=make_origins(taken.origins["annotation_id"]))
    assert abs(by_bank(blind)["kd_cls"].item() - theirs.item()) > 3 * abs(ours.item() - theirs.item())


def cut_positives(data, student):
    taken = positives(student, *batch(data)).positives
    origins = taken.origins.copy()
    origins["visible"][[0, 4]] = 0.4
    return dataclasses.replace(taken, origins=origins)


def test_cut_boxes_are_left_out_or_go_to_the_teacher(data, teacher, written):
    student = build_student("ssd_compact", 3).train()
    taken = cut_positives(data, student)
    common = {"image_mean": student.transform.image_mean, "image_std": student.transform.image_std, "explain": False}
    bank = Bank(written)
    alone = BoxDistiller(None, KD_CLS, bank=bank, **common)(taken)["kd_cls"]
    (gradient,) = torch.autograd.grad(alone, taken.logits, retain_graph=True)
    is_cut = torch.isin(taken.matched_idxs, torch.tensor([0, 4]))
    assert is_cut.any() and not gradient[is_cut].any() and gradient[~is_cut].abs().amax(1).min() > 0
    all_in = BoxDistiller(None, KD_CLS, bank=bank, bank_visible=0.3, **common)(taken)["kd_cls"]
    (expected,) = torch.autograd.grad(all_in, taken.logits, retain_graph=True)
    assert torch.equal(gradient[~is_cut], expected[~is_cut]) and expected[is_cut].any()
    other = CropClassifier.load(teacher)  # a teacher whose answers are its own
    with torch.no_grad():
        next(module for module in reversed(list(other.modules())) if isinstance(module, torch.nn.Linear)).weight.mul_(-1)
    beside = BoxDistiller(other, KD_CLS, bank=bank, **common)(taken)["kd_cls"]
    (mixed,) = torch.autograd.grad(beside, taken.logits, retain_graph=True)
    live = BoxDistiller(other, KD_CLS, **common)(taken)["kd_cls"]
    (of_live,) = torch.autograd.grad(live, taken.logits)
    assert torch.equal(mixed[~is_cut], expected[~is_cut]) and torch.allclose(mixed[is_cut], of_live[is_cut], atol=1e-6)
    with pytest.raises(ValueError, match="these positives have no origins"):
        BoxDistiller(None, KD_CLS, bank=bank, **common)(dataclasses.replace(taken, origins=None))


def test_kd_loc_runs_the_low_layers_of_the_teacher_alone(data, teacher, written):
    student = build_student("ssd_compact", 3).train()
    taken = positives(student, *batch(data)).positives
    common = {"image_mean": student.transform.image_mean, "image_std": student.transform.image_std}
    settings = ClassifierSettings(kd_loc_weight=2.0, loc_weight=2.0, feature_layers=("layer1",))
    network = CropClassifier.load(teacher)
    ours, theirs = BoxDistiller(network, settings, bank=Bank(written), **common), BoxDistiller(network, settings, **common)
    terms, expected = ours(taken), theirs(taken)
    assert {name: terms[name].item() for name in ("kd_loc", "loc")} == {
        name: expected[name].item() for name in ("kd_loc", "loc")
    }
    assert "logits" not in ours.on_targets(torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="give the teacher beside it"):
        BoxDistiller(None, settings, bank=Bank(written), **common)


def test_regions_reads_embeddings(data, tmp_path):
    torch.manual_seed(0)
    source = tmp_path / "weights.pt"
    CropClassifier(CLASSES).save(source)
    make(data, tmp_path / "bank", encoder=str(source), student="ssd_compact", flip=True)
    bank, encoder = Bank(tmp_path / "bank"), load_encoder(str(source))
    student = build_student("ssd_compact", 3).train()
    images, targets = batch(data, "flip", 6)
    outputs = positives(student, images, targets).student_outputs
    common = {"image_mean": student.transform.image_mean, "image_std": student.transform.image_std}
    maps, channels = list(outputs.features.values()), map_channels(student)
    for form in ("l1", "queue"):
        settings = RegionsSettings(form=form, queue_size=64)
        torch.manual_seed(1)
        ours = Regions(settings, None, channels, bank=bank, **common)
        torch.manual_seed(1)
        theirs = Regions(settings, encoder, channels, **common)
        value, expected = ours(outputs.positives, maps)["regions"], theirs(outputs.positives, maps)["regions"]
        assert value.item() == pytest.approx(expected.item(), rel=5e-3)
        origins = outputs.positives.origins.copy()
        origins["visible"][1] = 0.1
        cut = dataclasses.replace(outputs.positives, origins=origins)
        is_cut = cut.matched_idxs == 1
        torch.manual_seed(1)
        without = Regions(settings, None, channels, bank=bank, **common)
        kept = dataclasses.replace(
            cut, **{name: getattr(cut, name)[~is_cut] for name in ("logits", "boxes", "image_index", "matched_idxs")}
        )
        full = without(kept, maps)["regions"].item() * len(kept) / len(cut)
        torch.manual_seed(1)
        without = Regions(settings, None, channels, bank=bank, **common)
        assert is_cut.any() and without(cut, maps)["regions"].item() == pytest.approx(full, rel=1e-5)
        if form == "queue":
            assert without.place == len(origins) - 1 and without.queue.norm(dim=1).allclose(torch.ones(64), atol=1e-3)
        beside = Regions(settings, encoder, channels, bank=bank, **common)
        beside.load_state_dict(without.state_dict())
        assert beside(cut, maps)["regions"].isfinite()
    with pytest.raises(ValueError, match="found neither"):
        Regions(RegionsSettings(), None, channels, **common)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_zero_shot_teacher(data, tmp_path, kind):
    pytest.importorskip("transformers")
    from foreign_networks import hf_folder

    folder = hf_folder(tmp_path / kind, kind)
    make(data, tmp_path / "bank", f"zero-shot:{folder}", student="ssd_compact", encoder=f"hf:{folder}", prompts=["the {}"])
    bank = Bank(tmp_path / "bank")
    assert bank.has_logits and bank.has_embeddings and bank.about["teacher"]["own_normalisation"]
    assert bank.about["teacher"]["digest"] and bank.about["encoder"]["digest"]
    live = zero_shot_teacher(str(folder), CLASSES, ["the {}"])
    student = build_student("ssd_compact", 3).train()
    taken = positives(student, *batch(data)).positives
    common = {"image_mean": student.transform.image_mean, "image_std": student.transform.image_std}
    ours, theirs = BoxDistiller(None, KD_CLS, bank=bank, **common), BoxDistiller(live, KD_CLS, **common)
    assert ours(taken)["kd_cls"].item() == pytest.approx(theirs(taken)["kd_cls"].item(), rel=5e-3)


# ---- several banks


def test_several_banks_average_probabilities(data, teacher, written, tmp_path):
    torch.manual_seed(9)
    weak = CropClassifier(CLASSES).eval()
    weak.save(tmp_path / "weak.pt")
    make(data, tmp_path / "weak", tmp_path / "weak.pt", flip=True)
    good, poor = Bank(written), Bank(tmp_path / "weak")
    ids, draws = good.annotation_ids, np.arange(len(good.annotation_ids))
    parts = [bank(ids, draws=draws).double().softmax(1) for bank in (good, poor)]
    likelihood = [np.exp(bank.about["calibration"]["by head"]["softmax"]["log_likelihood"]) for bank in (good, poor)]
    average = BankAverage([good, poor], "softmax")
    assert average.weights == pytest.approx([value / sum(likelihood) for value in likelihood]) and average.weights[0] > 0.6
    expected = average.weights[0] * parts[0] + average.weights[1] * parts[1]
    assert torch.allclose(average(ids, draws=draws).double().softmax(1), expected, atol=1e-5)
    assert torch.allclose(BankAverage([good, good], "softmax")(ids, draws=draws).softmax(1).double(), parts[0], atol=1e-5)
    one = BankAverage([good, poor], "sigmoid", [1, 3])
    expected = 0.25 * good(ids, draws=draws).sigmoid() + 0.75 * poor(ids, draws=draws).sigmoid()
    assert torch.allclose(one(ids, draws=draws).sigmoid(), expected, atol=1e-5)
    alone = BankAverage([good, poor], "softmax", [1, 0])(ids, draws=draws)
    assert torch.allclose(alone.softmax(1).double(), parts[0], atol=1e-5)
    with pytest.raises(ValueError, match="a weight from 0 for each of 2 banks, found"):
        BankAverage([good, poor], "softmax", [1.0])
    reordered = average.for_classes(["blue", "red", "green"])
    assert torch.allclose(reordered(ids, draws=draws), average(ids, draws=draws)[:, [2, 0, 1]], atol=1e-5)
    with pytest.raises(ValueError, match="only the data has 'white'"):
        good.for_classes(["white", "red", "green"])


def test_columns_of_the_background(data, tmp_path, written):
    torch.manual_seed(9)
    teacher = CropClassifier(CLASSES, background=True).eval()
    teacher.save(tmp_path / "weights.pt")
    make(data, tmp_path / "bank", tmp_path / "weights.pt")
    bank, ids = Bank(tmp_path / "bank"), [1, 2, 3]
    assert bank.has_background and bank(ids).shape == (3, 4)
    assert torch.equal(bank.for_classes(["blue", "red", "green"])(ids), bank(ids)[:, [2, 0, 1, 3]])
    with pytest.raises(ValueError, match="must all have a column for the background, or none"):
        BankAverage([bank, Bank(written)], "softmax")
    with pytest.raises(ValueError, match=r"gives 4 logits, and .* has 3"):
        BoxDistiller(teacher, KD_CLS, bank=Bank(written), image_mean=(0, 0, 0), image_std=(1, 1, 1))


def test_temperature():
    torch.manual_seed(0)
    logits = 2 * torch.randn(4000, 5)
    classes = torch.multinomial(logits.softmax(1), 1).flatten()
    assert best_temperature(3 * logits, classes, sigmoid=False) == pytest.approx(3, rel=0.05)
    assert log_likelihood(logits, classes, sigmoid=False) > log_likelihood(3 * logits, classes, sigmoid=False)
    truth = torch.tensor([0, 1])
    of_sigmoids = -torch.nn.BCEWithLogitsLoss(reduction="sum")(torch.tensor([[2.0, -1], [0.5, 3]]), torch.eye(2)) / 2
    assert log_likelihood(torch.tensor([[2.0, -1], [0.5, 3]]), truth, sigmoid=True) == pytest.approx(of_sigmoids.item())
