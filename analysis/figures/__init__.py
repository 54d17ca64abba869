"""Figures: a description that is computed, and a function that draws it."""
