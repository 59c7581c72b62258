"""Offline work: a folder of images becomes a packed, audited dataset."""
