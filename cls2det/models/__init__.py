"""Detectors: students by name, their backbones, and the taps that read what a training step made."""
