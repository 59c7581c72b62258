"""Peers of the benches: programs for their own virtual environment, which know nothing of ours."""
