"""PositiveTap takes what torchvision's own loss used, for SSD, RetinaNet and Faster R-CNN, and leaves the model as it was."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("torchvision")

from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.ssd import SSD

from cls2det.students import ssd_compact
from cls2det.taps import PositiveTap

CLASSES = 5


class OneMap(torch.nn.Module):
    """The smallest backbone that a RetinaNet or a Faster R-CNN takes."""

    out_channels = 16

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, 8, 1), torch.nn.ReLU())

    def forward(self, images):
        return self.layers(images)


def ssd():
    return ssd_compact(CLASSES, 96)


def retinanet():
    return detection.RetinaNet(
        OneMap(), CLASSES + 1, min_size=96, max_size=96, anchor_generator=AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),))
    )


def faster_rcnn():
    model = detection.FasterRCNN(
        OneMap(),
        CLASSES + 1,
        min_size=96,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=None,
        box_batch_size_per_image=32,
    )
    return model


BUILDERS = [ssd, retinanet, faster_rcnn]


def batch():
    torch.manual_seed(1)
    boxes = [[[10.0, 12, 42, 44], [50, 40, 90, 88]], [], [[20.0, 20, 60, 62]]]
    labels = [[1, 3], [], [5]]
    targets = [
        {"boxes": torch.tensor(box).reshape(-1, 4), "labels": torch.tensor(label, dtype=torch.int64)}
        for box, label in zip(boxes, labels, strict=True)
    ]
    return [torch.rand(3, 96, 96) for _ in targets], targets


@pytest.fixture(params=BUILDERS, ids=lambda builder: builder.__name__)
def model(request):
    torch.manual_seed(0)
    return request.param().train()


def tapped(model):
    tap = PositiveTap(model)
    with tap:
        losses = model(*batch())
    return losses, tap.positives


def test_positives_belong_together(model):
    _, found = tapped(model)
    assert len(found) > 0
    assert found.images.shape == (3, 3, 96, 96)
    assert found.target_labels.tolist() == [1, 3, 5] and found.target_image_index.tolist() == [0, 0, 2]
    assert torch.equal(found.target_image_index[found.matched_idxs], found.image_index)  # the match lies in the same image
    assert found.logits.shape == (len(found), CLASSES + 1) and found.boxes.shape == (len(found), 4)
    assert found.logits.requires_grad and found.boxes.requires_grad


def test_the_losses_are_torchvisions_own(model):
    torch.manual_seed(3)
    plain = model(*batch())
    torch.manual_seed(3)
    losses, _ = tapped(model)
    assert {name: loss.item() for name, loss in losses.items()} == {name: loss.item() for name, loss in plain.items()}


def test_ssd_box_loss_again_from_the_positives():
    """The smooth-L1 loss computed from the tap's boxes is the one that torchvision reports: same rows, same matches."""
    torch.manual_seed(0)
    model = ssd().train()
    seen = {}
    original = SSD.compute_loss

    def spy(self, targets, head_outputs, anchors, matched_idxs):
        seen.update(matched=matched_idxs, anchors=anchors, logits=head_outputs["cls_logits"])
        return original(self, targets, head_outputs, anchors, matched_idxs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SSD, "compute_loss", spy)
        losses, found = tapped(model)
    assert len(found) == sum(int((matched >= 0).sum()) for matched in seen["matched"])
    anchors = torch.cat([boxes[matched >= 0] for boxes, matched in zip(seen["anchors"], seen["matched"], strict=True)])
    wanted = model.box_coder.encode_single(found.target_boxes[found.matched_idxs], anchors)
    again = F.smooth_l1_loss(model.box_coder.encode_single(found.boxes, anchors), wanted, reduction="sum") / len(found)
    torch.testing.assert_close(again, losses["bbox_regression"], rtol=1e-4, atol=1e-5)
    rows = torch.cat([logits[matched >= 0] for logits, matched in zip(seen["logits"], seen["matched"], strict=True)])
    assert torch.equal(rows, found.logits)


def test_faster_rcnn_takes_the_true_class_box():
    """With the regression of every other class blown up, the decoded boxes do not move."""
    torch.manual_seed(0)
    model = faster_rcnn().train()
    torch.manual_seed(3)
    _, before = tapped(model)
    labels = set(before.target_labels.tolist())
    with torch.no_grad():
        for other in set(range(CLASSES + 1)) - labels:
            model.roi_heads.box_predictor.bbox_pred.bias[4 * other : 4 * other + 4] += 1.0
    torch.manual_seed(3)
    _, after = tapped(model)
    assert torch.equal(before.boxes, after.boxes)


def test_model_is_left_as_it_was(model):
    def attributes():
        return {name: (set(vars(module)), len(module._forward_hooks)) for name, module in model.named_modules()}

    before = attributes()
    tapped(model)
    assert attributes() == before
    with pytest.raises(AssertionError, match="targets should not be"), PositiveTap(model):
        model(batch()[0], None)
    assert attributes() == before


def test_no_ground_truth_at_all(model):
    images, targets = batch()
    tap = PositiveTap(model)
    with tap:
        model(images[1:2], targets[1:2])
    assert len(tap.positives) == 0


def test_thinned_keeps_every_image():
    _, found = tapped(ssd().train())
    few = found.thinned(6)
    assert len(few) == 6 and len(few.logits) == 6
    assert set(few.image_index.tolist()) == set(found.image_index.tolist())
    assert found.thinned(10_000) is found


def test_unknown_model_and_missing_attribute():
    with pytest.raises(TypeError, match="SSD, RetinaNet and FasterRCNN, not Linear"):
        PositiveTap(torch.nn.Linear(1, 1))
    model = ssd()
    del model.box_coder
    with pytest.raises(RuntimeError, match=r"torchvision .*SSD has no box_coder.decode_single"):
        PositiveTap(model)


def test_no_positives_before_a_forward():
    tap = PositiveTap(ssd())
    with pytest.raises(RuntimeError, match="inside `with tap:`"):
        tap.positives  # noqa: B018
