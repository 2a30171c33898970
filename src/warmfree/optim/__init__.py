"""Optimizers: a direction, its size controls, and the write."""
