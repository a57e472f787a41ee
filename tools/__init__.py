"""Small command-line tools; `qwen3-omni` is their front."""
