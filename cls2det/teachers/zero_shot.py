"""A teacher that nobody trained: a CLIP or SigLIP of transformers, with the names of the classes as its last layer.

teacher = zero_shot_teacher("openai/clip-vit-base-patch32", ["cat", "dog"])             # fetched, or from a folder
distiller = BoxDistiller(teacher, image_mean=mean, image_std=std)
"""

from __future__ import annotations

from collections.abc import Sequence

from cls2det.models.zero_shot import load_zero_shot
from cls2det.teachers.network import NetworkTeacher, teacher_from


def zero_shot_teacher(
    name: str,
    classes: Sequence[str],
    prompts: Sequence[str] | None = None,
    *,
    crop_size: int | None = None,
    margin: float = 0.0,
    weights: str = "pretrained",
) -> NetworkTeacher:
    """A teacher of these classes; the texts are encoded here, once.

    For a detector with a softmax take a CLIP or a SigLIP, for one with sigmoids a SigLIP: a CLIP's logits have no zero.

    Args:
        name: of the hub, or a folder, with a tokenizer
        classes: names of the detector's classes, as texts; an underscore is read as a blank
        prompts: texts with {} for a name, whose embeddings are averaged; None is "a photo of a {}."
        crop_size: side of the crops; None is the network's own. Smaller crops take less time
        margin: crops are larger than the box by this share of its size, on each side
        weights: "pretrained", or "none" for random ones

    Raises:
        as ``models.zero_shot.load_zero_shot``
    """
    network, _ = load_zero_shot(name, classes, prompts, size=crop_size, weights=weights)
    size = crop_size or network.size
    return teacher_from(network.module, classes, size, mean=network.mean, std=network.std, margin=margin)
