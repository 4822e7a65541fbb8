"""Distil an image classifier into an object detector.

The losses live in ``cls2det_ops``; this package trains with them. Its rooms, of which each imports only those before it:

- ``data``: annotations in COCO's, VOC's and YOLO's layouts, images, augmentation, batches
- ``models``: the students by name, their backbones, the taps that read what a training step made, weights.pt
- ``teachers``: the classifier of ground-truth crops, a detector as teacher, frozen networks
- ``distill``: the distillers: the classifier's terms, and a file per detector-to-detector method
- ``evaluation``: COCO's table, diagnostics, drawing
- ``training``: detectors, classifiers and backbones on Lightning, and the files of a run
- ``commands``: what ``cls2det <command>`` does, with ``recipes`` for it
- ``study``: sweeps, the demo and reports, which nobody needs who only trains

``data``, ``models``, ``teachers`` and ``distill`` work without Lightning, rich and matplotlib: with a training loop of your own.
"""
