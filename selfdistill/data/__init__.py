"""Shards and the order in which they are read."""
