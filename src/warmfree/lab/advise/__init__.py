"""Advice on a run's warmup, for the command line: what would be trained, what was measured, how it is shown."""
