"""Advice before a run."""
