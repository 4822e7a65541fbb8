"""Evaluation: mAP by pycocotools, diagnostics at the best anchors, and drawing."""
