"""Images to batches. Knows nothing of models."""
