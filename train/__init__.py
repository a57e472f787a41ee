"""Training: data, step, stages, and the run."""
