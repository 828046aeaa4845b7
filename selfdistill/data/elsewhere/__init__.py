"""Files that are not on this machine: how they are named, reached and kept."""
