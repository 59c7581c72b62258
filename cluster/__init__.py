"""Bottom layer: what a cluster gives every job. Knows nothing of images or training."""
