"""Checks of a fit, to make before quoting its numbers."""
