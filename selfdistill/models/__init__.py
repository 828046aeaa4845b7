"""The shared Transformer blocks."""
