"""A crash, dissected: runs that fail beside runs that do not, all watched, and which quantity moved first."""
