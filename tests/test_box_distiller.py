"""BoxDistiller in a trainer of one's own: any detector's positives, any teacher, and nothing of the teacher in the host's state."""

import copy
import dataclasses

import pytest
import torch

pytest.importorskip("torchvision")

import torchvision

from cls2det.distill import BoxDistiller, ClassifierDistiller, ClassifierSettings
from cls2det.models.positives import Positives
from cls2det.models.students import build_student
from cls2det.models.taps import PositiveTap
from cls2det.teachers.crop_classifier import CropClassifier
from cls2det.teachers.network import teacher_from
from cls2det_ops import kd_softmax_loss, roi_crop

CLASSES = ["ant", "bee", "cat"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ALL = ClassifierSettings(kd_loc_weight=2.0, loc_weight=2.0, feature_layers=("layer1",), feature_pools=(4,), pixel_size=16)
TERMS = {"kd_cls", "kd_loc", "loc"}


def network(columns=3):
    torch.manual_seed(5)
    return torchvision.models.resnet18(num_classes=columns).eval()


def foreign(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), classes=CLASSES):
    return teacher_from(network(), classes, 32, mean=mean, std=std)


def batch(size=96):
    torch.manual_seed(1)
    boxes = [[[10.0, 12, 42, 44], [50, 40, 90, 88]], [[20.0, 20, 60, 62]]]
    labels = [[1, 3], [2]]
    targets = [{"boxes": torch.tensor(box), "labels": torch.tensor(label)} for box, label in zip(boxes, labels, strict=True)]
    return [torch.rand(3, size, size) for _ in targets], targets


def tapped(model):
    tap = PositiveTap(model)
    torch.manual_seed(2)
    with tap:
        losses = model(*batch())
    return tap.positives, sum(losses.values())


def ssd():
    torch.manual_seed(0)
    return build_student("ssd_compact", len(CLASSES), 96).train()


def of_student(teacher, model, settings=ALL, **options):
    transform = model.transform
    return BoxDistiller(teacher, settings, image_mean=transform.image_mean, image_std=transform.image_std, **options)


def test_our_own_teacher_gives_the_bits_of_the_training_layer():
    model = ssd()
    torch.manual_seed(4)
    teacher = CropClassifier(CLASSES, architecture="resnet18", width=8, crop_size=32)
    positives, _ = tapped(model)
    ours = of_student(teacher, model)(positives)
    theirs = ClassifierDistiller(teacher, ALL, CLASSES, model.transform)(positives)
    assert ours.keys() == TERMS and all(torch.equal(ours[name], theirs[name]) and ours[name] > 0 for name in TERMS)


def test_a_teacher_gets_crops_in_its_own_normalisation():
    model, teacher = ssd(), foreign()
    positives, _ = tapped(model)
    term = of_student(teacher, model)(positives)["kd_cls"]
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.transform.image_mean, model.transform.image_std))
    pictures = positives.images * std + mean
    crops = roi_crop(pictures, positives.target_boxes, positives.target_image_index, 32, padding_mode="border", clip=False)
    logits = teacher.network((crops - 0.5) / 0.25)
    expected = 0.4 * kd_softmax_loss(positives.logits, logits, positives.matched_idxs, 2.0, normalizer=len(positives))
    torch.testing.assert_close(term, expected, rtol=1e-4, atol=1e-6)
    wrong = of_student(foreign(model.transform.image_mean, model.transform.image_std), model)(positives)["kd_cls"]
    assert abs(wrong - expected) > 1e-3 * expected, "the normalisation makes no difference here"


def test_the_scale_of_the_pictures_does_not_matter():
    """Pictures of 0 to 1, of 0 to 255 and normalised ones, each with its mean and deviation, give the same terms."""
    positives, _ = tapped(ssd())
    pictures = torch.rand(positives.images.shape)
    results = []
    for mean, std in ((MEAN, STD), ((0.0,) * 3, (1.0,) * 3), ((0.0,) * 3, (1 / 255,) * 3)):
        columns = [torch.tensor(values)[:, None, None] for values in (mean, std)]
        images = (pictures - columns[0]) / columns[1]
        distiller = BoxDistiller(foreign(), ALL, image_mean=mean, image_std=std)
        results.append(distiller(dataclasses.replace(positives, images=images)))
    for terms in results[1:]:
        torch.testing.assert_close(terms["kd_cls"], results[0]["kd_cls"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(terms["kd_loc"], results[0]["kd_loc"], rtol=1e-3, atol=1e-6)
    # loc is in units of the pictures, weighted by the mean of their deviations: alike where these are alike
    torch.testing.assert_close(results[2]["loc"], results[1]["loc"], rtol=1e-4, atol=1e-6)


def test_classes_in_another_order_are_mapped_and_others_refused():
    model = ssd()
    positives, _ = tapped(model)
    order = [2, 0, 1]
    shuffled = network()
    with torch.no_grad():
        shuffled.fc.weight.copy_(shuffled.fc.weight[order])
        shuffled.fc.bias.copy_(shuffled.fc.bias[order])
    teacher = teacher_from(shuffled, [CLASSES[place] for place in order], 32, mean=(0.5,) * 3, std=(0.25,) * 3)
    mapped = of_student(teacher, model, classes=CLASSES)
    plain = of_student(foreign(), model)
    for name, term in mapped(positives).items():
        torch.testing.assert_close(term, plain(positives)[name], rtol=1e-5, atol=1e-7)
    assert teacher(torch.rand(2, 3, 32, 32)).shape == (2, 3) and teacher.classes != CLASSES
    with pytest.raises(ValueError, match="only the data has 'dog'"):
        of_student(teacher, model, classes=["ant", "bee", "dog"])


def test_positives_from_other_entrances_give_the_same_terms():
    model = ssd()
    positives, _ = tapped(model)
    distiller = of_student(foreign(), model)
    matched = Positives.from_matched(
        positives.images,
        positives.logits,
        positives.boxes,
        positives.image_index,
        positives.target_boxes[positives.matched_idxs],
        positives.target_labels[positives.matched_idxs],
        head=positives.head,
        background=positives.background,
    )
    expected = distiller(positives)
    for name, term in distiller(matched).items():
        torch.testing.assert_close(term, expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_loop_of_ones_own(precision):
    """Terms fall, gradients reach the head, accumulation works, and the host's checkpoint and average hold no teacher."""
    torch.manual_seed(0)
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=len(CLASSES) + 1, min_size=96, max_size=96
    ).train()
    distiller, tap = of_student(foreign(), model), PositiveTap(model)
    names = set(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.003)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    history = []
    for step in range(12):
        torch.manual_seed(3)  # of the proposals
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            with tap:
                losses = model(*batch())
            terms = distiller(tap.positives)
        assert terms.keys() == TERMS and all(term.isfinite() for term in terms.values())
        ((0.05 * sum(losses.values()) + 10 * terms["kd_cls"] + terms["kd_loc"] + terms["loc"]) / 2).backward()
        history.append(float(terms["kd_cls"]))
        if step % 2:
            predictor = model.roi_heads.box_predictor
            assert all(part.weight.grad.abs().sum() > 0 for part in (predictor.cls_score, predictor.bbox_pred))
            optimizer.step()
            optimizer.zero_grad()
            averaged.update_parameters(model)
    assert min(history[-2:]) < history[0]
    assert set(model.state_dict()) == names and not any("network" in name for name in averaged.state_dict())
    assert copy.deepcopy(distiller) is distiller
    assert all(parameter.grad is None for parameter in distiller.teacher.parameters())


def test_a_detector_of_transformers():
    pytest.importorskip("transformers")
    from small_transformers import DETECTORS

    torch.manual_seed(0)
    model = DETECTORS["RT-DETRv2"][0]().train()  # sigmoids: a teacher of softmax scores would do too, and teach less
    distiller = BoxDistiller(
        teacher_from(network(5), list("abcde"), 32, mean=MEAN, std=STD), ALL, image_mean=(0.0,) * 3, image_std=(1.0,) * 3
    )
    tap = PositiveTap(model)
    with tap:
        output = model(
            pixel_values=torch.rand(1, 3, 64, 64),
            labels=[
                {"class_labels": torch.tensor([1, 3]), "boxes": torch.tensor([[0.3, 0.3, 0.3, 0.3], [0.7, 0.6, 0.3, 0.4]])}
            ],
        )
    terms = distiller(tap.positives)
    assert terms.keys() == TERMS and all(term > 0 for term in terms.values())
    (output.loss + sum(terms.values())).backward()


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="KD-cls and KD-loc need a teacher"):
        BoxDistiller(None, image_mean=MEAN, image_std=STD)
    with pytest.raises(ValueError, match=r"image_std must be three numbers, those of image_std above 0; found \(1, 1, 0\)"):
        BoxDistiller(foreign(), ALL, image_mean=MEAN, image_std=(1, 1, 0))
    pixels = dataclasses.replace(ALL, kd_cls_weight=0.0, kd_loc_weight=0.0)
    positives, _ = tapped(ssd())
    assert BoxDistiller(None, pixels, image_mean=MEAN, image_std=STD)(positives).keys() == {"loc"}
