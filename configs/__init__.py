"""Model presets as data."""
