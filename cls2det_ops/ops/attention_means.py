import torch
def attention_means(features, *, absolute=True):
    acc = torch.float64 if features.dtype == torch.float64 else torch.float32
    f = features.to(acc)
    f = f.abs() if absolute else f
    return f.mean(1), f.mean((2, 3))
