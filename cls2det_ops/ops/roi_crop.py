"""Bilinear crops of boxes, with gradient to the boxes."""

from __future__ import annotations

from torch import Tensor

from .. import _checks as check
from .. import reference
from .._library import native
from ._common import register_box_sampling, run


def roi_crop(
    images: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    output_size: int | tuple[int, int],
    *,
    padding_mode: str = "zeros",
    clip: bool = True,
) -> Tensor:
    r"""Crop each box out of its image and resample it to one size.

    .. math:: crop_{n,c,i,j} = I_{c}(v_i, u_j), \quad u_j = x_1 + (x_2 - x_1)\frac{j + 1/2}{w} - \frac12,
              \quad v_i = y_1 + (y_2 - y_1)\frac{i + 1/2}{h} - \frac12

    with I read bilinearly, pixel centres at integers: the same numbers as ``affine_grid`` + ``grid_sample`` with
    ``align_corners=False``. The image is read through ``image_index``; it is never replicated.
    Source: "Distilling Image Classifiers in Object Detectors" (NeurIPS 2021), equation 8.

    Args:
        images: (B, C, H, W), float32, float64, float16 or bfloat16, any strides.
        boxes: (N, 4) as (x1, y1, x2, y2) in pixels of ``images``; handled in float32 (float64 for float64 images).
        image_index: (N,) int64 or int32, the image of each box.
        output_size: S or (h, w).
        padding_mode: outside the image read "zeros" or the "border" pixel.
        clip: move edges that lie outside the image onto its border first, each edge on its own side only
            (x1, y1 up to 0; x2, y2 down to W, H), as the paper does.

    Returns:
        (N, C, h, w) in the dtype of ``images``, contiguous.

    Gradients flow to ``boxes``, and to ``images`` when they require one. None flows to an edge that was clipped.

    A box whose ``image_index`` is outside [0, B) gives zeros and passes no gradient. A box that is not finite gives NaN,
    and its gradient is undefined. An inverted box gives a mirrored crop. :func:`debug_values` reports all three.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape, device or value range, named with what was found.
    """
    name = "roi_crop"
    check.feature_map(name, "images", images)
    check.floating(name, "boxes", boxes, ("N", 4))
    image_index = check.index(name, "image_index", image_index, boxes.shape[0], "boxes")
    check.same_device(name, images=images, boxes=boxes, image_index=image_index)
    size = check.size_pair(name, "output_size", output_size)
    border = bool(check.choice(name, "padding_mode", padding_mode, check.PADDING_MODES))
    clip = check.flag(name, "clip", clip)
    if check.debug_enabled():
        check.index_values(name, "image_index", image_index, images.shape[0], "images")
        check.box_values(name, "boxes", boxes)
    if not native(images):
        return reference.roi_crop(images, boxes, image_index, size, padding_mode=padding_mode, clip=clip)
    boxes = check.in_dtype(boxes, check.accumulate_dtype(images.dtype))
    tensors = {"images": images, "boxes": boxes, "image_index": image_index}
    crops: Tensor = run(name, **tensors, out_h=size[0], out_w=size[1], border=border, clip=clip)
    return crops


register_box_sampling("roi_crop", "images", ["border", "clip"])
