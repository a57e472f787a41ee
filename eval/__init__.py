"""Evaluation: benchmarks read, run and scored as their authors do."""
