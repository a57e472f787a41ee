"""The networks: pure functions over parameter trees, and the Flax modules that declare those trees."""
