"""Backbones, heads, losses and how weights travel. Knows no data set and no cluster."""
