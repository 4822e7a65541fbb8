"""Detectors: students by name, their backbones, the taps that read what a training step made, and the format of weights.pt."""
