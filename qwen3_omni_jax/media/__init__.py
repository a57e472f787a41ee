"""Media and text to numpy arrays; never imports jax."""
