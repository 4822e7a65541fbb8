"""Average pooling of boxes on a feature map, with gradient to boxes and map."""

from __future__ import annotations

from torch import Tensor

from .. import _checks as check
from .. import reference
from .._library import native
from ._common import register_box_sampling, run


def roi_avg_pool(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    output_size: int | tuple[int, int],
    sampling_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    *,
    padding_mode: str = "zeros",
    clip: bool = True,
) -> Tensor:
    r"""Adaptive average pooling of each box's bilinear crop, computed without making the crop.

    Equals ``adaptive_avg_pool2d(roi_crop(features, boxes * spatial_scale, image_index, sampling_size), output_size)``.
    Sampling and pooling are linear and separable, so

    .. math:: pooled_{n,c,p,q} = \sum_r \sum_s W^y_{p,r} W^x_{q,s} I_{c,r,s}, \quad
              W^x_{q,s} = \frac{1}{|bin_q|} \sum_{i \in bin_q} \max(0, 1 - |u_i - s|)

    with the sample positions u of :func:`roi_crop`: the cost follows the box's area on the map, not the samples.

    Args:
        features: (B, C, H, W), float32, float64, float16 or bfloat16, any strides (channels-last is fast for many channels).
        boxes: (N, 4) as (x1, y1, x2, y2) in input pixels; times ``spatial_scale`` they are in pixels of ``features``.
        image_index: (N,) int64 or int32, the image of each box.
        output_size: P or (h, w), bins per axis; bin q covers samples floor(q S / P) to ceil((q + 1) S / P) - 1.
        sampling_size: S or (h, w), samples per axis.
        spatial_scale: size of the map over size of the input, such as 1/4.
        padding_mode, clip: as in :func:`roi_crop`, on the map.

    Returns:
        (N, C, P, P) in the dtype of ``features``, summed in float32 (float64 for float64).

    Gradients flow to ``boxes`` and to ``features``; torchvision's ``roi_align`` gives none to the boxes.
    Values out of range: as in :func:`roi_crop`. Raises: as :func:`roi_crop`.
    """
    name = "roi_avg_pool"
    check.feature_map(name, "features", features)
    check.floating(name, "boxes", boxes, ("N", 4))
    image_index = check.index(name, "image_index", image_index, boxes.shape[0], "boxes")
    check.same_device(name, features=features, boxes=boxes, image_index=image_index)
    size = check.size_pair(name, "output_size", output_size)
    samples = check.size_pair(name, "sampling_size", sampling_size)
    scale = check.positive(name, "spatial_scale", spatial_scale)
    border = bool(check.choice(name, "padding_mode", padding_mode, check.PADDING_MODES))
    clip = check.flag(name, "clip", clip)
    if check.debug_enabled():
        check.index_values(name, "image_index", image_index, features.shape[0], "features")
        check.box_values(name, "boxes", boxes)
    if not native(features):
        return reference.roi_avg_pool(
            features, boxes, image_index, size, samples, spatial_scale=scale, padding_mode=padding_mode, clip=clip
        )
    boxes = check.in_dtype(boxes, check.accumulate_dtype(features.dtype))
    pooled: Tensor = run(
        name,
        features=features,
        boxes=boxes,
        image_index=image_index,
        out_h=size[0],
        out_w=size[1],
        samples_h=samples[0],
        samples_w=samples[1],
        spatial_scale=scale,
        border=border,
        clip=clip,
    )
    return pooled


register_box_sampling("roi_avg_pool", "features", ["samples_h", "samples_w", "spatial_scale", "border", "clip"])
