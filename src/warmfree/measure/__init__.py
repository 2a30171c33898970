"""Measurements of a training run."""
