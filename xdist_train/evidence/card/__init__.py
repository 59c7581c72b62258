"""The model card: a run as one markdown page beside its weights."""
