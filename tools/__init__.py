"""The commands of `qwen3-omni`, one file each."""
