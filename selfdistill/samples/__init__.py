"""Small data sets that ship with the package, as WebDataset shards."""
