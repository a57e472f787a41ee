"""Qwen3-Omni in JAX/Flax."""
