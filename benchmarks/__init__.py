"""Benchmarks of the distillation losses; run one with ``python -m benchmarks.losses``."""
