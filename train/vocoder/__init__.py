"""Training of the vocoder, and of a whole codec, on waves."""
