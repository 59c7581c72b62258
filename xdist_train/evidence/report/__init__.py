"""The report of a run: one page for a clinician and an engineer, made of what the run folder holds."""
