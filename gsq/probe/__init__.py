"""Measure what the tokens are good for: train a small generator, take its exact code length and sample from it."""
