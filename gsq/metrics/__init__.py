"""Metrics: Frechet distance, reconstruction quality and codebook use, in the precision that they need."""
