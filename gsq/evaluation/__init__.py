"""Evaluations of a model, each with the protocol that its numbers depend on."""
