"""Training on Lightning: detectors, classifiers and backbones, and the files of a run."""
