"""Why warmup works: the smoothness that depends on the loss, gradient descent under it, and its fit to real runs."""
