import torch
def masked_feature_loss(student, teacher, mask=None, channel_mask=None, *, normalizer, reduction="sum"):
    acc = torch.float64 if student.dtype == torch.float64 else torch.float32
    d = (student.to(acc) - teacher.to(acc)) ** 2
    if mask is not None: d = d * mask[:, None].to(acc)
    if channel_mask is not None: d = d * channel_mask[:, :, None, None].to(acc)
    rows = d.flatten(1).sum(1) / normalizer
    return rows if reduction == "none" else rows.sum() if reduction == "sum" else rows.mean()
