"""Searches over configurations. One trial is one launch."""
