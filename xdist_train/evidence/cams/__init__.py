"""Class activation maps: what in a picture a trained model answers by, and how far that can be believed."""
