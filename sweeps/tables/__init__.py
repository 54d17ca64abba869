"""Run folders gathered into tables."""
