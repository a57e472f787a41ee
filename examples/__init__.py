"""A small trained model, and how the package is used inside other programs."""
