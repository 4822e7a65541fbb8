"""Positives from lists and from matched boxes give what the one list of the batch gives, to the bit."""

import dataclasses

import pytest
import torch

pytest.importorskip("torchvision")

from cls2det.models.positives import Positives
from cls2det_ops import RoIMap, roi_kd_loss

CLASSES, COUNTS, MATCHES = 4, (2, 0, 3), ([0, 1, 1, 0], [], [2, 0, 2, 1, 1])


def flat():
    """Two images with objects, one without; every ground truth has a positive."""
    torch.manual_seed(0)
    corners = torch.rand(sum(COUNTS), 2) * 30
    target_boxes = torch.cat([corners, corners + 5 + 20 * torch.rand(sum(COUNTS), 2)], 1)
    starts = [0, 2, 2]
    matched = torch.tensor([row + start for rows, start in zip(MATCHES, starts, strict=True) for row in rows])
    images = torch.tensor([image for image, count in enumerate(COUNTS) for _ in range(count)])
    return Positives(
        images=torch.randn(3, 3, 64, 64),
        logits=torch.randn(len(matched), CLASSES + 1, requires_grad=True),
        boxes=(target_boxes[matched] + torch.randn(len(matched), 4)).requires_grad_(),
        image_index=images[matched],
        matched_idxs=matched,
        target_boxes=target_boxes,
        target_labels=torch.tensor([1, 2, 3, 4, 1]),
        target_image_index=images,
        head="softmax",
        background="last",
    )


def split(rows, counts):
    return list(rows.split(counts))


def from_lists(positives, **changes):
    rows, targets = [len(matches) for matches in MATCHES], list(COUNTS)
    arguments = {
        "logits": split(positives.logits, rows),
        "boxes": split(positives.boxes, rows),
        "matched_idxs": [torch.tensor(matches, dtype=torch.int64) for matches in MATCHES],
        "target_boxes": split(positives.target_boxes, targets),
        "target_labels": split(positives.target_labels, targets),
        "head": "softmax",
        "background": "last",
    }
    return Positives.from_lists(positives.images, **arguments | changes)


def from_matched(positives, **changes):
    arguments = {
        "logits": positives.logits,
        "boxes": positives.boxes,
        "image_index": positives.image_index,
        "matched_boxes": positives.target_boxes[positives.matched_idxs],
        "matched_labels": positives.target_labels[positives.matched_idxs],
        "head": "softmax",
        "background": "last",
    }
    return Positives.from_matched(positives.images, **arguments | changes)


def losses(positives, teacher):
    """Both terms and their gradients; ``teacher`` gives the logits of a ground truth from its box."""
    kd = roi_kd_loss(
        positives.logits,
        positives.boxes,
        teacher(positives.target_boxes),
        positives.target_boxes,
        positives.matched_idxs,
        positives.target_image_index,
        RoIMap(positives.images, 4, 16),
        background=positives.background,
    )
    return [kd.cls, kd.loc, *torch.autograd.grad(kd.loss, (positives.logits, positives.boxes))]


@pytest.mark.parametrize("entrance", [from_lists, from_matched])
def test_every_entrance_gives_the_same_bits(entrance):
    expected = flat()
    again = entrance(expected)
    for name in ("matched_idxs", "image_index", "target_image_index"):
        assert getattr(again, name).dtype == torch.int64
    assert torch.equal(again.target_boxes[again.matched_idxs], expected.target_boxes[expected.matched_idxs])
    assert torch.equal(again.target_labels[again.matched_idxs], expected.target_labels[expected.matched_idxs])
    assert torch.equal(again.image_index, expected.image_index)
    weight = torch.randn(4, CLASSES, dtype=torch.float64)

    def teacher(boxes):  # a function of each box alone, summed in one order
        return (boxes.double()[:, :, None] * weight).sum(1).float() / 50

    for ours, theirs in zip(losses(again, teacher), losses(expected, teacher), strict=True):
        assert torch.equal(ours, theirs) and bool(ours.any())


def test_equal_boxes_of_two_images_or_labels_stay_apart():
    box = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(4, 4)
    positives = Positives.from_matched(
        torch.zeros(2, 3, 8, 8),
        torch.zeros(4, 3),
        box,
        torch.tensor([0, 1, 1, 0]),
        box,
        torch.tensor([1, 1, 2, 1]),
        head="sigmoid",
        background="none",
    )
    assert len(positives.target_boxes) == 3
    assert positives.target_image_index[positives.matched_idxs].tolist() == [0, 1, 1, 0]
    assert positives.target_labels[positives.matched_idxs].tolist() == [1, 1, 2, 1]
    assert positives.matched_idxs[0] == positives.matched_idxs[3]


def test_batches_without_positives():
    empty = [torch.zeros(0, 3)] * 2, [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2
    boxes = [torch.zeros(1, 4), torch.zeros(0, 4)]
    labels = [torch.ones(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)]
    of_lists = Positives.from_lists(torch.zeros(2, 3, 8, 8), *empty, boxes, labels, head="softmax", background="first")
    assert len(of_lists) == 0 and of_lists.target_image_index.tolist() == [0]
    none = torch.zeros(0, dtype=torch.int64)
    matched = Positives.from_matched(
        torch.zeros(2, 3, 8, 8), empty[0][0], empty[1][0], none, empty[1][0], none, head="softmax", background="first"
    )
    assert len(matched) == 0 and matched.target_boxes.shape == (0, 4)


def test_what_does_not_belong_together_is_named():
    positives = flat()
    with pytest.raises(ValueError, match="from_lists: boxes must have an entry for each of 3 images, found 1"):
        from_lists(positives, boxes=[positives.boxes])
    with pytest.raises(ValueError, match="from_lists: image 2 has 5 rows of logits and 4 rows of boxes"):
        from_lists(positives, boxes=[*split(positives.boxes, [4, 0, 5])[:2], positives.boxes[5:]])
    with pytest.raises(ValueError, match="from_matched: matched_labels must have a row for each of 9 positives, found 3"):
        from_matched(positives, matched_labels=torch.ones(3))
    with pytest.raises(ValueError, match="background must be one of first, last, none; found 'middle'"):
        from_matched(positives, background="middle")
    with pytest.raises(ValueError, match="head must be one of softmax, sigmoid; found 'relu'"):
        from_lists(positives, head="relu")
    with pytest.raises(ValueError, match=r"boxes with 4 columns; found .*boxes \(9, 5\)"):
        dataclasses.replace(positives, boxes=torch.zeros(9, 5))
    with pytest.raises(TypeError, match="head"):
        Positives.from_lists(positives.images, [], [], [], [], [])
