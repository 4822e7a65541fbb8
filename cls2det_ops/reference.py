"""The operators in plain PyTorch: the definition that tests compare with, the fallback, and the baseline of the benchmarks.

Written for reading, from PyTorch's own affine_grid, grid_sample, adaptive_avg_pool2d and log_softmax; it shares no formula
with the kernels. Arguments are those of the public functions, already checked. Losses return one value per row, before
weighting and reduction. Maps of 16 bits are computed in float32. Tensors on the meta device give results with shapes alone.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import accumulate_dtype


def roi_crop(
    images: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    padding_mode: str = "zeros",
    clip: bool = True,
) -> Tensor:
    """Crops (N, C, h, w) by affine_grid and one grid_sample per image: the image is never replicated."""
    return _crop(images, boxes, image_index, output_size, spatial_scale, padding_mode, clip).to(images.dtype)


def roi_avg_pool(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    output_size: tuple[int, int],
    sampling_size: tuple[int, int],
    spatial_scale: float = 1.0,
    padding_mode: str = "zeros",
    clip: bool = True,
) -> Tensor:
    """adaptive_avg_pool2d of the crop of ``sampling_size``."""
    crops = _crop(features, boxes, image_index, sampling_size, spatial_scale, padding_mode, clip)
    return _pool(crops, output_size).to(features.dtype)


def roi_feature_loss(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    target_features: Tensor,
    target_boxes: Tensor,
    target_image_index: Tensor,
    matched_idxs: Tensor,
    output_size: tuple[int, int],
    sampling_size: tuple[int, int],
    spatial_scale: float,
    target_spatial_scale: float,
    padding_mode: str,
    clip: bool,
    loss: str,
    beta: float,
) -> Tensor:
    """Rows (K,): mean over channels and bins of the difference between predicted and ground-truth box."""
    kept = _inside(matched_idxs, len(target_boxes)) & _inside(image_index, len(features))
    if len(target_boxes) > 0:
        matched = matched_idxs.clamp(0, len(target_boxes) - 1)
        kept = kept & _inside(target_image_index, len(target_features))[matched]
    kept = _places(kept)
    acc = accumulate_dtype(features.dtype)
    pooled = _pool(
        _crop(features, boxes[kept], image_index[kept], sampling_size, spatial_scale, padding_mode, clip), output_size
    )
    with torch.no_grad():
        target = _pool(
            _crop(target_features, target_boxes, target_image_index, sampling_size, target_spatial_scale, padding_mode, clip),
            output_size,
        )
    values = _compare(pooled, target[matched_idxs[kept]], loss, beta)
    return _scatter_rows(values, kept, len(boxes), acc)


def matched_feature_loss(
    features: Tensor, target_features: Tensor, matched_idxs: Tensor, output_size: tuple[int, int], loss: str, beta: float
) -> Tensor:
    """Rows (K,): mean over channels and bins of the difference of the two pooled feature crops."""
    acc = accumulate_dtype(features.dtype)
    kept = _places(_inside(matched_idxs, len(target_features)))
    pooled = _pool(features[kept].to(acc), output_size)
    target = _pool(target_features.detach().to(acc), output_size)
    values = _compare(pooled, target[matched_idxs[kept]], loss, beta)
    return _scatter_rows(values, kept, len(features), acc)


def masked_feature_loss(student: Tensor, teacher: Tensor, mask: Tensor | None, channel_mask: Tensor | None) -> Tensor:
    """Rows (B,): sum of the squared differences times both masks."""
    acc = accumulate_dtype(student.dtype)
    weight = torch.ones((), dtype=acc, device=student.device)
    if mask is not None:
        weight = weight * mask.to(acc)[:, None]
    if channel_mask is not None:
        weight = weight * channel_mask.to(acc)[:, :, None, None]
    difference = torch.where(weight == 0, 0, student.to(acc) - teacher.to(acc))  # NaN under a mask of 0 is out
    return (weight * difference * difference).sum((1, 2, 3))


def attention_means(features: Tensor, absolute: bool) -> tuple[Tensor, Tensor]:
    """(B, H, W) and (B, C): the map, or its magnitude, averaged over channels and over positions."""
    values = features.to(accumulate_dtype(features.dtype))
    values = values.abs() if absolute else values
    return values.sum(1) / max(values.shape[1], 1), values.mean((2, 3))


def frozen_stem(images: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """(N, C, h, w)."""
    if weight.shape[0] == 0:  # torch convolves to no channels only in some versions
        return frozen_stem(images, weight.new_zeros(1, *weight.shape[1:]), bias.new_zeros(1), stride, padding)[:, :0]
    with _without_autocast(images):
        return F.max_pool2d(F.conv2d(images, weight, bias, stride, padding).relu(), 3, 2, 1)


def imitation_mask(
    anchors: Tensor, boxes: Tensor, image_index: Tensor, images: int, level_sizes: list[int], factor: float, assignment: str
) -> Tensor:
    """(B, N): whether an anchor's IoU with a box of the image exceeds the box's threshold, from the whole (G, N) matrix."""
    low = torch.maximum(boxes[:, None, :2], anchors[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], anchors[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    areas = [(rectangles[:, 2:] - rectangles[:, :2]).prod(1) for rectangles in (boxes, anchors)]
    iou = shared / (areas[0][:, None] + areas[1] - shared)
    iou = torch.where(iou > 0, iou, 0)  # not NaN either
    largest = torch.stack([F.pad(part, (1, 0)).amax(1) for part in iou.split(level_sizes, 1)], 1)  # (G, levels)
    levels = torch.arange(len(level_sizes), device=boxes.device)
    best = levels.expand_as(largest)
    if assignment != "level":
        most = largest.max(1, keepdim=True)
        largest = most.values.expand_as(largest)
        best = most.indices if assignment == "best" else best
    threshold = torch.where((largest > 0) & (best == levels), factor * largest, float("inf"))
    sizes = torch.tensor(level_sizes, device=boxes.device)
    marked = iou > threshold.repeat_interleave(sizes, 1, output_size=len(anchors))
    of_image = image_index == torch.arange(images, device=boxes.device)[:, None]
    return of_image.float() @ marked.float() > 0


def kd_softmax_loss(
    student_logits: Tensor, teacher_logits: Tensor, matched_idxs: Tensor, temperature: float, background: str
) -> Tensor:
    """Rows (K,): T^2 KL(softmax(teacher / T), softmax(student / T)); the background column has teacher probability 0."""
    student, teacher, kept = _matched_logits(student_logits, teacher_logits, matched_idxs)
    log_ps = _without_background(F.log_softmax(student / temperature, dim=1), background)
    log_pt = F.log_softmax(teacher / temperature, dim=1)
    values = temperature**2 * _kl(log_pt, log_ps)
    return _scatter_rows(values, kept, len(student_logits), student.dtype)


def kd_sigmoid_loss(
    student_logits: Tensor, teacher_logits: Tensor, matched_idxs: Tensor, temperature: float, mode: str, background: str
) -> Tensor:
    """Rows (K,): "bce" the mean of the two-way KL of every class, "l1norm" the KL of the L1-normalised sigmoids."""
    student, teacher, kept = _matched_logits(student_logits, teacher_logits, matched_idxs)
    a_s = _without_background(student, background) / temperature
    a_t = teacher / temperature
    if mode == "l1norm":  # log(S / sum S) = log_softmax(log S)
        values = temperature**2 * _kl(F.log_softmax(F.logsigmoid(a_t), dim=1), F.log_softmax(F.logsigmoid(a_s), dim=1))
    else:
        on = _times(a_t.sigmoid(), F.logsigmoid(a_t) - F.logsigmoid(a_s))
        off = _times((-a_t).sigmoid(), F.logsigmoid(-a_t) - F.logsigmoid(-a_s))
        values = temperature**2 * (on + off).sum(1) / max(teacher.shape[1], 1)
    return _scatter_rows(values, kept, len(student_logits), student.dtype)


def _crop(
    images: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    padding_mode: str,
    clip: bool,
) -> Tensor:
    """The crops in accumulate dtype, as the paper's equation 8 has them."""
    channels, height, width = images.shape[1:]
    acc = accumulate_dtype(images.dtype)
    x1, y1, x2, y2 = (boxes.to(acc) * spatial_scale).unbind(1)
    if clip:
        # where, not clamp: from torch 2.15 on clamp has no gradient at equality, and a box that touches the border must move
        x1, y1 = torch.where(x1 < 0, 0, x1), torch.where(y1 < 0, 0, y1)
        x2, y2 = torch.where(x2 > width, width, x2), torch.where(y2 > height, height, y2)
    # grid_sample reads out of bounds for positions that are not finite or do not fit an int: boxes that are not finite are
    # cropped as if empty and filled with NaN below, and edges are clamped to 100,000 image sizes, where nothing is read
    finite = torch.stack([x1, y1, x2, y2], 1).isfinite().all(1)
    x1, x2 = (torch.where(finite, x, 0).clamp(-1e5 * width, 1e5 * width) for x in (x1, x2))
    y1, y2 = (torch.where(finite, y, 0).clamp(-1e5 * height, 1e5 * height) for y in (y1, y2))
    nothing = torch.zeros_like(x1)
    theta = torch.stack(
        [(x2 - x1) / width, nothing, (x1 + x2) / width - 1, nothing, (y2 - y1) / height, (y1 + y2) / height - 1], dim=1
    ).view(-1, 2, 3)
    zero = boxes[:0].sum() + images[:0].sum()  # keeps the result attached to both inputs when no box is left
    crops = zero.to(acc).expand(len(boxes), channels, *size)
    if len(boxes) == 0 or channels == 0:
        return crops
    with _without_autocast(images):  # 16-bit positions would be off by pixels
        grid = F.affine_grid(theta, [len(boxes), 1, *size], align_corners=False)
    rows, parts = [], []
    for i in range(len(images)):
        members = _places(image_index == i)
        if len(members) > 0:  # the boxes of one image, stacked along the height of one sampling grid
            stacked = grid[members].view(1, len(members) * size[0], size[1], 2)
            part = F.grid_sample(images[i : i + 1].to(acc), stacked, "bilinear", padding_mode, align_corners=False)
            rows.append(members)
            parts.append(part.view(channels, len(members), *size).transpose(0, 1))
    if not rows:
        return crops
    crops = crops.index_copy(0, torch.cat(rows), torch.cat(parts))
    lost = _places(~finite & _inside(image_index, len(images)))
    return crops.index_fill(0, lost, float("nan")) if len(lost) > 0 else crops


def _pool(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[1] == 0:  # without channels adaptive_avg_pool2d has no backward
        return maps.sum() + maps.new_zeros(len(maps), 0, *size)
    return F.adaptive_avg_pool2d(maps, size)


def _compare(pooled: Tensor, target: Tensor, loss: str, beta: float) -> Tensor:
    if loss == "l1":
        values = F.l1_loss(pooled, target, reduction="none")
    elif loss == "l2":
        values = F.mse_loss(pooled, target, reduction="none")
    else:
        values = F.smooth_l1_loss(pooled, target, reduction="none", beta=beta)
    return values.flatten(1).sum(1) / max(pooled[:1].flatten(1).shape[1], 1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return _times(log_p.exp(), log_p - log_q).sum(1)


def _times(p: Tensor, x: Tensor) -> Tensor:
    """p * x with 0 * anything = 0."""
    return torch.where(p == 0, torch.zeros_like(p), p * x)


def _without_background(columns: Tensor, background: str) -> Tensor:
    return {"none": columns, "first": columns[:, 1:], "last": columns[:, :-1]}[background]


def _matched_logits(student: Tensor, teacher: Tensor, matched_idxs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    acc = accumulate_dtype(student.dtype)
    kept = _places(_inside(matched_idxs, len(teacher)))
    return student[kept].to(acc), teacher.detach().to(acc)[matched_idxs[kept]], kept


def _places(mask: Tensor) -> Tensor:
    """Where the mask is true; on the meta device, which has shapes and no values, everywhere: results have the same shapes."""
    return torch.arange(len(mask), device=mask.device) if mask.is_meta else mask.nonzero().squeeze(1)


def _without_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


def _inside(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)


def _scatter_rows(values: Tensor, kept: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """The rows that count in their places, zero elsewhere; attached to the graph even when none counts."""
    return values.new_zeros(length, dtype=dtype).index_copy(0, kept, values.to(dtype))
