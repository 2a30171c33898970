"""The laboratory: models, data, training loop, sweeps and the papers' experiments."""
