"""The study harness: scenes, sweeps of arms by seeds, and their reports. Nobody needs it who only trains."""
