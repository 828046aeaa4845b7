"""Folders as transformers keeps them: read, written, and moved to and from the Hub."""
