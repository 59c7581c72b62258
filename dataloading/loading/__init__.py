"""The hot path: a packed dataset becomes batches."""
