"""Running the model: batches, decoding, sampling, generation."""
