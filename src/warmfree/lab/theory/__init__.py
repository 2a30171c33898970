"""``warmfree theory``: what the theory of warmup says, measured, fitted to runs, and drawn."""
