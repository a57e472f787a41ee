"""Building blocks that are independent of modality."""
