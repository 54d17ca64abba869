"""Frozen networks, and the files of their weights."""
