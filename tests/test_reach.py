"""The rows of docs/trainers/trained.md again: terms fall, gradients are there, and the matches are the detector's own."""

import pytest

pytest.importorskip("torchvision")

import reach


def check(trained):
    assert all(trained.falls(term) for term in reach.TERMS), trained.terms
    assert trained.logit_gradient > 0 and trained.box_gradient > 0
    assert trained.accuracy == 1 and trained.boxes_agree > 0.9
    # RT-DETR and D-FINE raise a logit towards the overlap of the boxes, which is next to nothing at first
    assert trained.labels_agree > 0.9 or trained.model in ("RT-DETR", "RT-DETRv2", "D-FINE")


@pytest.mark.parametrize("family", ["Deformable DETR"])
def test_a_detector_of_transformers(family):
    for library in ("transformers", "scipy"):
        pytest.importorskip(library)
    check(reach.of_transformers(family, steps=40))


@pytest.mark.slow
def test_every_detector():
    for library in ("transformers", "scipy"):
        pytest.importorskip(library)
    for trained in reach.everything():
        check(trained)
