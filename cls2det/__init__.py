"""Distil an image classifier into an object detector.

The losses live in ``cls2det_ops``; this package trains with them: COCO-format data (``data``), the
classification teacher (``teacher``), torchvision detectors as students (``students``), their positives
(``taps``), the distillation terms (``distill``), Lightning training (``train``), evaluation (``evaluate``)
and the demo that shows the gain (``cls2det demo``).
"""
