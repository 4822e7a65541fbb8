"""PositiveTap on every family of transformers' object detectors: the matcher's own matches, right boxes, right columns."""

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("transformers")
pytest.importorskip("scipy")

from torchvision.ops import box_convert
from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig
from transformers.loss import loss_for_object_detection

from cls2det.models.taps import PositiveTap
from cls2det_ops import kd_sigmoid_loss, kd_softmax_loss
from small_transformers import CLASSES, DETECTORS, NO_TIMM, RESNET

SIDE = 64
LABELS = [
    {"class_labels": torch.tensor([1, 3]), "boxes": torch.tensor([[0.3, 0.3, 0.3, 0.3], [0.7, 0.6, 0.3, 0.4]])},
    {"class_labels": torch.tensor([], dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    {"class_labels": torch.tensor([4]), "boxes": torch.tensor([[0.5, 0.5, 0.5, 0.4]])},
]


@pytest.fixture(params=DETECTORS, ids=lambda name: name.replace(" ", "-"))
def family(request):
    build, head, background = DETECTORS[request.param]
    torch.manual_seed(0)
    return build().train(), head, background


def run(model, labels=LABELS):
    tap = PositiveTap(model)
    torch.manual_seed(1)
    with tap:
        output = model(pixel_values=torch.rand(len(labels), 3, SIDE, SIDE), labels=labels)
    return tap, output


def test_matches_boxes_and_columns(family):
    model, head, background = family
    tap, output = run(model)
    positives = tap.positives
    groups = getattr(model.config, "group_detr", 1)  # LW-DETR and RF-DETR match each ground truth once per group
    assert (positives.head, positives.background) == (head, background)
    assert len(positives) == 3 * groups and sorted(positives.matched_idxs.tolist()) == sorted([0, 1, 2] * groups)
    assert torch.equal(positives.target_image_index[positives.matched_idxs], positives.image_index)
    assert positives.target_labels.tolist() == [2, 4, 5] and positives.target_image_index.tolist() == [0, 0, 2]
    expected = box_convert(torch.cat([label["boxes"] for label in LABELS]), "cxcywh", "xyxy") * SIDE
    torch.testing.assert_close(positives.target_boxes, expected)
    assert positives.logits.shape == (len(positives), CLASSES + (head == "softmax"))
    assert positives.images.shape == (3, 3, SIDE, SIDE)
    loss = (kd_softmax_loss if head == "softmax" else kd_sigmoid_loss)(
        positives.logits, torch.randn(3, CLASSES), positives.matched_idxs, background=background
    )
    (output.loss + loss + (positives.boxes - expected[positives.matched_idxs]).abs().mean()).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


def test_the_rows_are_those_that_the_loss_pulls_at(family):
    """The model's own loss moves the boxes of the positives alone, and raises the logit of each one's label."""
    model, head, _ = family
    tap, output = run(model)
    positives = tap.positives
    logits, boxes = tap.outputs
    of_logits, of_boxes = torch.autograd.grad(output.loss, (logits, boxes), retain_graph=True)
    images, queries = torch.where(of_boxes.abs().sum(2) > 0)
    assert images.tolist() == sorted(positives.image_index.tolist())
    rows = {tuple(row) for row in logits[images, queries].tolist()}
    assert rows == {tuple(row) for row in positives.logits.tolist()}
    if head == "softmax":
        return  # it pulls at every row; test_taps.py has its columns
    pulled = {(image, column) for image, _, column in (of_logits < 0).nonzero().tolist()}
    labels = positives.target_labels[positives.matched_idxs] - 1
    expected = set(zip(positives.image_index.tolist(), labels.tolist(), strict=True))
    # RT-DETR and D-FINE raise a logit by the overlap of the boxes, which may be nothing
    assert pulled == expected or (pulled < expected and hasattr(model.config, "weight_loss_vfl"))


def test_the_loss_is_the_models_own_and_nothing_stays(family):
    model, _, _ = family
    torch.manual_seed(5)
    state = torch.get_rng_state()
    plain = model(pixel_values=torch.ones(3, 3, SIDE, SIDE), labels=LABELS).loss
    tap = PositiveTap(model)
    torch.set_rng_state(state)
    with tap:
        tapped = model(pixel_values=torch.ones(3, 3, SIDE, SIDE), labels=LABELS).loss
    assert torch.equal(plain, tapped)
    before = tap.positives
    model(pixel_values=torch.rand(3, 3, SIDE, SIDE), labels=LABELS)  # outside: the tap does not look
    assert tap.positives.images is before.images
    assert not model._forward_pre_hooks and not torch.nn.modules.module._global_forward_hooks


def detr():
    torch.manual_seed(0)
    return DETECTORS["DETR"][0]().train()


def test_labels_without_a_forward_in_training_are_no_positives():
    model = detr()
    tap = PositiveTap(model)
    with tap:
        model(pixel_values=torch.rand(1, 3, SIDE, SIDE))
    with pytest.raises(RuntimeError, match="no positives"):
        _ = tap.positives


def test_boxes_of_padded_pictures_as_the_processor_writes_them():
    """Two pictures of unequal sizes: boxes come back in pixels of the padded batch, whatever they are shares of."""
    processor = DetrImageProcessor(size={"shortest_edge": 48, "longest_edge": 64})
    pictures = [torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8), torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8)]
    boxes = [[8.0, 4.0, 20.0, 30.0], [10.0, 6.0, 30.0, 20.0]]  # x, y, width, height
    annotations = [
        {"image_id": n, "annotations": [{"bbox": box, "category_id": 2, "area": box[2] * box[3], "iscrowd": 0, "image_id": n}]}
        for n, box in enumerate(boxes)
    ]
    expected = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes])
    model = detr()
    batch = processor(images=pictures, annotations=annotations, return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 48, 64)
    tap = PositiveTap(model)
    with tap:
        model(**batch)
    torch.testing.assert_close(tap.positives.target_boxes, expected, rtol=0, atol=1e-3)

    alone = [
        processor(images=[picture], annotations=[annotation], return_tensors="pt")["labels"][0]
        for picture, annotation in zip(pictures, annotations, strict=True)
    ]  # as where a collate function pads afterwards
    with tap:
        model(pixel_values=batch["pixel_values"], pixel_mask=batch["pixel_mask"], labels=alone)
    torch.testing.assert_close(tap.positives.target_boxes, expected, rtol=0, atol=1e-3)
    without_size = [{name: value for name, value in label.items() if name != "size"} for label in alone]
    with tap:
        model(pixel_values=batch["pixel_values"], pixel_mask=batch["pixel_mask"], labels=without_size)
    torch.testing.assert_close(tap.positives.target_boxes, expected, rtol=0, atol=1e-3)


def test_how_pictures_are_normalised_is_not_the_models_to_say():
    with pytest.raises(TypeError, match="give BoxDistiller the image_mean and image_std of its image processor"):
        _ = PositiveTap(detr()).normalisation


def test_a_version_without_the_matcher_fails_loudly(monkeypatch):
    model = detr()

    class Renamed(loss_for_object_detection.HungarianMatcher):
        pass

    monkeypatch.setattr(loss_for_object_detection, "HungarianMatcher", Renamed)
    tap = PositiveTap(model)
    with tap:
        model(pixel_values=torch.rand(3, 3, SIDE, SIDE), labels=LABELS)
    with pytest.raises(RuntimeError, match="no positives"):
        _ = tap.positives
    model.config.num_labels = CLASSES + 3
    tap = PositiveTap(model)
    monkeypatch.undo()
    with pytest.raises(Exception, match=r"transformers .*6 columns for 8 classes"), tap:
        model(pixel_values=torch.rand(3, 3, SIDE, SIDE), labels=LABELS)


def test_a_head_of_an_unknown_kind_is_refused():
    backbone = ResNetConfig(**RESNET, out_features=["stage4"])
    config = DetrConfig(
        backbone_config=backbone, **NO_TIMM, d_model=32, encoder_layers=1, decoder_layers=1, num_labels=CLASSES
    )
    config.use_focal_loss = False
    with pytest.raises(Exception, match="use_focal_loss=False"):
        PositiveTap(DetrForObjectDetection(config))
