"""Blocks that know no modality."""
