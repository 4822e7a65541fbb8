import torch
from torchvision.ops import box_iou
def imitation_mask(anchors, boxes, image_index, images, level_sizes, *, factor=0.5, assignment="level"):
    out = torch.zeros(images, len(anchors), dtype=torch.bool, device=anchors.device)
    if not len(boxes): return out
    iou = box_iou(boxes, anchors)
    parts = iou.split(list(level_sizes), 1)
    best = torch.stack([p.amax(1) for p in parts], 1)
    if assignment == "all": best = best.amax(1, keepdim=True).expand_as(best)
    keep = torch.cat([(p > factor * b[:, None]) for p, b in zip(parts, best.unbind(1))], 1)
    if assignment == "best":
        top = best.argmax(1)
        lvl = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(level_sizes)).to(boxes.device)
        keep &= lvl[None] == top[:, None]
    out.index_put_((image_index,), keep, accumulate=False)
    acc = torch.zeros(images, len(anchors), device=anchors.device).index_add_(0, image_index, keep.float())
    return acc > 0
