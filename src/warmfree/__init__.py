"""Train transformers without learning-rate warmup."""

__version__ = "0.1.0"
