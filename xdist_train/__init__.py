"""Batches to models to evidence: the training job and what it leaves behind."""
